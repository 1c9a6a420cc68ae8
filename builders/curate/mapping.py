"""A map of a dataset: principal components, points in two and three dimensions, clusters with names, neighbours, outliers.

Vectors are taken as of length 1 and read in blocks; what is in memory of N rows are points, clusters and neighbours, about
150 bytes a row. UMAP and clusters are found in at most 20,000 rows and given to all others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from builders.curate.agreement import agree
from builders.curate.clusters import assign, default_number, far_out, find_clusters, name_clusters
from builders.curate.neighbors import Neighbors, nearest
from builders.curate.pca import PCA
from builders.curate.projection import DENSE_DIMS, LANDMARKS, Landmarks, choose_rows, exact_neighbors, lay_out, place

logger = logging.getLogger(__name__)

BLOCK_ROWS = 8192
QUALITY_ROWS = 4000  # of which neighbours are compared with those of the components, and of the map
NAMED_TEXTS = 100  # of each cluster, read for its name
NEAR = 10  # neighbours that figures of quality count

TextsAt = Callable[[np.ndarray], Sequence[str]]  # texts of rows by their positions


@dataclass(frozen=True)
class MapOptions:
    """How a map is made. `number` is of the clusters of k-means (None: sqrt(N / 2), at most 64)."""

    method: str = "umap"
    clusters: str = "kmeans"
    number: int | None = None
    neighbors: int = 10
    seed: int = 0
    landmarks: int = LANDMARKS


@dataclass(frozen=True)
class DataMap:
    """A map of N rows. `kept` says which share of a row's 10 nearest stay among its 10 nearest, by what was made of them."""

    flat: np.ndarray  # float32 [N, 2]
    deep: np.ndarray  # float32 [N, 3]
    cluster: np.ndarray  # int32 [N]
    names: list[str]
    neighbors: Neighbors
    distance: np.ndarray  # float32 [N]: cosine distance to the k-th neighbour
    is_outlier: np.ndarray  # bool [N]
    fence: float
    pca: PCA
    kept: dict[str, float]
    method: str

    @property
    def cluster_names(self) -> list[str]:
        """Names of the clusters by number + 1: the first is that of rows in none."""
        return ["none", *self.names]


def make_map(vectors: np.ndarray, options: MapOptions, texts_at: TextsAt) -> DataMap:
    """Map the vectors [N, D], which may be mapped into memory.

    Raises:
        ValueError: there are fewer than three rows.
        ImportError: a package is missing; the text says how to get it.
    """
    if len(vectors) < 3:
        raise ValueError(f"{len(vectors)} rows make no map: three are the least")
    pca = PCA.fit(unit_blocks(vectors))
    dims = min(DENSE_DIMS, vectors.shape[1], len(vectors))
    chosen = choose_rows(len(vectors), options.landmarks, options.seed)
    dense = pca.transform(unit_rows(vectors, chosen), dims)
    logger.info("%d rows; layout of %d of them by %s", len(vectors), len(chosen), options.method)
    maps = {size: lay_out(dense, size, options.method, options.seed) for size in (2, 3)}
    flat, deep = (_everywhere(vectors, pca, dims, Landmarks(chosen, dense, maps[size])) for size in (2, 3))
    number = options.number or default_number(len(vectors))
    found = find_clusters(dense, options.clusters, number, options.seed)
    cluster = by_size(np.concatenate([*assign(dense_blocks(vectors, pca, dims), found)]), found.number)
    logger.info("%d clusters; neighbours of %d rows", found.number, len(vectors))
    near = nearest(vectors, min(options.neighbors, len(vectors) - 1), seed=options.seed)
    distance = kth_distance(near)
    is_outlier, fence = far_out(distance)
    names = name_clusters(_some_texts(cluster, found.number, texts_at, options.seed), found.number)
    kept = quality(vectors, pca, {"map 2-D": flat, "map 3-D": deep}, options.seed)
    return DataMap(flat, deep, cluster, names, near, distance, is_outlier, fence, pca, kept, options.method)


def kth_distance(near: Neighbors) -> np.ndarray:
    """Cosine distance to the k-th neighbour, float32 [N]; to the last one that was found, where there are fewer."""
    last = np.maximum((near.positions >= 0).sum(1) - 1, 0)
    cosines = np.take_along_axis(near.similarities, last[:, None], 1)[:, 0]
    distance: np.ndarray = np.clip(1 - np.where(np.isfinite(cosines), cosines, -1), 0, 2).astype(np.float32)
    # equal vectors differ in the last bits of their products
    return np.where(distance < 1e-6, np.float32(0), distance)


def by_size(cluster: np.ndarray, number: int) -> np.ndarray:
    """Number clusters anew, the greatest of all rows first; -1 stays."""
    order = np.argsort(-np.bincount(cluster[cluster >= 0], minlength=number), kind="stable")
    rank = np.empty(number + 1, np.int32)
    rank[order], rank[-1] = np.arange(number), -1
    renumbered: np.ndarray = rank[cluster]
    return renumbered


def quality(vectors: np.ndarray, pca: PCA, maps: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """Share of the 10 nearest of a sample that stay the 10 nearest of it: by the first components, and on each map."""
    rows = choose_rows(len(vectors), QUALITY_ROWS, seed)
    whole = unit_rows(vectors, rows)
    k = min(NEAR, len(rows) - 1)
    kept = {}
    for dims in [d for d in (2, 8, 32, 64, 128, 256) if d < vectors.shape[1]]:
        reduced = pca.transform(whole, dims) + pca.components[:dims] @ pca.mean  # not centred: cosines stay cosines
        scaled = (reduced / np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        kept[f"{dims} components"] = agree("", whole, scaled, k, seed).overlap
    true = exact_neighbors(whole, k + 1)[0]
    for name, points in maps.items():
        there = exact_neighbors(np.ascontiguousarray(points[rows]), k + 1)[0]
        same = [
            len(np.intersect1d(a[a != i], b[b != i])) / k for i, (a, b) in enumerate(zip(true, there, strict=True))
        ]
        kept[name] = float(np.minimum(same, 1).mean())
    return kept


def unit_rows(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows with length 1, float32."""
    chosen = np.asarray(vectors[rows], np.float32)
    scaled: np.ndarray = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    return scaled


def unit_blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """All rows with length 1, a block at a time."""
    for start in range(0, len(vectors), BLOCK_ROWS):
        yield unit_rows(vectors, np.arange(start, min(start + BLOCK_ROWS, len(vectors))))


def dense_blocks(vectors: np.ndarray, pca: PCA, dims: int) -> Iterator[np.ndarray]:
    """First principal components of all rows, float32 blocks [B, dims]."""
    return (pca.transform(block, dims) for block in unit_blocks(vectors))


def _everywhere(vectors: np.ndarray, pca: PCA, dims: int, landmarks: Landmarks) -> np.ndarray:
    if len(landmarks.positions) == len(vectors):
        return landmarks.points
    return np.concatenate([*place(dense_blocks(vectors, pca, dims), landmarks)])


def _some_texts(cluster: np.ndarray, number: int, texts_at: TextsAt, seed: int) -> dict[int, list[str]]:
    draw = np.random.default_rng(seed)
    chosen = [draw.permutation(np.flatnonzero(cluster == c))[:NAMED_TEXTS] for c in range(number)]
    rows = np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))
    texts: dict[int, list[str]] = {}
    for row, text in zip(rows, texts_at(rows), strict=True):
        texts.setdefault(int(cluster[row]), []).append(text)
    return texts
