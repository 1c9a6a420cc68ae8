"""Padding-free forward on a CPU or a GPU, for any transformers model that goes through the attention interface.

All tokens of a batch stand in one row `[1, N]`; only attention knows where one sequence ends. On a CPU, linear layers run in
oneDNN (linears.py), and in bfloat16 what stands between them in compiled code (layers.py). All is taken only where a probe
gives the values of the model as it came.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from extract.engines.attention import Sequences, attend
from extract.engines.layers import pack_layers
from extract.engines.linears import pack_linears
from extract.engines.swaps import Swaps
from extract.engines.transfer import send

logger = logging.getLogger(__name__)

ATTENTION = "stillroom_packed"
# arguments that the packed attention does not do
REFUSED = ("softcap", "position_bias", "s_aux", "head_mask", "alibi")
PROBE_LENGTHS = (7, 48, 2, 48, 33)
# oneDNN builds a kernel for each number of rows that it sees, in 0.7 ms, and keeps 0.6 MB for each of the last 1,024. On a CPU
# some tokens that no one sees make the number a multiple of this: 0.4 % more of them, and tens of kernels instead of 1,024
ROUND_TOKENS = 16


@dataclass
class _Flight:
    """The batch that a thread runs."""

    sequences: Sequences
    max_length: int  # of any batch of the model
    calls: int = 0  # of the attention


_of_thread = threading.local()  # flight: _Flight


class PackedUnsupportedError(RuntimeError):
    """The model, or this batch, needs something that the packed path does not do."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a packed batch. query: [1, H, N, d]; key, value: [1, H or fewer, N, d]."""
    flight: _Flight = _of_thread.flight
    if attention_mask is not None or any(kwargs.get(name) is not None for name in REFUSED):
        raise PackedUnsupportedError("attention with a mask, a bias, a sink or a soft cap")
    if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == sum(flight.sequences.lengths):
        raise PackedUnsupportedError("attention over something else than the packed tokens")
    if sliding_window and flight.max_length > sliding_window // 2:  # families count a window as one or both sides
        raise PackedUnsupportedError("a sliding window shorter than the longest text")
    flight.calls += 1
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query[0], key[0], value[0], flight.sequences, scale, causal)[None], None


# No mask function is registered under this name: transformers then builds no mask at all.
AttentionInterface.register(ATTENTION, packed_attention)


class PackedModel:
    """A model that runs packed batches. Making one changes the model in place.

    Raises:
        PackedUnsupportedError: packed values differ from the model's own; the model is then as it came.
    """

    def __init__(self, model: PreTrainedModel, max_length: int, **arguments: Any) -> None:
        self.model, self.max_length, self.arguments = model, max_length, arguments
        self.position_offset = 0
        generator = torch.Generator().manual_seed(0)
        vocab_size = int(model.config.get_text_config().vocab_size)
        pad = model.config.get_text_config().pad_token_id
        probe = [torch.randint(0, vocab_size, (n,), generator=generator) for n in PROBE_LENGTHS]
        probe = [torch.where(ids == pad, (ids + 1) % vocab_size, ids) for ids in probe] if pad is not None else probe
        with torch.inference_mode():  # one sequence at a time, no padding, the model untouched
            truth = torch.cat(
                [model(input_ids=ids[None].to(model.device), **arguments)[0][0].float() for ids in probe]
            )
        sequences = [ids.tolist() for ids in probe]
        self._choose_attention(sequences, truth, pad)
        if model.device.type == "cpu":
            self._swap(pack_linears, sequences, truth)
            if model.dtype == torch.bfloat16:
                self._swap(pack_layers, sequences, truth)

    def __call__(self, sequences: Sequence[Sequence[int]], layer: int = -1) -> Tensor:
        """Run token ids and return hidden states [N, D] of a layer, one sequence after the other; -1: the model's end.

        Another layer needs `output_hidden_states=True` among the model's arguments.
        """
        lengths = [len(sequence) for sequence in sequences]
        num_tokens = sum(lengths)
        missing = -num_tokens % ROUND_TOKENS if self.model.device.type == "cpu" else 0
        if missing:
            sequences, lengths = [*sequences, missing * [sequences[0][0]]], [*lengths, missing]
        ids = torch.tensor([id_ for sequence in sequences for id_ in sequence])[None]
        positions = torch.cat([torch.arange(length) for length in lengths])[None] + self.position_offset
        flight = _of_thread.flight = _Flight(Sequences(lengths), self.max_length)
        ids, positions = (send(t, self.model.device) for t in (ids, positions))
        output = self.model(input_ids=ids, position_ids=positions, **self.arguments)
        if not flight.calls:
            raise PackedUnsupportedError("the model does not use the attention interface")
        states: Tensor = output[0] if layer == -1 else output.hidden_states[layer]
        return states[0, :num_tokens]

    def _choose_attention(self, sequences: list[list[int]], truth: Tensor, pad: int | None) -> None:
        plain = self.model.config._attn_implementation
        reasons = []
        # RoBERTa and its kin count positions from pad_token_id + 1, but only where none are given
        for self.position_offset in [0] if pad is None else [0, pad + 1]:
            try:
                self.model.set_attn_implementation(ATTENTION)
                self._compare(sequences, truth)
                return
            except Exception as error:  # whatever a model does with what it does not expect
                reasons.append(f"{type(error).__name__}: {error}")
        self.model.set_attn_implementation(plain)
        raise PackedUnsupportedError("; ".join(reasons))

    def _swap(self, pack: Callable[[nn.Module, Swaps], None], sequences: list[list[int]], truth: Tensor) -> None:
        swaps = Swaps()
        try:
            pack(self.model, swaps)
            self._compare(sequences, truth)
        except Exception as error:  # a torch without oneDNN, a module that reads linear.weight
            swaps.undo()
            logger.info("%s: modules stay as they are: %s", pack.__name__, error)

    def _compare(self, sequences: list[list[int]], truth: Tensor) -> None:
        with torch.inference_mode():
            got = self(sequences).float()
        if truth.shape != got.shape:
            raise PackedUnsupportedError(f"hidden states have the shape {tuple(got.shape)}, not {tuple(truth.shape)}")
        if self.model.dtype == torch.float32:
            is_same = torch.allclose(got, truth, atol=1e-4, rtol=1e-4)
        else:  # kernels round differently: directions, not digits
            is_same = bool(nn.functional.cosine_similarity(got, truth, dim=-1).min() > 0.995)
        if not is_same:
            raise PackedUnsupportedError(f"hidden states differ by up to {(got - truth).abs().max().item():.2g}")
