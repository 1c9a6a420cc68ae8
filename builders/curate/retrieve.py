"""Search in an embeddings dataset: the rows nearest to a text, by cosine, exact, with filters on the columns.

The query's vector comes from the model that made the dataset, with the dataset's own prompt: extract/search.py gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from builders.curate.matrix import Matrix
from builders.curate.progress import Progress
from builders.curate.rows import open_lengths, open_rows
from builders.curate.search import Filter, kept_rows, top_k
from builders.curate.texts import Texts
from builders.curate.vectors import VectorDataset, cache_folder


class QueryEmbedder(Protocol):
    """Makes a query's vector as the dataset's own were made."""

    def embed_text(self, text: str) -> np.ndarray:
        """Vector float32 [D] of a query."""

    def embed_multimodal(self, text: str, image: Any) -> np.ndarray:
        """The same of a text, which may be empty, and an image."""


@dataclass(frozen=True)
class Hit:
    """A record that was found: its row in the source, its cosine with the query, and all its columns, with its text."""

    index: int
    score: float
    record: dict[str, Any]


@dataclass(frozen=True)
class Searcher:
    """A dataset that can be asked. Vectors and columns are mapped into memory: opening it again takes milliseconds."""

    dataset: VectorDataset
    matrix: Matrix
    rows: pa.Table
    lengths: np.ndarray
    texts: Texts
    embedder: QueryEmbedder | None = None

    @classmethod
    def open(
        cls, dataset: VectorDataset, embedder: QueryEmbedder | None = None, cache: Path | None = None
    ) -> Searcher:
        """Read the dataset into the cache, once per content.

        Raises:
            OSError: the disk is full, or the dataset does not answer.
        """
        matrix = dataset.matrix(cache)
        rows = open_rows(dataset, matrix)
        texts = Texts(dataset.stored.job, dataset.column, rows, cache_folder(cache))
        return cls(dataset, matrix, rows, open_lengths(matrix), texts, embedder)

    @property
    def progress(self) -> Progress:
        """How complete the dataset is."""
        return self.dataset.progress

    def retrieve(self, query: str, k: int = 5, where: Sequence[str] = (), image: Any = None) -> list[Hit]:
        """Return the `k` records nearest to a text, best first; `where` has conditions such as "dataset_source=math".

        With an `image` (a path, bytes, an image of Pillow, or a list of these), in a dataset that was made of images, the text
        may be empty.

        Raises:
            ValueError: an empty query, an image where there can be none, or a condition that does not fit the columns.
        """
        if self.embedder is None:
            raise ValueError("this dataset was opened without a model: give a vector to `nearest`")
        if image is not None:
            return self.nearest(self.embedder.embed_multimodal(query, image), k, where)
        if not query.strip():
            raise ValueError("the query is empty")
        return self.nearest(self.embedder.embed_text(query), k, where)

    def nearest(self, vector: np.ndarray, k: int = 5, where: Sequence[str] = ()) -> list[Hit]:
        """The same for a vector [D] of any length. ValueError: it has other dimensions."""
        if np.shape(vector) != (self.dataset.dimension,):
            raise ValueError(
                f"the query has {np.size(vector)} dimensions and {self.dataset.name} {self.dataset.dimension}"
            )
        keep = kept_rows(self.rows, [Filter.parse(text) for text in where])
        unit = np.asarray(vector, np.float32) / max(float(np.linalg.norm(vector)), 1e-12)
        positions, scores = top_k(self.matrix.vectors, unit, k, keep, self.lengths)
        return self._hits(positions[0], scores[0])

    def _hits(self, positions: np.ndarray, scores: np.ndarray) -> list[Hit]:
        records = self.rows.take(positions).to_pylist()
        texts = self.texts.at(positions)
        return [
            Hit(record["index"], float(score), {**record, "text": text})
            for record, score, text in zip(records, scores, texts, strict=True)
        ]
