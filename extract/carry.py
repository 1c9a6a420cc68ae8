"""Carrying over: the stage of an update that takes out of the stream what an older generation of the output has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from builders.job import Job
from builders.schema import embedding_names
from extract.stages import Texts
from extract.vectors import VectorWork

WINDOW_ROWS = 8192  # looked up together: each row group of the older generation is read once a window at most
WINDOW_CHARS = 2**25  # and at most so many characters of text and bytes of images, which wait in memory


class OldRecords(Protocol):
    """Records of the older generation by content hash; hub/carried.py has them."""

    def find(self, hashes: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Yield (which of `hashes`: int64 [K], their K records)."""


def carried_columns(job: Job) -> list[str]:
    """Columns of an old record that a row of the same content takes over."""
    return ["num_tokens", "truncated", *embedding_names(job)]


def carry(rendered: Iterable[Texts], old: OldRecords | None, work: VectorWork) -> Iterator[Texts]:
    """Give the records that are carried to `work`, and yield the rows that are to be computed."""
    if old is None:
        yield from rendered
        return
    for window in _windows(rendered):
        positions = np.array([position for position, _ in window])
        is_carried = np.zeros(len(window), bool)
        for which, records in old.find([work.hashes[position] for position, _ in window]):
            work.carried.append((positions[which], records))
            is_carried[which] = True
        yield from (row for row, is_known in zip(window, is_carried, strict=True) if not is_known)


def _windows(rendered: Iterable[Texts]) -> Iterator[list[Texts]]:
    window: list[Texts] = []
    chars = 0
    for row in rendered:
        window.append(row)
        chars += sum(len(text.text) + sum(map(len, text.images)) for text in row[1])
        if len(window) >= WINDOW_ROWS or chars >= WINDOW_CHARS:
            yield window
            window, chars = [], 0
    if window:
        yield window
