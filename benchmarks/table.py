"""Rows of the table of `make bench`: what was measured, beside what, and whether the goal is reached."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "datasets", "pyarrow", "numpy")
HEADER = ("", "ours", "peer", "ratio: min / median / max", "goal", "reached")


@dataclass(frozen=True)
class Row:
    """One figure of several runs. The peer took turns with us: run n of both sides stand next to each other.

    The ratio says how many times better we are: ours / peer, or where `is_less` peer / ours. `goal` is its least median, or,
    where there is no peer, a bound of the median of ours.
    """

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    peer_name: str = ""
    goal: float | None = None
    is_less: bool = False  # fewer is better: seconds, bytes
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """One for each pair of runs."""
        pairs = zip(self.ours, self.peer, strict=True) if self.peer else ()
        return [(peer / ours if self.is_less else ours / peer) if min(ours, peer) > 0 else 0.0 for ours, peer in pairs]

    @property
    def is_reached(self) -> bool | None:
        """Whether the median is within the goal; None without one, or where nothing was measured."""
        if self.goal is None or not self.ours:
            return None
        if self.ratios:
            return statistics.median(self.ratios) >= self.goal
        middle = statistics.median(self.ours)
        return middle <= self.goal if self.is_less else middle >= self.goal

    def cells(self) -> tuple[str, ...]:
        """The row as text; HEADER names its columns."""
        sign = "≤" if self.is_less and not self.peer else "≥"
        goal = "" if self.goal is None else f"{sign} {number(self.goal)}" + ("" if self.peer else f" {self.unit}")
        ratio = " / ".join(f"{f(self.ratios):.2f}" for f in (min, statistics.median, max)) if self.ratios else ""
        peer = f"{spread(self.peer, self.unit)}, {self.peer_name}" if self.peer else ""
        reached = {None: "", True: "yes", False: "**no**"}[self.is_reached]
        name = f"{self.name} ({self.note})" if self.note else self.name
        return name, spread(self.ours, self.unit) if self.ours else "", peer, ratio, goal, reached

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, the ratios, and whether the goal is reached."""
        return asdict(self) | {"ratios": self.ratios, "is_reached": self.is_reached}


def number(value: float) -> str:
    """Three significant digits, or all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float], unit: str) -> str:
    """Median (min–max) with the unit."""
    middle, low, high = (number(f(values)) for f in (statistics.median, min, max))
    return f"{middle} {unit}" if low == high else f"{middle} {unit} ({low}–{high})"


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    lines = [HEADER, ("---",) * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine() -> str:
    """CPU, cores and memory: the class of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {name} ({', '.join(wide)}), {memory:.0f} GiB"


def versions() -> str:
    """Python's version and those of what is compared."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the wall that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def to_json(rows: Iterable[Row]) -> str:
    """One JSON list."""
    return json.dumps([row.to_dict() for row in rows], indent=1)


def from_dict(value: dict[str, Any]) -> Row:
    """Read what `Row.to_dict` wrote."""
    return Row(**{name: value[name] for name in Row.__dataclass_fields__})
