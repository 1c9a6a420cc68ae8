"""Two embeddings datasets over the same rows, matched row by row and compared: all rows, and each source alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from builders.curate.agreement import Agreement, agree
from builders.curate.mapping import unit_blocks
from builders.curate.retrieve import Searcher

MIN_ROWS = 20  # of a source that is shown alone: of fewer, neighbours say nothing


def matched(a: Searcher, b: Searcher) -> tuple[np.ndarray, np.ndarray]:
    """Positions in A and in B of the rows that both have, int64 [M] each: by index of one source, else by id.

    Raises:
        ValueError: the sources differ and there are no ids, or an id stands for several rows, or no row is in both.
    """
    jobs = a.dataset.stored.job, b.dataset.stored.job
    ours, theirs = ((job.source, job.source_config, job.split, job.revision) for job in jobs)
    is_one = ours == theirs
    keys = (a.matrix.indices, b.matrix.indices) if is_one else (_ids(a, b), _ids(b, a))
    _, first, second = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    if not len(first):
        raise ValueError(f"{a.dataset.name} and {b.dataset.name} have no row in common")
    order = np.argsort(first)
    return first[order], second[order]


def _ids(one: Searcher, other: Searcher) -> np.ndarray:
    if "id" not in one.rows.column_names:
        raise ValueError(
            f"{one.dataset.name} and {other.dataset.name} are of different sources, and {one.dataset.name} has no ids"
        )
    ids = np.asarray(one.rows["id"].to_pylist(), object).astype(str)
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"{one.dataset.name}: an id stands for several rows, and the sources differ")
    return ids


def compare(a: Searcher, b: Searcher, k: int = 10, seed: int = 0) -> Iterator[Agreement]:
    """Yield the agreement of all common rows, then of each source of at least 20 rows, most first. Raises as `matched`."""
    at_a, at_b = matched(a, b)
    x, y = _units(a, at_a), _units(b, at_b)
    yield agree("all", x, y, k, seed)
    if "dataset_source" in a.rows.column_names:
        sources = a.rows["dataset_source"].take(at_a).to_pylist()
        names, number = np.unique(np.asarray(sources, object).astype(str), return_inverse=True)
        sizes = np.bincount(number)
        for place in np.argsort(-sizes, kind="stable"):
            rows = np.flatnonzero(number == place)
            if len(rows) >= MIN_ROWS and len(names) > 1:
                yield agree(str(names[place]), x[rows], y[rows], k, seed)


def _units(one: Searcher, rows: np.ndarray) -> np.ndarray:
    """Vectors of length 1. All rows in order stay mapped into memory where they are of length 1 already."""
    is_whole = len(rows) == len(one.matrix) and bool((np.diff(rows) == 1).all())
    if is_whole and np.abs(one.lengths - 1).max() < 1e-4:
        return one.matrix.vectors
    return np.concatenate([*unit_blocks(one.matrix.vectors[rows])])
