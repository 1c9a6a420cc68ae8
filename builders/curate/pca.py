"""Principal components of vectors that need not fit into memory: one pass for sums, one for each use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PCA:
    """`mean` [D], `components` [D, D] in rows, greatest variance first, and the `variance` [D] along each; float64."""

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray

    @classmethod
    def fit(cls, blocks: Iterable[np.ndarray]) -> PCA:
        """Fit to all rows of blocks [B, D], exactly: sums of products in float64, which take D x D numbers.

        A component's sign is that of its greatest entry, so that two runs give one picture.

        Raises:
            ValueError: there are fewer than two rows.
        """
        num_rows, total, products = 0, np.zeros(0), np.zeros((0, 0))
        for block in blocks:
            values = np.asarray(block, np.float64)
            if num_rows == 0:
                total, products = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
            num_rows += len(values)
            total += values.sum(0)
            products += values.T @ values
        if num_rows < 2:
            raise ValueError(f"{num_rows} rows have no principal components: two are the least")
        mean = total / num_rows
        variance, vectors = np.linalg.eigh(products / num_rows - np.outer(mean, mean))
        components, variance = vectors.T[::-1], np.maximum(variance[::-1], 0)
        greatest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
        return cls(mean, components * np.where(greatest < 0, -1, 1), variance)

    @property
    def explained(self) -> np.ndarray:
        """Share of the whole variance along each component [D]; they sum to 1."""
        total = self.variance.sum()
        shares: np.ndarray = self.variance / total if total > 0 else np.zeros_like(self.variance)
        return shares

    def dims_for(self, share: float) -> int:
        """Fewest components that hold this share of the variance."""
        return min(len(self.variance), int(np.searchsorted(np.cumsum(self.explained), share - 1e-12)) + 1)

    def transform(self, vectors: np.ndarray, dims: int) -> np.ndarray:
        """Coordinates along the first components: float32 [N, dims]."""
        centred = np.asarray(vectors, np.float32) - self.mean.astype(np.float32)
        coordinates: np.ndarray = centred @ self.components[:dims].T.astype(np.float32)
        return coordinates
