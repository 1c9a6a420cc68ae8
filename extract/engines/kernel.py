"""attention.c, compiled when a model is loaded, where there is a C compiler and a CPU that it is for.

It takes a third of the time of torch's best way (two oneDNN products and its softmax): 20 % off a MiniLM in bfloat16, for half
a second of compiling. The library lies in a folder of this process alone until it is loaded: no cache to trust or to clear.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("attention.c")
FLAGS = ("-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-fno-strict-aliasing", "-shared", "-fPIC")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}  # as /proc/cpuinfo calls them
# Matrix units are 8 times as fast in products, and torch has its own kernels for them: not measured
BETTER = {"amx_tile"}
COMPILE_SECONDS = 60
POINTER, INT = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS: list[Any] = [*3 * [POINTER, INT, INT], POINTER, POINTER, *4 * [INT], ctypes.c_float, ctypes.c_int]

# query [H, N, d], key and value [H or fewer, N, d], lengths, scale, is causal -> [N, H, d]; all bfloat16
Kernel = Callable[[Tensor, Tensor, Tensor, Sequence[int], float, bool], Tensor]


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes such tensors."""
    size = query.shape[-1]
    return size % 32 == 0 and value.shape[-1] == size and all(t.stride(-1) == 1 for t in (query, key, value))


@cache
def load_kernel() -> Kernel | None:
    """Return the compiled attention within each sequence of a packed batch, or None where there is none or it is wrong.

    `CC` names the compiler, as for make; `CC=false` means none.
    """
    try:
        flags = _cpu_flags()
        if not flags >= NEEDED or flags & BETTER:
            return None
        kernel = _wrap(_compile())
        error = _largest_error(kernel)
    # No compiler, one that is too old, a folder without execution
    except (OSError, subprocess.SubprocessError) as failure:
        output = getattr(failure, "stderr", None) or str(failure)
        logger.info("attention is not compiled: %s", output.strip().partition("\n")[0])
        return None
    if error > 0.03:
        logger.warning("attention is not compiled: the compiler's code is wrong by %.2g", error)
        return None
    return kernel


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _compile() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="stillroom-") as folder:
        library = Path(folder) / "attention.so"
        command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        return ctypes.CDLL(str(library))


def _wrap(library: ctypes.CDLL) -> Kernel:
    function = library.attend
    function.argtypes = ARGUMENTS

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
