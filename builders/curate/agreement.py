"""How far two sets of vectors of the same rows agree: cosine, linear CKA, and whether they have the same neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from builders.curate.search import top_k

BLOCK_ROWS = 8192
NUM_ANCHORS = 2000  # rows whose neighbours are looked up: an overlap of 0.5 is then known to 0.007 at k=10


@dataclass(frozen=True)
class Agreement:
    """Figures of one group of rows. `cosine` [mean, 5th percentile] is None where the dimensions differ.

    `cka` is linear, centred CKA (Kornblith et al. 2019, 1905.00414): 1 for the same geometry up to rotation and scale.
    `overlap` is the mean share of a row's k nearest neighbours under A that are among its k nearest under B;
    `chance` is what unrelated vectors would give.
    """

    name: str
    num_rows: int
    cosine: tuple[float, float] | None
    cka: float
    overlap: float
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)


def agree(name: str, a: np.ndarray, b: np.ndarray, k: int = 10, seed: int = 0) -> Agreement:
    """Compare vectors A [N, Da] and B [N, Db], row by row the same; of length 1, as neighbours go by inner product.

    Neighbours are looked for among all N rows, for at most NUM_ANCHORS of them, drawn by `seed`.

    Raises:
        ValueError: fewer than three rows, or not the same number of both.
    """
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"{name}: {len(a)} rows of A and {len(b)} of B: at least three of both are compared")
    k = min(k, len(a) - 1)
    cosines = np.concatenate([*cosine_blocks(a, b)]) if a.shape[1] == b.shape[1] else None
    cosine = None if cosines is None else (float(cosines.mean()), float(np.quantile(cosines, 0.05)))
    anchors = np.sort(np.random.default_rng(seed).permutation(len(a))[:NUM_ANCHORS])
    near_a, near_b = (_neighbours(vectors, anchors, k) for vectors in (a, b))
    overlap = float(np.mean([len(np.intersect1d(x, y)) / k for x, y in zip(near_a, near_b, strict=True)]))
    return Agreement(
        name, len(a), cosine, linear_cka(zip(_blocks(a), _blocks(b), strict=True)), overlap, k / (len(a) - 1)
    )


def cosine_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Cosines of rows of the same number of dimensions, in blocks of float32 [B]; 0 where a vector is 0."""
    for x, y in zip(_blocks(a), _blocks(b), strict=True):
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        yield np.einsum("nd,nd->n", x, y) / np.maximum(lengths, 1e-12)


def linear_cka(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Linear CKA of blocks of both, in one pass: |Yt X|^2 / (|Xt X| |Yt Y|) of centred columns, Frobenius norms.

    Sums are in float64 about the mean of the first block, so that little is lost where the mean is far from 0.
    """
    sums: list[np.ndarray] = []
    num_rows, shift = 0, (np.zeros(0), np.zeros(0))
    for x, y in pairs:
        if not num_rows:
            shift = (x.mean(0, dtype=np.float64), y.mean(0, dtype=np.float64))
        x, y = x - shift[0], y - shift[1]
        num_rows += len(x)
        parts = [x.T @ x, y.T @ y, x.T @ y, x.sum(0), y.sum(0)]
        sums = [old + new for old, new in zip(sums, parts, strict=True)] if sums else parts
    xx, yy, xy, x_sum, y_sum = sums
    outer = [np.outer(u, v) / num_rows for u, v in ((x_sum, x_sum), (y_sum, y_sum), (x_sum, y_sum))]
    norms = [float(np.linalg.norm(m - o)) for m, o in zip((xx, yy, xy), outer, strict=True)]
    return norms[2] ** 2 / (norms[0] * norms[1]) if norms[0] * norms[1] > 0 else 0.0


def _neighbours(vectors: np.ndarray, anchors: np.ndarray, k: int) -> np.ndarray:
    """Positions [A, k] of the nearest rows of each anchor but itself."""
    found = np.concatenate([top_k(vectors, vectors[part], k + 1)[0] for part in _parts(anchors)])
    is_self = found == anchors[:, None]
    is_self[~is_self.any(1), -1] = True  # of many equal vectors it may not be among the first
    return found[~is_self].reshape(len(anchors), k)


def _parts(anchors: np.ndarray) -> list[np.ndarray]:
    return [anchors[start : start + 256] for start in range(0, len(anchors), 256)]


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), BLOCK_ROWS):
        yield np.asarray(vectors[start : start + BLOCK_ROWS], np.float32)
