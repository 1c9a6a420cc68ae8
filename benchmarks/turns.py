"""Measuring in turns on one device, and a table of what was found."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import click
import torch


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Median (least to largest)."""
    middle, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    return f"{middle} ({low}–{high})"


class Bench:
    """One device."""

    def __init__(self, device: str, turns: int) -> None:
        self.device, self.turns = torch.device(device), turns

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds until the device has done it, or those that it measured itself."""
        self.wait()
        start = time.perf_counter()
        own = work()
        self.wait()
        return own if isinstance(own, float) else time.perf_counter() - start

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def in_turns(self, works: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each, after one turn in which kernels are chosen."""
        taken: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(self.turns + 1):
            for name, work in works.items():
                seconds = self.seconds(work)
                if turn:
                    taken[name].append(seconds)
        return taken

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most memory that tensors took on the GPU meanwhile, over what they took before."""
        if self.device.type != "cuda":
            work()
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before

    def add(self, part: str, case: str, figure: str, ratio: str = "") -> None:
        """Print a row."""
        click.echo(f"| {part} | {case} | {figure} | {ratio} |")
