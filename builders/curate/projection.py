"""Vectors as points in two or three dimensions: UMAP of some, and all others beside their nearest of these."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from builders.curate.extras import CURATE, VIZ, needed

METHODS = ("umap", "pca")
DENSE_DIMS = 50  # principal components that UMAP and clusters work on
LANDMARKS = 20_000  # rows that UMAP lays out; others are placed beside them
MIN_ROWS = 16  # fewer have no 15 neighbours: their map is that of their principal components
NUM_NEIGHBORS = 15  # of UMAP, as is its min_dist: the defaults of umap-learn 0.5
MIN_DIST = 0.1
PLACED_BY = 3  # landmarks that place a row
# power of nearness: in many dimensions all are about as far, and a plain mean would draw all rows to one point
NEARNESS = 8
PLACE_ROWS = 8192


@dataclass(frozen=True)
class Landmarks:
    """Some rows: their positions (int64 [L], sorted), dense coordinates [L, d], and where the map has them [L, 2 or 3]."""

    positions: np.ndarray
    dense: np.ndarray
    points: np.ndarray


def choose_rows(num_rows: int, number: int, seed: int) -> np.ndarray:
    """Positions of at most `number` rows, uniform and sorted, int64."""
    if num_rows <= number:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, number, replace=False))


def lay_out(dense: np.ndarray, dims: int, method: str, seed: int) -> np.ndarray:
    """Points float32 [L, dims] of dense coordinates [L, d], whose first columns are their principal components.

    UMAP begins at the principal components, so that runs of one seed give one map, and what is far stays far.

    Raises:
        MissingExtraError: umap-learn is not installed.
    """
    start = np.zeros((len(dense), dims), np.float32)
    start[:, : dense.shape[1]] = dense[:, :dims]
    if method == "pca" or len(dense) < MIN_ROWS:
        return start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optional parts, which are not used
        umap = needed("umap", f"{VIZ}, or --method pca")
    init = 10 * start / max(float(np.abs(start).max()), 1e-12)
    init += np.random.default_rng(seed).normal(0, 1e-4, init.shape)  # equal vectors must not begin in one point
    near, distances = exact_neighbors(dense, NUM_NEIGHBORS)
    model = umap.UMAP(
        n_components=dims,
        n_neighbors=NUM_NEIGHBORS,
        min_dist=MIN_DIST,
        init=init.astype(np.float32),
        random_state=seed,
        n_jobs=1,  # what a seed means to umap-learn
        precomputed_knn=(near, distances, None),
    )
    with warnings.catch_warnings():
        # that neighbours found beforehand cannot place new rows: `place` does
        warnings.simplefilter("ignore", UserWarning)
        points: np.ndarray = model.fit_transform(dense)
    return points.astype(np.float32)


def exact_neighbors(dense: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions int64 [L, k] and Euclidean distances float32 [L, k] of the nearest rows, a row itself first."""
    faiss = needed("faiss", CURATE)
    squared, near = faiss.knn(dense, dense, k, metric=faiss.METRIC_L2)
    return near, np.sqrt(np.maximum(squared, 0))


def place(blocks: Iterable[np.ndarray], landmarks: Landmarks) -> Iterator[np.ndarray]:
    """Points of all rows, block by block, float32: a landmark's own, else a mean of its nearest landmarks'."""
    faiss = needed("faiss", CURATE)
    start = 0
    for block in blocks:
        squared, near = faiss.knn(
            np.ascontiguousarray(block, np.float32), landmarks.dense, min(PLACED_BY, len(landmarks.dense)),
            metric=faiss.METRIC_L2,
        )  # fmt: skip
        distances = np.sqrt(np.maximum(squared, 0)) + 1e-6
        weights = (distances[:, :1] / distances) ** NEARNESS
        points = np.einsum("nk,nkd->nd", weights / weights.sum(1, keepdims=True), landmarks.points[near])
        low, high = np.searchsorted(landmarks.positions, [start, start + len(block)])
        points[landmarks.positions[low:high] - start] = landmarks.points[low:high]
        yield points.astype(np.float32)
        start += len(block)
