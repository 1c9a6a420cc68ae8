"""The compiled attention: a third of the time of torch's best way (two oneDNN products and its softmax)."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from extract.engines.compiled import INT, cpu_flags, load_library

logger = logging.getLogger(__name__)

# Matrix units are 8 times as fast in products, and torch has its own attention for them: not measured
BETTER = {"amx_tile"}

# query [H, N, d], key and value [H or fewer, N, d], lengths, scale, is causal -> [N, H, d]; all bfloat16
Kernel = Callable[[Tensor, Tensor, Tensor, Sequence[int], float, bool], Tensor]


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes such tensors."""
    size = query.shape[-1]
    return size % 32 == 0 and value.shape[-1] == size and all(t.stride(-1) == 1 for t in (query, key, value))


@cache
def load_kernel() -> Kernel | None:
    """Return the compiled attention within each sequence of a packed batch, or None where there is none or it is wrong."""
    library = load_library()
    if library is None or cpu_flags() & BETTER:
        return None
    kernel = _wrap(library)
    error = _largest_error(kernel)
    if error > 0.03:
        logger.warning("attention is not compiled: the compiler's code is wrong by %.2g", error)
        return None
    return kernel


def _wrap(library: ctypes.CDLL) -> Kernel:
    function = library.attend

    def attend(
        query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float, is_causal: bool
    ) -> Tensor:
        heads, tokens, size = query.shape
        out = query.new_empty(tokens, heads, size)
        stops = (INT * len(lengths))(*accumulate(lengths))
        views = [x for t in (query, key, value) for x in (t.data_ptr(), t.stride(0), t.stride(1))]
        group = heads // key.shape[0]
        if function(*views, out.data_ptr(), stops, len(lengths), heads, group, size, scale, is_causal):
            raise RuntimeError("can't allocate memory for attention")
        return out

    return attend


def _largest_error(kernel: Kernel) -> float:
    """Against float32, over lengths around its blocks of 8 and 32."""
    lengths = (1, 40, 7, 65)
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(h, sum(lengths), 64, generator=draw).bfloat16() for h in (2, 1, 1))
    worst = 0.0
    for is_causal in (False, True):
        parts = (t.float().split(lengths, 1) for t in (query, key, value))
        attention = torch.nn.functional.scaled_dot_product_attention
        truth = torch.cat(
            [
                attention(q, k.expand_as(q), v.expand_as(q), is_causal=is_causal)
                for q, k, v in zip(*parts, strict=True)
            ],
            1,
        )
        got = kernel(query, key, value, lengths, 64**-0.5, is_causal).transpose(0, 1)
        worst = max(worst, float((got - truth).abs().max()))
    return worst
