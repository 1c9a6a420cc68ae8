"""The density of a stored dataset, from its vectors to the table that is stored."""

from __future__ import annotations

import numpy as np

from builders.curate.density import density
from builders.curate.density_table import DensityTable
from builders.curate.matrix import Matrix
from builders.curate.neighbors import nearest
from builders.curate.sketch import Sketch
from builders.curate.vectors import VectorDataset


def measure(
    dataset: VectorDataset, matrix: Matrix, *, k: int = 10, method: str = "auto", seed: int = 0
) -> DensityTable:
    """Compute density and weights of all records of a dataset, whose vectors are in the matrix.

    Raises:
        ValueError: an unknown method, or fewer than two vectors.
        MissingExtraError: faiss is not installed (a sketch does without).
    """
    about = {
        "n": len(matrix),
        "dim": dataset.dimension,
        "dtype": dataset.form.dtype,
        "column": dataset.column,
        "revision": dataset.revision,
        "key": dataset.key,
        "rows_covered": dataset.progress.num_rows,
        "is_complete": dataset.progress.is_complete,
    }
    if method == "sketch":
        return _sketched(matrix, about, seed)
    found = nearest(matrix.vectors, k, method=method, seed=seed)
    result = density(found)
    about |= {"k": result.k, "metric": "cosine", "method": found.method, "recall": round(found.recall, 4)}
    about |= {"floor": result.floor, "duplicates": result.num_duplicates, **result.about()}
    return DensityTable(matrix.indices, matrix.ids, result.weights, about, result.distances, found.positions)


def _sketched(matrix: Matrix, about: dict[str, object], seed: int) -> DensityTable:
    sketch = Sketch.empty(matrix.vectors.shape[1], seed=seed)
    sketch.add(matrix.vectors)
    kernel = sketch.density(matrix.vectors)
    weights = sketch.weights(kernel)
    scaled = weights * len(weights)
    figures = {name: float(getattr(np, name)(scaled)) for name in ("min", "max", "mean", "std")}
    tables, buckets = sketch.counts.shape
    about |= {"method": f"sketch:{tables}x{buckets}", "metric": "angular kernel", "seed": seed, **figures}
    return DensityTable(matrix.indices, matrix.ids, weights, about, kernel=kernel)
