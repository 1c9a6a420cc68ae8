"""Start-up: the help of the command line, and a run that finds its output complete.

Both are processes of their own, measured by the wall and by CPU seconds: other work on the machine moves these less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.table import Row
from builders.demo import write_demo
from tests.runs import CHECKOUT, MINILM, Bench

HELP = [sys.executable, "-c", "from extract.cli import main; main()", "--help"]
HELP_SECONDS, RESUME_SECONDS = 0.3, 5.0


def taken(command: Sequence[str], bench: Bench) -> tuple[float, float]:
    """Wall and CPU seconds of a process that must succeed."""
    wall, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, cwd=CHECKOUT, env=bench.env, capture_output=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, cpu


def pairs(ours: Sequence[str], peer: Sequence[str], bench: Bench, count: int) -> list[tuple[tuple[float, float], ...]]:
    """Wall and CPU seconds of both in turns, after one turn that fills the caches of the disk."""
    found = [(taken(ours, bench), taken(peer, bench)) for _ in range(count + 1)]
    return found[1:]


def help_rows(bench: Bench, count: int) -> Iterator[Row]:
    """Help, beside that of the Hub's own command."""
    peer = [str(Path(sys.executable).with_name("hf")), "--help"]
    found = pairs(HELP, peer, bench, count)
    (wall, cpu), (their_wall, _) = (list(zip(*(pair[side] for pair in found), strict=True)) for side in (0, 1))
    yield Row("`stillroom --help`", "s", wall, their_wall, "`hf --help`", is_less=True)
    yield Row("`stillroom --help`, CPU", "s", cpu, goal=HELP_SECONDS, is_less=True)


def resume_rows(bench: Bench, count: int) -> Iterator[Row]:
    """A run of 64 demo chats through MiniLM that was done before."""
    source = write_demo(bench.root / "demo.parquet", 64)
    options = ["--source", str(source), "--model", MINILM, "--output", str(bench.root / "out"), "--resume"]
    command = [sys.executable, str(CHECKOUT / "extract" / "run.py"), *options]
    taken([*command, "--chunk-rows", "32"], bench)
    found = [taken(command, bench) for _ in range(count)]
    wall, cpu = zip(*found, strict=True)
    yield Row("a resumed run with nothing to do", "s", wall, goal=RESUME_SECONDS, is_less=True)
    yield Row("a resumed run with nothing to do, CPU", "s", cpu, is_less=True)


def rows(count: int = 3) -> Iterator[Row]:
    """Yield the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        yield from help_rows(bench, count)
        yield from resume_rows(bench, count)
