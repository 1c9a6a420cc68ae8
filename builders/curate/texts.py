"""The texts of records: of the dataset where it keeps them, else of the rows of its source, rendered as the model saw them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from builders.files import SourceError
from builders.job import Job
from builders.options import ConfigError
from builders.row import RowError
from builders.schema import embedding_names, text_names
from builders.source import Source, open_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts:
    """Texts of the vectors in `column`. `rows` are all records, in order; `cache` is stillroom's cache folder."""

    job: Job
    column: str
    rows: pa.Table
    cache: Path

    @property
    def is_kept(self) -> bool:
        """Whether the dataset itself has them."""
        return self._name in self.rows.column_names

    def at(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """Texts of records by their positions in `rows`; "" where there is none, or the source cannot be read (a warning)."""
        chosen = np.asarray(positions, np.int64)
        if self.is_kept:
            return [text or "" for text in self.rows[self._name].take(chosen).to_pylist()]
        indices = self.rows["index"].take(chosen).to_numpy()
        unique, back = np.unique(indices, return_inverse=True)
        texts = self._read(unique)
        return [texts[i] for i in back]

    @property
    def _name(self) -> str:
        names = dict(zip(embedding_names(self.job), text_names(replace(self.job, keep_text=True)), strict=True))
        return names[self.column]

    def _read(self, indices: np.ndarray) -> list[str]:
        source, out = self._source, [""] * len(indices)
        if source is None:
            return out
        field = self._name.removeprefix("text").removeprefix("_")
        try:
            for place, row in enumerate(source.read(indices, self.job.view.columns(source.columns))):
                try:
                    found = self.job.view.render(row.data) if row.error is None else ()
                except RowError:
                    found = ()
                out[place] = next((text.text for text in found if text.field == field), "")
        except (SourceError, OSError) as error:
            logger.warning("texts of the source cannot be read: %s", error)
        return out

    @cached_property
    def _source(self) -> Source | None:
        """The source at the revision of the job; None, with a warning, where it is not there any more."""
        try:
            source = open_source(self.job, self.cache)
        except (ConfigError, SourceError, OSError) as error:
            logger.warning("no texts: %s", error)
            return None
        if source.revision != self.job.revision:
            logger.warning("no texts: %s is not what it was when the dataset was made", self.job.source)
            return None
        return source
