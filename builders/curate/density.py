"""How densely each vector lies among the others, and the weights that even this out.

`knn_distance` of a row is the mean of 1 - cosine to its k nearest neighbours (Loftsgaarden & Quesenberry, 1965,
doi:10.1214/aoms/1177700079, take the distance to the k-th; the mean is less noisy). Density is its inverse, and weight is
1 / density, so that what is rare is drawn more often; weights sum to 1, as in inverse propensity sampling (Sachdeva et al.,
2024, arXiv:2402.09668).

Exact duplicates have distance 0, thus infinite density, and would never be drawn. Distances are therefore taken to be at least
the 1 % quantile of those that are not 0: a quantile, not the least of them, as that one is rounding. A duplicate then weighs
like the densest hundredth of the others, neither nothing nor more than a rare row. At the other end a cosine distance is at
most 2, so that no weight is over 2 / (sum of distances).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from builders.curate.neighbors import Neighbors

FLOOR_QUANTILE = 0.01
ZERO = 1e-6  # cosine distances of equal float32 vectors come out below


@dataclass(frozen=True)
class Density:
    """Of N rows: `distances` float32 [N], `weights` float64 [N] that sum to 1, and `floor`, the least distance that counts."""

    distances: np.ndarray
    weights: np.ndarray
    floor: float
    k: int

    @property
    def num_duplicates(self) -> int:
        """Rows whose k nearest neighbours all equal them."""
        return int((self.distances <= ZERO).sum())

    def about(self) -> Mapping[str, float]:
        """Figures of the weights times N, of which 1 is the mean."""
        scaled = self.weights * len(self.weights)
        figures = {"min": scaled.min(), "max": scaled.max(), "mean": scaled.mean(), "std": scaled.std()}
        return {name: float(value) for name, value in figures.items()}


def density(found: Neighbors) -> Density:
    """Distances and weights of rows from their neighbours."""
    there = found.positions >= 0
    similarities = np.where(there, found.similarities, 0)
    means = np.divide(similarities.sum(axis=1), there.sum(axis=1), out=np.zeros(len(there)), where=there.any(axis=1))
    distances = np.clip(1 - means, 0, 2).astype(np.float32)
    weights, floor = inverse_weights(distances)
    return Density(distances, weights, floor, found.positions.shape[1])


def inverse_weights(distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights float64 [N] that sum to 1, proportional to distances [N] (1 / density), and the floor of distances."""
    positive = distances[distances > ZERO]
    floor = float(np.quantile(positive, FLOOR_QUANTILE)) if len(positive) else 1.0
    raised = np.maximum(distances.astype(np.float64), floor)
    return raised / raised.sum(), floor
