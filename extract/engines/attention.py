"""Attention within each sequence of a batch without padding, by the fastest way that the device has."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from extract.engines.kernel import fits, load_kernel
from extract.engines.transfer import send

MAX_BMM_LENGTH = 1024  # scores of longer sequences fall out of the cache
# Short sequences attend together, masked from each other: 2,048 tokens in texts of 30 take 4.1 ms instead of 5.9
BLOCK_TOKENS = 128

Block = tuple[int, int, Tensor | None]  # tokens [start, stop), and what is added to their scores, bfloat16 [1, n, n]


class Sequences:
    """Where sequences stand in a row of tokens."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.sent: dict[torch.device, Tensor] = {}

    @cached_property
    def single(self) -> list[Block]:
        """Each for itself."""
        stops = list(accumulate(self.lengths))
        return [(stop - length, stop, None) for length, stop in zip(self.lengths, stops, strict=True)]

    @cached_property
    def blocks(self) -> list[Block]:
        """Neighbours joined into blocks of at most BLOCK_TOKENS tokens; a longer sequence is a block of its own."""
        blocks: list[Block] = []
        start, inside = 0, [self.lengths[0]]
        for length in [*self.lengths[1:], BLOCK_TOKENS]:  # the last closes the block in hand
            if sum(inside) + length <= BLOCK_TOKENS:
                inside.append(length)
                continue
            stop = start + sum(inside)
            blocks.append((start, stop, _apart(inside) if len(inside) > 1 else None))
            start, inside = stop, [length]
        return blocks

    def bounds(self, device: torch.device) -> Tensor:
        """Where sequences begin and end, int32 [B + 1], on a device: sent once a batch."""
        if device not in self.sent:
            bounds = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
            self.sent[device] = send(bounds, device)
        return self.sent[device]


def attend(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scale: float, is_causal: bool) -> Tensor:
    """Return [N, H, d]. query: [H, N, d]; key, value: [H or fewer, N, d].

    Raises:
        RuntimeError: on a GPU, flash attention does not take such tensors.
        ImportError: this torch has no flash attention over lengths (2.11 has).
    """
    if query.device.type != "cpu":
        return _flash(query, key, value, sequences, scale, is_causal)
    is_half = query.dtype == torch.bfloat16
    kernel = load_kernel() if is_half and fits(query, key, value) else None
    if kernel is not None:
        return kernel(query, key, value, sequences.lengths, scale, is_causal)
    heads = query.shape[0]
    key, value = (t.repeat_interleave(heads // t.shape[0], 0) if t.shape[0] < heads else t for t in (key, value))
    by_products = is_half and not is_causal and max(sequences.lengths) <= MAX_BMM_LENGTH
    out = query.new_empty(query.shape[1], heads, value.shape[-1])
    for start, stop, mask in sequences.blocks if by_products else sequences.single:
        part = (query[:, start:stop], key[:, start:stop], value[:, start:stop])
        attended = _by_products(*part, scale, mask) if by_products else _fused(*part, scale, is_causal)
        out[start:stop].transpose(0, 1).copy_(attended)
    return out


def _flash(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scale: float, is_causal: bool) -> Tensor:
    """Flash attention over lengths, as torch brings it: no padding, no mask, and nothing that waits for the device."""
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = sequences.bounds(query.device), max(sequences.lengths)
    out: Any = varlen_attn(  # a tensor, as no more is asked for
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),
        enable_gqa=len(query) != len(key),
    )
    tensor: Tensor = out
    return tensor


def _apart(lengths: list[int]) -> Tensor:
    """Zero within each sequence, minus infinity between two; [1, n, n]."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    zeros = torch.zeros(len(owner), len(owner), dtype=torch.bfloat16)
    return zeros.masked_fill_(owner[:, None] != owner, -torch.inf)[None]


def _by_products(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Two oneDNN products and its softmax, in bfloat16: half the time of torch's fused kernel (256 tokens, 12 heads of 32).

    The copies make the transposed key a view that oneDNN takes as it is: 5 % of the whole.
    """
    query, key = query.contiguous(), key.contiguous()
    bias, beta = (query.new_empty(()), 0) if mask is None else (mask, 1)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), beta=beta, alpha=scale)
    return torch.bmm(_softmax(scores), value)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis. In bfloat16, torch's own takes 1.5 times as long at 256 tokens and 3 times at 90."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.softmax(scores, -1)
    probabilities: Tensor = torch.softmax(scores.to_mkldnn(), -1).to_dense()
    return probabilities


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool) -> Tensor:
    attention = nn.functional.scaled_dot_product_attention
    return attention(query[None], key[None], value[None], scale=scale, is_causal=is_causal and query.shape[1] > 1)[0]
