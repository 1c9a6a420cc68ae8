"""Kernel density in one pass and 4 MB: RACE, counters of LSH (Coleman & Shrivastava, 2020, arXiv:1912.02283).

    sketch = Sketch.empty(dimension)
    for block in dataset.blocks():
        sketch.add(block.vectors)
    density = sketch.density(vectors)  # float32 [N]

Each of R tables hashes a vector to the signs of its products with P random directions, and counts. A vector's mean count, over
N, estimates its density under the kernel (1 - angle / pi)^P without bias; its spread falls as 1 / sqrt(R). Counts add up:
workers that share nothing but the seed sketch their own rows, even while they embed them, and `merge` makes one of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from builders.curate.neighbors import unit

# 4 MB of counters. Ranks agree with those of k-NN density: Spearman 0.91 on 2,400 chats by MiniLM, 0.93 with 16 bits (64 MB)
TABLES, BITS = 128, 12
ROWS = 4096  # hashed at a time: 25 MB of products


@dataclass(frozen=True)
class Sketch:
    """Counters int64 [R, 2^P], and the directions float32 [D, R * P] that its seed draws."""

    counts: np.ndarray
    directions: np.ndarray
    seed: int

    @classmethod
    def empty(cls, dimension: int, *, tables: int = TABLES, bits: int = BITS, seed: int = 0) -> Sketch:
        """Return a sketch of nothing yet."""
        directions = np.random.default_rng(seed).standard_normal((dimension, tables * bits), np.float32)
        return cls(np.zeros((tables, 1 << bits), np.int64), directions, seed)

    @property
    def num_rows(self) -> int:
        """Vectors that were added."""
        return int(self.counts[0].sum())

    def add(self, vectors: np.ndarray) -> None:
        """Count vectors [N, D]."""
        for start in range(0, len(vectors), ROWS):
            flat = self._hash(vectors[start : start + ROWS])
            self.counts.reshape(-1)[:] += np.bincount(flat.reshape(-1), minlength=self.counts.size)

    def density(self, vectors: np.ndarray) -> np.ndarray:
        """Estimate the density at vectors [N, D]: float32 [N], from 0 to 1. One that was added has at least 1 / N."""
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(vectors), ROWS):
            hits = self.counts.reshape(-1)[self._hash(vectors[start : start + ROWS])]
            parts.append((hits.mean(axis=1) / max(1, self.num_rows)).astype(np.float32))
        return np.concatenate(parts)

    def weights(self, densities: np.ndarray) -> np.ndarray:
        """Inverse densities [N] that sum to 1, float64; equal vectors have equal, and small, ones."""
        inverse = 1 / np.maximum(densities.astype(np.float64), 1 / max(1, self.num_rows))
        weights: np.ndarray = inverse / inverse.sum()
        return weights

    def to_bytes(self) -> bytes:
        """For another machine or a later run."""
        file = io.BytesIO()
        bits = self.counts.shape[1].bit_length() - 1
        np.savez(file, counts=self.counts, shape=np.array([len(self.directions), bits, self.seed]))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Sketch:
        """Read `to_bytes`."""
        said = np.load(io.BytesIO(content), allow_pickle=False)
        dimension, bits, seed = map(int, said["shape"])
        made = cls.empty(dimension, tables=len(said["counts"]), bits=bits, seed=seed)
        made.counts[:] = said["counts"]
        return made

    def _hash(self, vectors: np.ndarray) -> np.ndarray:
        """Flat positions of the counters of vectors: int64 [N, R]."""
        tables, buckets = self.counts.shape
        bits = buckets.bit_length() - 1
        signs = (unit(vectors) @ self.directions > 0).reshape(len(vectors), tables, bits)
        places: np.ndarray = (signs @ (1 << np.arange(bits))) + np.arange(tables) * buckets
        return places


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """One sketch of what several have seen.

    Raises:
        ValueError: none, or of different shapes or seeds.
    """
    first, *others = sketches
    for other in others:
        if (other.seed, other.counts.shape, other.directions.shape) != (
            first.seed,
            first.counts.shape,
            first.directions.shape,
        ):
            raise ValueError("sketches of different seeds, tables, bits or dimensions do not add up")
    return Sketch(sum((other.counts for other in others), first.counts.copy()), first.directions, first.seed)
