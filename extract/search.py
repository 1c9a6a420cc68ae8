"""Search in an embeddings dataset by text, with the model, the prompt and the settings that the dataset was made with.

from extract.search import open_search

dataset = open_search("user/x-embeddings")  # or "./out"; the second time from the cache, in milliseconds
for hit in dataset.retrieve("how do I prove that there are infinitely many primes?", k=5, where=["dataset_source=math"]):
    hit.score, hit.index, hit.record["text"]
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from builders.curate.retrieve import Hit, Searcher
from builders.curate.vectors import open_dataset

__all__ = ["Hit", "LazyEmbedder", "open_search"]


class LazyEmbedder:
    """The dataset's Embedder, loaded at the first query: filters and vectors need no model."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options

    def embed_text(self, text: str) -> np.ndarray:
        """Vector float32 [D]. Raises as `extract.embedder.Embedder`."""
        vector: np.ndarray = self.embedder.embed_text(text)
        return vector

    def embed_multimodal(self, text: str, image: Any) -> np.ndarray:
        """The same of a text and an image."""
        vector: np.ndarray = self.embedder.embed_multimodal(text, image)
        return vector

    @cached_property
    def embedder(self) -> Any:
        """The model."""
        from extract.embedder import Embedder

        return Embedder.from_dataset(self.name, **self.options)


def open_search(
    name: str,
    *,
    column: str | None = None,
    config_name: str = "default",
    revision: str | None = None,
    cache: Path | None = None,
    **embedder: Any,
) -> Searcher:
    """Open a Hub dataset (user/name) or a folder to search in it; what it holds is read into the cache once.

    `column` is only needed where records have several vectors. Other options are those of `Embedder.from_dataset`
    (`prompt_name="query"`, `model`, `engine`, `device`, `endpoint`).

    Raises:
        ValueError: none of stillroom's, no embeddings, or no such column.
        OSError: no such dataset, no access, no answer, or the disk is full.
    """
    dataset = open_dataset(name, column=column, config_name=config_name, revision=revision)
    options = {"config_name": config_name, "revision": revision, **embedder}
    return Searcher.open(dataset, LazyEmbedder(name, **options), cache)
