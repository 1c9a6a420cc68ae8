"""Without semantic duplicates: of rows as close as a threshold, one stays (after SemDeDup, arXiv:2303.09540)."""

from __future__ import annotations

import numpy as np

from builders.curate.neighbors import Neighbors


def without_duplicates(found: Neighbors, threshold: float) -> np.ndarray:
    """Return the positions of the rows that stay, int64, sorted.

    As in SemDeDup, a row goes if one that stays is at least as similar to it as the threshold (a cosine); here the first row
    of each such pair stays, and pairs are sought among the k nearest neighbours instead of within clusters. Only of groups
    with more than k members may several stay. Raise k for data with many copies.
    """
    near = found.similarities >= threshold
    num = len(near)
    rows = np.repeat(np.arange(num), near.sum(axis=1))
    others = found.positions[near].astype(np.int64)
    later, earlier = np.maximum(rows, others), np.minimum(rows, others)  # nearness may be known from one side alone
    order = np.lexsort((earlier, later))
    later, earlier = later[order].tolist(), earlier[order].tolist()
    stays = [True] * num
    for row, other in zip(later, earlier, strict=True):  # in the order of rows: what is earlier is settled
        if stays[other]:
            stays[row] = False
    return np.flatnonzero(stays)
