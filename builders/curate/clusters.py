"""Clusters of rows, found in some of them and given to all; names of clusters from the words of their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from builders.curate.extras import CURATE, needed

METHODS = ("kmeans", "hdbscan")
MAX_CLUSTERS = 64
NOISE = -1  # cluster of what HDBSCAN puts into none
LABEL_WORDS = 3
TEXTS_PER_CLUSTER = 200
TEXT_CHARS = 600
FAR = 1.5  # interquartile ranges above the third quartile: Tukey's fence


@dataclass(frozen=True)
class Clusters:
    """Clusters 0 to K-1, greatest first. `labels` int32 [L] of the rows they were found in; `centres` [K, d] of k-means."""

    labels: np.ndarray
    dense: np.ndarray
    centres: np.ndarray | None

    @property
    def number(self) -> int:
        """K, noise not counted."""
        return int(self.labels.max(initial=-1)) + 1


def default_number(num_rows: int) -> int:
    """Clusters of k-means when none are asked for: sqrt(N / 2), 2 to 64."""
    return int(np.clip(round((num_rows / 2) ** 0.5), 2, MAX_CLUSTERS))


def find_clusters(dense: np.ndarray, method: str, number: int, seed: int) -> Clusters:
    """Cluster dense coordinates float32 [L, d]; `number` is of k-means, HDBSCAN finds its own.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    cluster = needed("sklearn.cluster", CURATE)
    if method == "kmeans":
        number = min(number, len(dense))
        model = cluster.KMeans(number, n_init=4, random_state=seed).fit(dense)
        found = np.asarray(model.labels_)
    else:
        smallest = max(5, len(dense) // 200)
        found = cluster.HDBSCAN(min_cluster_size=smallest, copy=True).fit(dense).labels_
    sizes = np.bincount(found[found >= 0])
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(len(sizes) + 1, np.int32)
    rank[order], rank[-1] = np.arange(len(sizes)), NOISE  # label -1 finds the last entry
    order = order[sizes[order] > 0]
    centres = model.cluster_centers_[order].astype(np.float32) if method == "kmeans" else None
    return Clusters(rank[found].astype(np.int32), dense, centres)


def assign(blocks: Iterable[np.ndarray], clusters: Clusters) -> Iterator[np.ndarray]:
    """Clusters of all rows, int32 blocks: of the nearest centre, or with HDBSCAN of the nearest row that was clustered."""
    faiss = needed("faiss", CURATE)
    known = clusters.dense if clusters.centres is None else clusters.centres
    for block in blocks:
        _, near = faiss.knn(np.ascontiguousarray(block, np.float32), known, 1, metric=faiss.METRIC_L2)
        yield (clusters.labels[near[:, 0]] if clusters.centres is None else near[:, 0]).astype(np.int32)


def far_out(distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Which rows are outliers (bool [N]) by the distance to their k-th neighbour, and above which distance that is.

    The fence is Tukey's, 1.5 interquartile ranges above the third quartile; copies (distance 0) are not counted in it.
    """
    there = distances[distances > 0]
    if not len(there):
        return np.zeros(len(distances), bool), float("inf")
    first, third = np.quantile(there, [0.25, 0.75])
    fence = float(third + FAR * (third - first))
    return distances > fence, fence


def name_clusters(texts: Mapping[int, Sequence[str]], number: int) -> list[str]:
    """Name clusters 0 to `number` - 1 by the words that their texts have and others lack (class-based TF-IDF).

    A name is also what tells it from the others: two clusters never have the same. Without texts it is "cluster 3".

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    have = [cluster for cluster in range(number) if any(text.strip() for text in texts.get(cluster, ()))]
    names = [f"cluster {cluster}" for cluster in range(number)]
    if have:
        documents = ["\n".join(text[:TEXT_CHARS] for text in texts[c][:TEXTS_PER_CLUSTER]) for c in have]
        for cluster, words in zip(have, _words(documents), strict=True):
            if words:
                names[cluster] = ", ".join(words)
    seen: dict[str, int] = {}
    for cluster, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[cluster] = f"{name} ({seen[name]})"
    return names


def _words(documents: Sequence[str]) -> list[list[str]]:
    text = needed("sklearn.feature_extraction.text", CURATE)
    model = text.TfidfVectorizer(
        stop_words="english", ngram_range=(1, 2), sublinear_tf=True, max_features=50_000, token_pattern=r"(?u)\b[^\W\d_]\w+\b"
    )  # fmt: skip
    try:
        weights = model.fit_transform(documents)
    except ValueError:  # nothing but stop words
        return [[] for _ in documents]
    terms = model.get_feature_names_out()
    return [
        _distinct(terms[i] for i in np.argsort(-row.toarray()[0], kind="stable") if row[0, i] > 0) for row in weights
    ]


def _distinct(terms: Iterable[str]) -> list[str]:
    """The first words that do not repeat another: "prime", not "prime numbers" after it."""
    chosen: list[str] = []
    for term in terms:
        words = set(term.split())
        if not any(words & set(other.split()) for other in chosen):
            chosen.append(term)
        if len(chosen) == LABEL_WORDS:
            break
    return chosen
