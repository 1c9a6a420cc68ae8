"""Units: fixed ranges of rows, the atom of work, resume and upload. Their paths are pure functions of their range."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

UNITS_PER_FOLDER = 1000  # the Hub takes at most 10,000 entries per folder
CHUNK_NAME = re.compile(r"(\d{12})-(\d{12})\.parquet$")


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows `[start, stop)` of the selected source; `number` counts units from 0."""

    number: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Rows in this unit."""
        return self.stop - self.start

    def path(self, folder: str, split: str) -> str:
        """Path of a file of this unit below `folder`: the same unit has the same path, in every run, on every machine."""
        bucket = self.number // UNITS_PER_FOLDER
        return f"{folder}/{split}/{bucket:04d}/{self.start:012d}-{self.stop:012d}.parquet"


class Units(Sequence[Unit]):
    """All units of `num_rows` rows, by arithmetic: 100 M rows cost no memory."""

    def __init__(self, num_rows: int, chunk_rows: int) -> None:
        self.num_rows = num_rows
        self.chunk_rows = chunk_rows

    def __len__(self) -> int:
        return -(-self.num_rows // self.chunk_rows)

    def __getitem__(self, number: int) -> Unit:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(f"unit {number} of {len(self)}")
        start = number * self.chunk_rows
        return Unit(number, start, min(start + self.chunk_rows, self.num_rows))

    def __iter__(self) -> Iterator[Unit]:
        return (self[number] for number in range(len(self)))

    def at(self, path: str) -> Unit | None:
        """Return the unit whose file this path could be; None for a file that is no chunk of this plan."""
        match = CHUNK_NAME.search(path)
        if match is None:
            return None
        start, stop = int(match[1]), int(match[2])
        number = start // self.chunk_rows
        unit = self[number] if number < len(self) else None
        return unit if unit is not None and (unit.start, unit.stop) == (start, stop) else None
