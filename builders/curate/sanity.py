"""What is wrong with vectors shows in a few figures: lengths, anisotropy, duplicates, dimensions that say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from builders.curate.neighbors import unit
from builders.curate.vectors import VectorDataset

CONTENT_HASH = "content_hash"
ROWS = 8192
PAIRS = 20_000  # random pairs: the mean cosine is known to about 0.001
FLAT = 1e-3  # a dimension is near-constant if its spread is below this share of the median one
HIGH_COSINE = 0.6  # of random pairs: texts then differ in little but the model's common direction


@dataclass(frozen=True)
class Sanity:
    """Figures of N vectors of D dimensions.

    `anisotropy` is the mean cosine of random pairs (Ethayarajh, 2019, arXiv:1909.00512): near 0 where directions are used
    evenly; `duplicates` the share of vectors that equal an earlier one in every bit; `flat` the dimensions that hardly vary;
    `close` the mean cosine of pairs that are known to be close, None without such pairs.
    """

    norms: tuple[float, float, float]  # least, mean, greatest
    anisotropy: float
    duplicates: float
    flat: tuple[int, ...]
    not_finite: int
    close: float | None = None

    def lines(self) -> Iterator[str]:
        """The figures, and a warning for each that is bad."""
        least, mean, greatest = self.norms
        close = "" if self.close is None else f", of known-close pairs {self.close:.3f}"
        yield f"length {least:.4f} to {greatest:.4f}, mean {mean:.4f}; cosine of random pairs {self.anisotropy:.3f}{close}"
        yield f"duplicates {self.duplicates:.2%}; near-constant dimensions {len(self.flat)}"
        if self.not_finite:
            yield f"warning: {self.not_finite:,} vectors have values that are not finite"
        if self.anisotropy > HIGH_COSINE:
            yield "warning: all vectors point nearly the same way: is the pooling the model's own?"
        if self.close is not None and self.close <= self.anisotropy:
            yield "warning: pairs that should be close are no closer than random ones: is it the right model and text?"


def sanity(vectors: np.ndarray, pairs: np.ndarray | None = None, *, seed: int = 0) -> Sanity:
    """Look at vectors [N, D], in one pass; `pairs` int [P, 2] are rows known to be close, as a question and its answer."""
    num, draw = len(vectors), np.random.default_rng(seed)
    sums, squares, not_finite = np.zeros(vectors.shape[1]), np.zeros(vectors.shape[1]), 0
    norms, hashes = [], []
    for start in range(0, num, ROWS):
        block = np.asarray(vectors[start : start + ROWS], np.float64)
        not_finite += int((~np.isfinite(block).all(axis=1)).sum())
        block[~np.isfinite(block)] = 0
        norms.append(np.linalg.norm(block, axis=1))
        hashes += [hash(row.tobytes()) for row in np.asarray(vectors[start : start + ROWS])]
        sums += block.sum(axis=0)
        squares += (block**2).sum(axis=0)
    spread = np.sqrt(np.maximum(squares / num - (sums / num) ** 2, 0))
    flat = np.flatnonzero(spread <= FLAT * np.median(spread))
    lengths = np.concatenate(norms)
    random = np.sort(draw.integers(num, size=(min(PAIRS, 4 * num), 2)), axis=1)
    return Sanity(
        norms=(float(lengths.min()), float(lengths.mean()), float(lengths.max())),
        anisotropy=_mean_cosine(vectors, random[random[:, 0] != random[:, 1]]),
        duplicates=1 - len(set(hashes)) / num,
        flat=tuple(flat.tolist()),
        not_finite=not_finite,
        close=None if pairs is None or not len(pairs) else _mean_cosine(vectors, pairs),
    )


def equal_texts(dataset: VectorDataset) -> np.ndarray:
    """Rows known to be close: positions int64 [P, 2] of records of equal text (`content_hash`), each beside the next one."""
    if CONTENT_HASH not in dataset.schema.names:
        return np.empty((0, 2), np.int64)
    column = pa.chunked_array([batch[CONTENT_HASH] for batch in dataset.batches([CONTENT_HASH])], pa.string())
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    is_same = np.flatnonzero(codes[order[1:]] == codes[order[:-1]])
    return np.column_stack([order[is_same], order[is_same + 1]])


def _mean_cosine(vectors: np.ndarray, pairs: np.ndarray) -> float:
    if not len(pairs):
        return 0.0
    first, second = (unit(np.nan_to_num(vectors[rows], posinf=0, neginf=0)) for rows in pairs.T)
    return float((first * second).sum(axis=1).mean())
