"""How far two sets of vectors of the same rows agree: cosine, linear CKA, and whether they have the same neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from builders.curate.search import top_k

BLOCK_ROWS = 8192
NUM_ANCHORS = 2000  # rows whose neighbours are looked up: an overlap of 0.5 is then known to 0.007 at k=10


@dataclass(frozen=True)
class Agreement:
    """Figures of one group of rows. `cosine` [mean, 5th percentile] is None where the dimensions differ.

    `cka` is linear CKA (Kornblith et al. 2019, 1905.00414), debiased: 1 for one geometry up to rotation and scale, 0 for none.
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
        ValueError: fewer than four rows, or not the same number of both.
    """
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f"{name}: {len(a)} rows of A and {len(b)} of B: at least four of both are compared")
    k = min(k, len(a) - 1)
    cosines = np.concatenate([*cosine_blocks(a, b)]) if a.shape[1] == b.shape[1] else None
    cosine = None if cosines is None else (float(cosines.mean()), float(np.quantile(cosines, 0.05)))
    anchors = np.sort(np.random.default_rng(seed).permutation(len(a))[:NUM_ANCHORS])
    near_a, near_b = (_neighbours(vectors, anchors, k) for vectors in (a, b))
    overlap = float(np.mean([len(np.intersect1d(x, y)) / k for x, y in zip(near_a, near_b, strict=True)]))
    return Agreement(name, len(a), cosine, linear_cka(a, b), overlap, k / (len(a) - 1))


def cosine_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Cosines of rows of the same number of dimensions, in blocks of float32 [B]; 0 where a vector is 0."""
    for x, y in zip(_blocks(a), _blocks(b), strict=True):
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        yield np.einsum("nd,nd->n", x, y) / np.maximum(lengths, 1e-12)


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Debiased linear CKA of the rows of A [N, Da] and B [N, Db], N at least 4: in two passes, in blocks, with float64 sums.

    The plain one, |Yt X|^2 / (|Xt X| |Yt Y|) of centred columns, is near 1 for unrelated vectors of more dimensions than rows.
    This one is about 0 for them, and may be a little less: its three terms are the unbiased estimates of Song et al. (Feature
    selection via dependence maximization, JMLR 2012) for centred columns: row lengths take out what a row shares with itself.
    """
    n = len(a)
    mean_a, mean_b = (sum(x.sum(0, dtype=np.float64) for x in _blocks(v)) / n for v in (a, b))
    aa, bb, ab = (np.zeros(shape) for shape in ((a.shape[1],) * 2, (b.shape[1],) * 2, (a.shape[1], b.shape[1])))
    rows = np.zeros((2, n))  # squared lengths
    for number, (x, y) in enumerate(zip(_blocks(a), _blocks(b), strict=True)):
        x, y = x - mean_a, y - mean_b
        aa, bb, ab = aa + x.T @ x, bb + y.T @ y, ab + x.T @ y
        at = slice(number * BLOCK_ROWS, number * BLOCK_ROWS + len(x))
        rows[:, at] = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)

    def estimate(products: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
        return float((products**2).sum() - n / (n - 2) * u @ v + u.sum() * v.sum() / ((n - 1) * (n - 2)))

    scale = estimate(aa, rows[0], rows[0]) * estimate(bb, rows[1], rows[1])
    return estimate(ab, rows[0], rows[1]) / scale**0.5 if scale > 0 else 0.0


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
