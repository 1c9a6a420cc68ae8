"""The C code beside this file, compiled when a model is loaded, where there is a C compiler and a CPU that it is for.

The library lies in a folder of this process alone until it is loaded: no cache to trust or to clear.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-fno-strict-aliasing", "-shared", "-fPIC")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}  # as /proc/cpuinfo calls them
COMPILE_SECONDS = 60

POINTER, INT, FLOAT, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
SIGNATURES: dict[str, tuple[list[Any], Any]] = {  # arguments and result
    "attend": ([*3 * [POINTER, INT, INT], POINTER, POINTER, *4 * [INT], FLOAT, FLAG], ctypes.c_int),
    "norm": ([*5 * [POINTER], INT, INT, FLOAT, FLAG], None),
    "gate": ([POINTER, POINTER, INT], None),
}


@cache
def load_library() -> ctypes.CDLL | None:
    """Return `attend` of attention.c and `norm` and `gate` of layers.c, or None where they cannot be had.

    `CC` names the compiler, as for make; `CC=false` means none. Compiling takes 0.7 s.
    """
    try:
        return _compile() if cpu_flags() >= NEEDED else None
    # No compiler, one that is too old, a folder without execution
    except (OSError, subprocess.SubprocessError) as failure:
        output = getattr(failure, "stderr", None) or str(failure)
        logger.info("attention and norms are not compiled: %s", output.strip().partition("\n")[0])
        return None


def cpu_flags() -> set[str]:
    """What /proc/cpuinfo says of the CPU. OSError: there is none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _compile() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="stillroom-") as folder:
        library = Path(folder) / "kernels.so"
        # In one: the compiler reads its header of instructions once, which takes half the time
        sources = ("-include", str(FOLDER / "attention.c"), str(FOLDER / "layers.c"))
        command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, *sources, "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        return _declared(ctypes.CDLL(str(library)))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (arguments, result) in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library
