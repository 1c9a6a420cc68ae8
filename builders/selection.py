"""Which rows of the source a job takes: all, the first N, or N drawn uniformly from each of its sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from builders.job import Job
from builders.options import ConfigError
from builders.source import Source


@dataclass(frozen=True)
class Selection:
    """Rows taken, in source order. `chosen` (int64 [N], sorted) is None where the first `num_rows` rows are taken."""

    num_rows: int
    chosen: np.ndarray | None = None

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Return the source indices (int64) of positions `[start, stop)` of the selection."""
        return np.arange(start, stop) if self.chosen is None else self.chosen[start:stop]


def select(job: Job, source: Source) -> Selection:
    """Find the rows of a job. Sampling reads one column of the source; everything else reads nothing."""
    if job.sample_per_source is None:
        return Selection(min(source.num_rows, job.limit or source.num_rows))
    if job.source_column not in source.columns:
        raise ConfigError(
            f"--sample-per-source needs column {job.source_column!r}: {source.name} has {', '.join(source.columns)}. "
            "Name it with --source-column"
        )
    chosen = _sample(source, job.source_column, job.sample_per_source, job.seed)
    return Selection(len(chosen), chosen)


def _sample(source: Source, column: str, per_source: int, seed: int) -> np.ndarray:
    """Keep the `per_source` rows of smallest hash for each value of `column`: a uniform draw that needs no second pass."""
    groups: dict[str, list[int]] = {}
    for row in source.read(np.arange(source.num_rows), [column]):
        kept = groups.setdefault(str(row.data.get(column)), [])
        kept.append(row.index)
        if len(kept) >= 8 * per_source + 1024:  # bounds memory; the smallest of a part are the smallest of the whole
            kept[:] = _smallest(np.array(kept), per_source, seed).tolist()
    parts = [_smallest(np.array(kept), per_source, seed) for kept in groups.values()]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _smallest(indices: np.ndarray, count: int, seed: int) -> np.ndarray:
    return indices[np.argsort(hash_indices(indices, seed), kind="stable")[:count]]


def hash_indices(indices: np.ndarray, seed: int) -> np.ndarray:
    """Return one uniform uint64 per index that depends on (seed, index) alone: SplitMix64 (Steele et al. 2014)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        z = indices.astype(np.uint64) * golden + np.uint64(seed * 0xD1342543DE82EF95 % 2**64) + golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
