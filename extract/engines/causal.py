"""A causal language model of the transformers library in three parts: backbone, head, and what follows the head."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from extract.engines import EngineError
from extract.engines.linears import PackedLinear
from extract.engines.packed import PackedModel, PackedUnsupportedError
from extract.engines.transfer import send
from extract.engines.transformers import keep_memory
from extract.engines.weights import load_weights

logger = logging.getLogger(__name__)

PROBE = (5, 17, 3, 11, 29, 2, 13, 7)
# names in configurations: Cohere and Falcon-H1 multiply, Granite divides, HyperCLOVA X multiplies under Granite's name
SCALES: tuple[tuple[str, int], ...] = (
    ("logit_scale", 1),
    ("lm_head_multiplier", 1),
    ("logits_scaling", -1),
    ("logits_scaling", 1),
)

Change = Callable[[Tensor], Tensor]


class CausalModel:
    """Hidden states and logits of a model on one device, or spread over several.

    Raises:
        EngineError: the model cannot be loaded, or does something to its logits that is not known here.
    """

    def __init__(
        self,
        location: tuple[str, str | None],  # folder or Hub id, revision
        dtype: str,
        device: str,
        spread: Mapping[str, Any] | None = None,  # arguments of from_pretrained that put it on several devices
        max_length: int = 0,  # of any sequence: a sliding window needs to know
        trust_remote_code: bool = False,
    ) -> None:
        whole = _load(location, dtype, device, spread, trust_remote_code)
        self.backbone, self.head = whole.base_model, whole.get_output_embeddings()
        self.vocab_size, self.width = self.head.weight.shape
        self.dtype: torch.dtype = whole.dtype
        self.device = whole.get_input_embeddings().weight.device
        self.head_device = self.head.weight.device
        if self.head_device.type == "meta":  # accelerate brings its weights to where its input is
            self.head_device = self.device
        self.is_cpu = self.device.type == self.head_device.type == "cpu"
        self.packed: PackedModel | None = None
        self.change: Change = lambda logits: logits
        with torch.inference_mode():
            hidden = self._find_change(whole, str(location[0]))
            if spread is None and self.device.type in ("cpu", "cuda"):
                self._pack(max_length, hidden)

    def hidden(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
        """Return hidden states [N, D], and where in N each sequence begins; the first of its tokens stand from there on."""
        lengths = [len(sequence) for sequence in sequences]
        if self.packed is not None:
            return self.packed(sequences), [0, *itertools.accumulate(lengths)][:-1]
        width = max(lengths)  # padded on the right: no token of a causal model sees what follows it
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
        ids, mask = (send(t, self.device) for t in (ids, mask))
        states = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False)[0].flatten(0, 1)
        return states, [row * width for row in range(len(sequences))]

    def logits(self, hidden_RD: Tensor) -> Tensor:  # axes: R rows, D dimensions
        """Return logits [R, V]: float32 on a CUDA device whatever the model's dtype, else in that dtype."""
        head = self.head
        is_plain = type(head) is nn.Linear and head.bias is None and not hasattr(head, "_hf_hook")
        if hidden_RD.is_cuda and is_plain and head.weight.dtype in (torch.bfloat16, torch.float16):
            return self.change(torch.mm(hidden_RD, head.weight.T, out_dtype=torch.float32))
        return self.change(head(hidden_RD))

    def _find_change(self, whole: Any, name: str) -> Tensor:
        """Find what turns the head's output into the model's logits on a probe; return the probe's hidden states."""
        probe = [id_ % self.vocab_size for id_ in PROBE]
        expected = whole(input_ids=torch.tensor([probe], device=self.device), use_cache=False).logits[0].float()
        hidden = self.hidden([probe])[0].to(self.head_device)
        plain = self.logits(hidden).to(expected.device).float()
        tolerance = (1e-4 if self.dtype == torch.float32 else 0.02) * float(expected.abs().max())
        for change in logit_changes(whole.config.get_text_config()):
            if plain.shape == expected.shape and (change(plain) - expected).abs().max() <= tolerance:
                self.change = change
                return hidden
        raise EngineError(
            f"--model {name}: its logits are not those of its head, and what it does to them is not known here "
            "(known: final_logit_softcapping, logit_scale, logits_scaling, lm_head_multiplier)"
        )

    def _pack(self, max_length: int, hidden: Tensor) -> None:
        try:
            self.packed = PackedModel(self.backbone, max_length, use_cache=False)
        except PackedUnsupportedError as error:
            logger.warning("padded batches: this model does not run without padding (%s)", error)
        if not self.is_cpu:
            return
        keep_memory()
        if self.dtype != torch.float32 or type(self.head) is not nn.Linear:
            return  # in bfloat16, oneDNN is what torch takes by itself
        plain = self.head
        try:
            self.head = PackedLinear(plain)
            is_same = torch.allclose(self.head(hidden), plain(hidden), atol=1e-4, rtol=1e-4)
        except Exception as error:  # a torch without oneDNN
            logger.info("the head stays as it is: %s", error)
            is_same = False
        if not is_same:
            self.head = plain


def logit_changes(config: Any) -> Iterator[Change]:
    """Yield what models with such a configuration may do to the head's output, nothing at all last."""
    cap = getattr(config, "final_logit_softcapping", None)
    scales = [(getattr(config, name, None), power) for name, power in SCALES]
    factors = [float(scale) ** power for scale, power in scales if scale and scale != 1.0]
    for limit, factor in itertools.product([cap, None] if cap else [None], [*factors, 1.0]):
        yield _change(factor, limit)


def _change(factor: float, cap: float | None) -> Change:
    def change(logits: Tensor) -> Tensor:
        if factor != 1.0:
            logits = logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return change


def _load(
    location: tuple[str, str | None],
    dtype: str,
    device: str,
    spread: Mapping[str, Any] | None,
    trust_remote_code: bool,
) -> Any:
    more = {"trust_remote_code": trust_remote_code, **(spread or {})}
    name = location[0]
    whole = load_weights(AutoModelForCausalLM, location, dtype, device, shown=name, **more)
    if whole.get_output_embeddings() is None:
        raise EngineError(f"--model {name} has no head that gives logits: teacher logits need a causal language model")
    return whole
