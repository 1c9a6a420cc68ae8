"""A subset of a stored dataset: chosen, measured beside a random one of equal size, and written as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.curate import sample
from builders.curate.coverage import Coverage, coverage
from builders.curate.duplicates import without_duplicates
from builders.curate.matrix import Matrix
from builders.curate.neighbors import nearest
from builders.curate.vectors import VectorDataset
from builders.curate.weights import load_weights

WAYS = ("density", "uniform", "quota", "coverage")
SUFFIXES = (".txt", ".npy", ".parquet")


@dataclass(frozen=True)
class Subset:
    """Positions among the rows, int64 sorted, with figures of it and of a random subset of equal size."""

    positions: np.ndarray
    num_left: int  # rows that were left to take from
    figures: Coverage
    random: Coverage


def choose(
    dataset: VectorDataset,
    matrix: Matrix,
    *,
    budget: int | None,
    by: str,
    threshold: float | None = None,
    source_column: str = "dataset_source",
    k: int = 10,
    seed: int = 0,
) -> Subset:
    """Choose rows of a dataset: first without semantic duplicates (a cosine `threshold`), then `budget` of them.

    Weights are the stored ones where they are of these very rows, else they are computed.

    Raises:
        ValueError: the budget is more than what is left, an unknown way, or no such column.
        MissingExtraError: faiss is not installed.
    """
    left = np.arange(len(matrix))
    if threshold is not None:
        left = without_duplicates(nearest(matrix.vectors, k, seed=seed), threshold)
    taken = left
    if budget is not None:
        taken = left[_take(dataset, matrix, left, budget, by, source_column, seed)]
    random = sample.uniform(len(matrix), len(taken), seed=seed + 1)
    figures = [coverage(matrix.vectors, rows, seed=seed) for rows in (taken, random)]
    return Subset(taken, len(left), figures[0], figures[1])


def write_subset(dataset: VectorDataset, matrix: Matrix, positions: np.ndarray, path: Path) -> None:
    """Write the subset: .txt ids (indices where there are none), .npy indices, or .parquet all columns of the records.

    Raises:
        ValueError: another suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, matrix.indices[positions])
    elif path.suffix == ".txt":
        names = matrix.indices[positions].tolist() if matrix.ids is None else matrix.ids.take(positions).to_pylist()
        path.write_text("".join(f"{name}\n" for name in names))
    elif path.suffix == ".parquet":
        _write_records(dataset, positions, path)
    else:
        raise ValueError(f"{path}: a subset is written as {', '.join(SUFFIXES)}")


def _take(
    dataset: VectorDataset, matrix: Matrix, left: np.ndarray, budget: int, by: str, source_column: str, seed: int
) -> np.ndarray:
    """Positions among those that are left."""
    if by == "uniform":
        return sample.uniform(len(left), budget, seed=seed)
    if by == "coverage":
        return sample.k_center(matrix.vectors[left], budget, seed=seed)
    if by not in WAYS:
        raise ValueError(f"a subset is chosen by {', '.join(WAYS)}; not by {by!r}")
    weights = _weights(dataset, matrix)[left]
    if by == "density":
        return sample.by_weight(weights, budget, seed=seed)
    sources = pa.concat_arrays([batch[source_column] for batch in dataset.batches([source_column])])
    return sample.by_quota(sources.take(pa.array(left)).to_pylist(), weights, budget, seed=seed)


def _weights(dataset: VectorDataset, matrix: Matrix) -> np.ndarray:
    from builders.curate.density_table import derived_name
    from builders.curate.measure import measure

    try:
        stored = load_weights(dataset.name, config_name=derived_name("density", dataset), fallbacks=())
        about: Mapping[str, object] = stored.about
        if about.get("key") == dataset.key and len(stored.weights) == len(matrix):
            return stored.weights
    except ValueError:
        pass  # none stored
    return measure(dataset, matrix).weights


def _write_records(dataset: VectorDataset, positions: np.ndarray, path: Path) -> None:
    part, start = path.with_name(f".{path.name}"), 0
    with pq.ParquetWriter(part, dataset.schema, compression="zstd", use_dictionary=False) as writer:
        for batch in dataset.batches(dataset.schema.names):
            first, last = np.searchsorted(positions, [start, start + len(batch)])
            chosen = batch.take(pa.array(positions[first:last] - start))
            if len(chosen):
                writer.write_batch(pa.RecordBatch.from_arrays(chosen.columns, schema=dataset.schema))
            start += len(batch)
    part.rename(path)
