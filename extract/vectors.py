"""The unit in hand of an embeddings build: a vector for each text of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from builders.quantize import VectorFormat, recall
from builders.row import Row
from builders.schema import Column, embedding_names, text_names
from builders.stored_vectors import stored_array, vector_column
from builders.tally import PER_OCTAVE_NORM, TALLIES, binned
from builders.text import Text
from extract.sample import Sample
from extract.work import Work

RECALL_ROWS = 2000  # of a unit, and 200 of them ask: 0.8 GFLOP at 1,024 dimensions


@dataclass
class VectorWork(Work):
    """N rows with F vectors each; vectors of a batch are float32 [B, D]."""

    texts: dict[int, tuple[Text, ...]] = field(default_factory=dict)  # position: texts, where the job keeps them
    num_images: np.ndarray = field(init=False)  # int32 [N]
    carried: list[tuple[np.ndarray, pa.Table]] = field(default_factory=list)  # positions (int64 [K]), K old records
    vectors: np.ndarray | None = None  # [F, N, D] float32; NaN where there is none yet
    form: VectorFormat | None = None  # of the records; only a pilot has none
    recall: tuple[int, int] = (0, 0)  # neighbours that stored vectors find, and all that were asked for

    def __post_init__(self) -> None:
        super().__post_init__()
        self.num_images = np.zeros(self.unit.num_rows, np.int32)

    @property
    def num_waiting_bytes(self) -> int:
        """See Work: of old records."""
        return sum(records.nbytes for _, records in self.carried)

    def add_texts(self, position: int, row: Row, texts: tuple[Text, ...]) -> None:
        """See Work."""
        super().add_texts(position, row, texts)
        self.num_images[position] = sum(len(text.images) for text in texts)
        if self.job.keep_text:
            self.texts[position] = tuple(replace(text, images=()) for text in texts)

    def keep(self, samples: Sequence[Sample], vectors_BD: np.ndarray) -> None:  # B, D: axes
        """See Work."""
        fields, positions = [s.field for s in samples], [s.position for s in samples]
        self._make_room(vectors_BD.shape[1])[fields, positions] = vectors_BD

    def dump(self, vectors_BD: np.ndarray) -> bytes:
        """See Work."""
        return np.ascontiguousarray(vectors_BD, np.float32).tobytes()

    def load(self, num_samples: int, content: memoryview) -> np.ndarray:
        """See Work."""
        return np.frombuffer(content, np.float32).reshape(num_samples, -1)

    def _put_carried(self, positions: np.ndarray, old: pa.Table) -> None:
        """Keep what old records hold: their vectors, and their counts, which stand for all fields together."""
        for number, name in enumerate(embedding_names(self.job)):
            column = old[name].combine_chunks()
            known = column.is_valid().to_numpy(zero_copy_only=False)
            assert self.form is not None
            vectors = self.form.dequantize(stored_array(column.drop_null()))  # quantised again, it is what it was
            self._make_room(self.form.dimension)[number, positions[known]] = vectors
            self.is_done[number, positions] = known
        self.num_tokens[:, positions] = self.truncated[:, positions] = 0
        self.num_tokens[0, positions] = old["num_tokens"].to_numpy()
        self.truncated[0, positions] = old["truncated"].to_numpy(zero_copy_only=False)
        self.num_carried += len(positions)
        self.num_carried_tokens += int(self.num_tokens[0, positions].sum())

    def _make_room(self, dimension: int) -> np.ndarray:
        if self.vectors is None:
            self.vectors = np.full((*self.is_done.shape, dimension), np.nan, np.float32)
        return self.vectors

    def finish(self) -> None:
        """Measure what quantising costs, put carried records in, then see Work."""
        if self.form is not None and self.form.dtype in ("int8", "binary") and self.vectors is not None:
            self.recall = self._recall(self.form, self.vectors[0][self.is_done[0]][:RECALL_ROWS])
        while self.carried:
            self._put_carried(*self.carried.pop())
        super().finish()

    def counts(self) -> dict[str, Any]:
        """See Work; and the dimension of the vectors, their norms, and what was found of the neighbours asked for."""
        found, asked = self.recall
        counts = super().counts() | ({"recall_found": found, "recall_asked": asked} if asked else {})
        if self.vectors is None:
            return counts
        norms = np.linalg.norm(self.vectors[self.is_done], axis=1)
        tallies = counts[TALLIES] | {"norm": binned(norms, PER_OCTAVE_NORM)}
        return counts | {"dimension": self.vectors.shape[-1], TALLIES: tallies}

    def records(self, columns: Sequence[Column]) -> pa.Table:
        """See Work; the metadata says how vectors are quantised."""
        table = super().records(columns)
        form = {} if self.form is None else self.form.to_metadata()
        return table.replace_schema_metadata({**table.schema.metadata, **form})

    @staticmethod
    def _recall(form: VectorFormat, vectors_ND: np.ndarray) -> tuple[int, int]:  # N, D: axes
        return recall(vectors_ND, form.dequantize(form.quantize(vectors_ND)))

    def results(self, positions: Sequence[int], types: Mapping[str, pa.DataType]) -> dict[str, object]:
        """See Work."""
        data: dict[str, object] = {"num_images": self.num_images[positions]}
        for number, name in enumerate(text_names(self.job)):
            data[name] = [self.texts[p][number].text for p in positions]
        for number, name in enumerate(embedding_names(self.job)):
            data[name] = self._vector_array(number, positions, types[name])
        return data

    def _vector_array(self, number: int, positions: Sequence[int], kind: pa.DataType) -> pa.Array:
        if self.vectors is None:
            return pa.array([], kind)
        chosen = self.vectors[number, positions]
        missing = np.invert(self.is_done[number])[positions]  # a field without text beside one with text
        chosen[missing] = 0
        form = self.form or VectorFormat(self.job.storage_dtype, chosen.shape[1])
        return vector_column(form.quantize(chosen), kind, missing)
