"""The k nearest neighbours of every vector by cosine: exact while that pays, by cells beyond, or by a graph.

    found = nearest(vectors, 10)
    found.positions, found.similarities, found.method, found.recall

By cells: k-means puts every vector into one of C cells; each vector is compared, exactly, with all that lie in the `probes`
cells whose centres are nearest to it. This is an inverted file (Jégou et al., 2011, doi:10.1109/TPAMI.2010.57) turned round:
cells are taken one after the other, and matrix products compare all who ask with all who are there. What it misses lies in
other cells, so that the number of probes is found beforehand from a few hundred exact answers, and its recall is measured on
others. Memory: 8 k + 16 probes bytes a vector, and blocks; vectors may be mapped.

By a graph: faiss' HNSW (Malkov & Yashunin, 2018, arXiv:1603.09320), whose search is widened until its recall is reached. It
holds all vectors in memory, and takes more time than cells where every vector asks, as here.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from builders.curate.extras import CURATE, needed
from builders.curate.topk import TopK

logger = logging.getLogger(__name__)

BLOCK_BYTES = 128 << 20  # of vectors compared at a time
EXACT_SECONDS = 60.0  # all pairs are compared where that is expected to take no longer
FLOPS_PER_CORE = 60e9  # of a product with top-k in float32, AMD EPYC (Zen 5)
RECALL = 0.965  # aimed at on one sample, so that 0.95 holds on another
PILOT_ROWS, CHECK_ROWS = 400, 400  # asked exactly: the recall of 4,000 neighbours is known to about 0.005
MAX_PROBES = 256
TRAIN_ROWS = 40  # per cell, of k-means
LINKS, BUILD_WIDTH = 32, 64  # of HNSW: links of a vector, and candidates kept while it is put in
WIDTHS = (32, 64, 128, 256, 512)  # candidates kept in a search


@dataclass(frozen=True)
class Neighbors:
    """The k nearest of N vectors, best first: `positions` int32 [N, k], `similarities` (cosines) float32 [N, k].

    `recall` is the share of true neighbours found, of a sample (1.0 where all pairs were compared). Where probed cells hold
    fewer than k others, positions are -1 and similarities -inf.
    """

    positions: np.ndarray
    similarities: np.ndarray
    method: str
    recall: float


def nearest(vectors: np.ndarray, k: int = 10, *, method: str = "auto", seed: int = 0) -> Neighbors:
    """Find the k nearest neighbours of each of the vectors [N, D] among the others.

    `method`: exact, cells, hnsw, or auto: all pairs where that is expected to take up to a minute, else cells.

    Raises:
        ValueError: another method, or fewer than two vectors.
        MissingExtraError: faiss is not installed.
    """
    if method not in ("auto", "exact", "cells", "hnsw"):
        raise ValueError(f"the method is {method!r}: it is auto, exact, cells or hnsw")
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors: neighbours need two")
    k = min(k, len(vectors) - 1)
    if method == "exact" or (method == "auto" and exact_seconds(*vectors.shape) <= EXACT_SECONDS):
        return _exact(vectors, k)
    draw = np.random.default_rng(seed)
    pilot, check = _ask_some(vectors, k, draw)
    return _by_graph(vectors, k, pilot, check) if method == "hnsw" else _by_cells(vectors, k, draw, pilot, check)


def exact_seconds(num_rows: int, dimension: int) -> float:
    """Seconds that comparing all pairs is expected to take on this machine."""
    return 2.0 * num_rows**2 * dimension / (FLOPS_PER_CORE * (os.cpu_count() or 1))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [N, D] to length 1, float32; one of zeros stays, and is like nothing."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12))
    return scaled


def search(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (cosines float32 [Q, k], positions int64 [Q, k]) of the nearest of N vectors to queries of length 1."""
    top = TopK(len(queries), min(k, len(vectors)))
    rows = np.arange(len(queries))
    for start, block in _blocks(vectors):
        cosines, positions = _compare(queries, block, top.k)
        top.offer(rows, np.where(positions < 0, -1, positions + start + len(queries)), cosines)  # never the row itself
    return top.similarities, top.positions.astype(np.int64) - len(queries)


def _exact(vectors: np.ndarray, k: int) -> Neighbors:
    top = TopK(len(vectors), k)
    for start, block in _blocks(vectors):
        for asking, queries in _blocks(vectors):
            cosines, positions = _compare(queries, block, k + 1)  # one of them may be the row itself
            top.offer(asking + np.arange(len(queries)), positions + start, cosines)
    return Neighbors(top.positions, top.similarities, "exact", 1.0)


def _by_cells(vectors: np.ndarray, k: int, draw: np.random.Generator, pilot: Truth, check: Truth) -> Neighbors:
    num = len(vectors)
    centres = _centres(vectors, draw)
    order = _compare(unit(vectors[pilot.rows]), centres, min(MAX_PROBES, len(centres)))[1]
    cells = _compare(unit(vectors[pilot.others.reshape(-1)]), centres, 1)[1].reshape(-1, k)
    probes = _probes_for(cells, order, RECALL)
    logger.info("%d cells, %d probes of each of %d vectors", len(centres), probes, num)
    asked = np.concatenate([_compare(block, centres, probes)[1].astype(np.int32) for _, block in _blocks(vectors)])
    top = TopK(num, k)
    for rows, positions, cosines in _probe(vectors, asked, len(centres), k):
        top.offer(rows, positions, cosines)
    recall = check.recall(top.similarities[check.rows])
    return Neighbors(top.positions, top.similarities, f"cells:{len(centres)}x{probes}", recall)


