"""Counts that add up over units, small enough for a receipt: values in bins of a fraction of an octave, rows by source."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

TALLIES = "tallies"  # key of the counts of a unit: tallies by name, each as `binned` gives it
SOURCES = "sources"  # key: [records, tokens] by source; None where a unit has too many to list
PER_OCTAVE = 4  # bins; whole numbers up to 7 have one each, and a quantile is off by at most 9 %
PER_OCTAVE_NORM = 64  # norms of one model lie close together: bins of 1 %
MAX_SOURCES = 64  # of a unit; with more, the column is no name of a source
LEAST = 2.0**-20  # what is smaller counts in this bin
MOST = "most"  # the greatest value, beside the bins


def binned(values: np.ndarray, per_octave: int = PER_OCTAVE) -> dict[str, float]:
    """Count values in bins [2^(k/per_octave), 2^((k+1)/per_octave)): numbers by k, which JSON wants as text; and MOST."""
    if not values.size:
        return {}
    most = values.max().item()
    # a hair above the value, so that a power of two is never below its own edge
    places = np.floor(np.log2(np.maximum(values, LEAST)) * per_octave + 1e-9).astype(np.int64)
    found, numbers = np.unique(places, return_counts=True)
    return {str(k): int(n) for k, n in zip(found, numbers, strict=True)} | {MOST: most}


def by_source(sources: Iterable[str | None], tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Return [records, tokens] of each source; None of more than MAX_SOURCES, {} where no row names one."""
    found: dict[str, list[int]] = {}
    for name, number in zip(sources, tokens, strict=True):
        if name is not None:
            sums = found.setdefault(name, [0, 0])
            sums[0] += 1
            sums[1] += int(number)
    return found if len(found) <= MAX_SOURCES else None


class Bin(NamedTuple):
    """Values in [low, high), or of whole numbers those from low to high, both of them meant."""

    low: float
    high: float
    number: int


@dataclass
class Tally:
    """Counts of `binned`, added up."""

    is_whole: bool = True
    per_octave: int = PER_OCTAVE
    counts: Counter[int] = field(default_factory=Counter)
    most: float = 0
    num_units: int = 0

    def add(self, counts: Mapping[str, float]) -> None:
        """Add the counts of a unit."""
        self.counts.update({int(k): int(n) for k, n in counts.items() if k != MOST})
        self.most = max(self.most, counts[MOST])
        self.num_units += 1

    @property
    def num_values(self) -> int:
        """How many values were counted."""
        return sum(self.counts.values())

    def quantile(self, q: float) -> float:
        """A value that a share q of all does not exceed: the middle of its bin; nan of no values."""
        wanted, passed = max(1, math.ceil(q * self.num_values)), 0
        for place in sorted(self.counts):
            passed += self.counts[place]
            if passed >= wanted:
                low, high = self.edges(place)
                return round((low + high) / 2) if self.is_whole else math.sqrt(low * high)
        return math.nan

    def edges(self, place: int) -> tuple[float, float]:
        """Lower and upper edge of a bin; of whole numbers the least and the greatest that it can have."""
        low, high = 2 ** (place / self.per_octave), 2 ** ((place + 1) / self.per_octave)
        if not self.is_whole:
            return low, high
        high = math.ceil(high - 1e-6) - 1
        return math.ceil(low - 1e-6), min(high, self.most) if place == max(self.counts) else high

    def bins(self) -> list[Bin]:
        """All bins from the first that has values to the last; of whole numbers those that can have any."""
        if not self.counts:
            return []
        places = range(min(self.counts), max(self.counts) + 1)
        found = [Bin(*self.edges(place), self.counts[place]) for place in places]
        return [one for one in found if not self.is_whole or one.low <= one.high]
