"""Counts of values in many narrow bins: means and quantiles of any number of values in a few kB, and bars for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN = 0.999  # of the values are in the bars; the last 0.1 % would make all others thin


def quantile_name(q: float) -> str:
    """p5, median, p95, …"""
    return "median" if q == 0.5 else f"p{100 * q:g}"


class Bar(NamedTuple):
    """Values in [start, stop); the last bar of a histogram has its end too."""

    start: float
    stop: float
    number: int  # of values


@dataclass
class Histogram:
    """Values in `num_bins` equal bins of [low, high]; what lies outside counts in the first or last bin.

    A quantile is off by at most one bin. `step` 1 says that values are whole numbers, each in a bin of its own.
    """

    name: str
    unit: str
    low: float
    high: float
    num_bins: int
    counts: np.ndarray = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.num_bins, np.int64)

    @classmethod
    def of_integers(cls, name: str, unit: str, high: int) -> Histogram:
        """Whole numbers from 0 to `high`, a bin each."""
        return cls(name, unit, 0, high + 1, high + 1)

    @property
    def is_whole(self) -> bool:
        """Whether each bin is one whole number."""
        return self.num_bins == self.high - self.low

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / self.num_bins

    def add(self, values: np.ndarray) -> None:
        """Count values."""
        bins = ((values - self.low) / self.width).astype(np.int64).clip(0, self.num_bins - 1)
        self.counts += np.bincount(bins, minlength=self.num_bins)
        self.total += float(values.sum(dtype=np.float64))

    @property
    def num_values(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the values themselves; nan of none."""
        return self.total / self.num_values if self.num_values else float("nan")

    def quantile(self, q: float) -> float:
        """Least value that a share q of all does not exceed: exact of whole numbers, else the middle of its bin."""
        if not self.num_values:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self.counts), max(1, np.ceil(q * self.num_values))))
        return self.low + self.width * (place if self.is_whole else place + 0.5)

    def bars(self, num_bars: int) -> list[Bar]:
        """Regroup the bins that hold nearly all values into at most `num_bars` bars of the same width."""
        held = np.flatnonzero(self.counts)
        if not len(held):
            return []
        share = np.cumsum(self.counts) / self.num_values
        first, last = held[0], min(held[-1], int(np.searchsorted(share, SHOWN)))
        first = max(first, int(np.searchsorted(share, 1 - SHOWN, side="right")))
        step = -(-(last - first + 1) // num_bars)
        starts = np.arange(first, last + 1, step)
        end = min(starts[-1] + step, int(held[-1]) + 1)
        sums = np.add.reduceat(self.counts[:end], starts)
        edges = self.low + self.width * np.append(starts, end)
        return [Bar(float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], sums, strict=False)]

    def to_dict(self, num_bars: int = 20) -> dict[str, Any]:
        """Mean, quantiles and bars, for JSON."""
        quantiles = {quantile_name(q): self.quantile(q) for q in QUANTILES} if self.num_values else {}
        mean = self.mean if self.num_values else None
        return {"unit": self.unit, "mean": mean, **quantiles, "bars": [list(bar) for bar in self.bars(num_bars)]}