def _by_graph(vectors: np.ndarray, k: int, pilot: Truth, check: Truth) -> Neighbors:
    faiss = needed("faiss", CURATE)
    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = BUILD_WIDTH
    for _, block in _blocks(vectors):
        graph.add(block)
    for width in WIDTHS:
        graph.hnsw.efSearch = width
        cosines, positions = graph.search(unit(vectors[pilot.rows]), k + 1)
        cosines[positions == pilot.rows[:, None]] = -np.inf  # the row itself
        if pilot.recall(-np.sort(-cosines, axis=1)[:, :k]) >= RECALL:
            break
    logger.info("a graph, searched with %d candidates for each of %d vectors", width, len(vectors))
    top = TopK(len(vectors), k)
    for start, queries in _blocks(vectors):
        cosines, positions = graph.search(queries, k + 1)
        top.offer(start + np.arange(len(queries)), positions, cosines)
    recall = check.recall(top.similarities[check.rows])
    return Neighbors(top.positions, top.similarities, f"hnsw:{LINKS}x{width}", recall)


def _centres(vectors: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Centres of the cells, about twice the root of N of them, by spherical k-means on a sample."""
    faiss = needed("faiss", CURATE)
    num = len(vectors)
    cells = int(np.clip(2 ** np.round(np.log2(2 * np.sqrt(num))), 4, 8192))
    rows = np.sort(draw.choice(num, min(num, TRAIN_ROWS * cells), replace=False))
    seed = int(draw.integers(1 << 30))
    means = faiss.Kmeans(vectors.shape[1], cells, niter=8, spherical=True, seed=seed, min_points_per_centroid=1)
    means.train(unit(vectors[rows]))
    return np.ascontiguousarray(means.centroids)


@dataclass(frozen=True)
class Truth:
    """Rows [S] that were asked exactly: positions of their k `others` [S, k], and the cosine of the last of these [S]."""

    rows: np.ndarray
    others: np.ndarray
    worst: np.ndarray

    def recall(self, similarities: np.ndarray) -> float:
        """Share of neighbours found, by their cosines [S, k], as near as the true k-th; of equal ones any will do."""
        return float((similarities >= self.worst[:, None] - 1e-6).mean())


def _ask_some(vectors: np.ndarray, k: int, draw: np.random.Generator) -> tuple[Truth, Truth]:
    """Exact answers of a sample: of some rows to tune by, of others to measure (of the same, where there are few)."""
    rows = draw.permutation(draw.choice(len(vectors), min(len(vectors), PILOT_ROWS + CHECK_ROWS), replace=False))
    cosines, positions = search(unit(vectors[rows]), vectors, k + 1)
    is_other = positions != rows[:, None]
    is_other &= np.cumsum(is_other, axis=1) <= k  # equal vectors may hide the row itself
    found = Truth(rows, positions[is_other].reshape(-1, k), cosines[is_other].reshape(-1, k)[:, -1])
    first, last = slice(PILOT_ROWS), slice(PILOT_ROWS if len(rows) > PILOT_ROWS else 0, None)
    pilot, check = (Truth(found.rows[part], found.others[part], found.worst[part]) for part in (first, last))
    return pilot, check


def _probes_for(cells: np.ndarray, order: np.ndarray, recall: float) -> int:
    """The least number of probes that reaches the recall: neighbours lie in `cells` [S, k], rows probe in `order` [S, P]."""
    hits = (order[:, :, None] == cells[:, None, :]).sum(axis=(0, 2)).cumsum() / cells.size
    return min(int(np.searchsorted(hits, recall)) + 1, order.shape[1])


def _probe(
    vectors: np.ndarray, asked: np.ndarray, num_cells: int, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (rows [B], positions [B, C], cosines [B, C]) of the best C of each cell that the rows probe.

    Cells go to threads, with one core each: a product of 5,000 x 500 is so short that faiss' own threads take 2 to 8 times the
    CPU, most of it waiting for each other.
    """
    faiss = needed("faiss", CURATE)
    step = max(1, BLOCK_BYTES // (4 * vectors.shape[1]))

    def compare(members: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cosines, positions = _compare(unit(vectors[rows]), unit(vectors[members]), k + 1)
        return rows, members[positions], cosines

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[tuple[np.ndarray, np.ndarray, np.ndarray]]] = deque()
        for members, asking in _cells(asked, num_cells):
            for begin in range(0, len(asking), step):
                waiting.append(pool.submit(compare, members, asking[begin : begin + step]))
                if len(waiting) > 2 * workers:  # bounded: each holds its queries
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _cells(asked: np.ndarray, num_cells: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield of each cell who lies in it, and who probes it: positions. Rows probe cells `asked` [N, P], their own first."""
    inside = np.argsort(asked[:, 0], kind="stable")
    inside_ends = np.bincount(asked[:, 0], minlength=num_cells).cumsum()
    who = (np.argsort(asked.reshape(-1), kind="stable") // asked.shape[1]).astype(np.int32)
    who_ends = np.bincount(asked.reshape(-1), minlength=num_cells).cumsum()
    for members, rows in zip(np.split(inside, inside_ends[:-1]), np.split(who, who_ends[:-1]), strict=True):
        if len(members) and len(rows):
            yield members, rows


def _compare(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosines [Q, k], positions in the block [Q, k]), best first; both sides have length 1."""
    faiss = needed("faiss", CURATE)
    cosines, positions = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
    return cosines, positions


def _blocks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Vectors of length 1 with the position of their first, BLOCK_BYTES at a time."""
    step = max(1, BLOCK_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        yield start, unit(vectors[start : start + step])
