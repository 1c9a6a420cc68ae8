"""The unit in hand: what is known of each of its rows so far, and the record table once all are done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from builders.chat import clean_text
from builders.content import content_hash
from builders.files import SourceError
from builders.job import Job
from builders.row import Row, RowError
from builders.schema import SKIPPED_COLUMNS, Column, arrow_schema, embedding_names, text_names
from builders.text import Text
from builders.units import Unit
from extract.sample import Sample


@dataclass
class Work:
    """Results of one unit of N rows with F vectors each, filled in any order; tables come out in row order."""

    unit: Unit
    job: Job
    rows: dict[int, tuple[int, str | None, str | None]] = field(default_factory=dict)  # position: index, id, source
    hashes: dict[int, str] = field(default_factory=dict)  # position: content hash
    texts: dict[int, tuple[Text, ...]] = field(default_factory=dict)  # position: texts, where the job keeps them
    skipped: list[tuple[int, str, str]] = field(default_factory=list)  # index, reason, detail
    carried: list[tuple[np.ndarray, pa.Table]] = field(default_factory=list)  # positions (int64 [K]), K old records
    num_carried: int = 0
    num_carried_tokens: int = 0
    num_padded_tokens: int = 0
    seconds: float = 0.0  # from claim to the last vector
    started: float = field(default_factory=time.monotonic)
    vectors: np.ndarray | None = None  # [F, N, D] float32; NaN where there is none yet

    def __post_init__(self) -> None:
        num_fields, num_rows = max(1, len(self.job.fields)), self.unit.num_rows
        self.num_tokens = np.zeros((num_fields, num_rows), np.int32)
        self.truncated = np.zeros((num_fields, num_rows), bool)
        self.is_done = np.zeros((num_fields, num_rows), bool)

    def add_row(self, position: int, row: Row, texts: tuple[Text, ...]) -> None:
        """Account for a row that gives a record."""
        self.rows[position] = (row.index, _text(row, self.job.id_column), _text(row, self.job.source_column))
        self.hashes[position] = content_hash(texts)
        if self.job.keep_text:
            self.texts[position] = texts

    def skip(self, index: int, error: RowError) -> None:
        """Account for a row that gives none."""
        self.skipped.append((index, error.reason, clean_text(error.detail)))

    def put(self, samples: Sequence[Sample], vectors_BD: np.ndarray, padded: int) -> None:  # B, D: axes
        """Keep the vectors of a batch, for which the model ran `padded` tokens."""
        if not samples:
            return
        self.num_padded_tokens += padded
        fields = [sample.field for sample in samples]
        positions = [sample.position for sample in samples]
        self._make_room(vectors_BD.shape[1])[fields, positions] = vectors_BD
        self.num_tokens[fields, positions] = [sample.num_tokens for sample in samples]
        self.truncated[fields, positions] = [sample.truncated for sample in samples]
        self.is_done[fields, positions] = True

    def _put_carried(self, positions: np.ndarray, old: pa.Table) -> None:
        """Keep what old records hold: their vectors, and their counts, which stand for all fields together."""
        for number, name in enumerate(embedding_names(self.job)):
            column = old[name].combine_chunks()
            known = column.is_valid().to_numpy(zero_copy_only=False)
            vectors = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
            self._make_room(column.type.list_size)[number, positions[known]] = vectors
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
        """Put carried records in and list the rows that ended without any vector; call it once, when all batches are back."""
        while self.carried:
            self._put_carried(*self.carried.pop())
        for position in [p for p in self.rows if not self.is_done[:, p].any()]:
            index, _, _ = self.rows.pop(position)
            self.skip(index, RowError("empty_text", "the tokenizer finds no token in the text"))
        self.seconds = time.monotonic() - self.started
        if len(self.rows) + len(self.skipped) != self.unit.num_rows:
            found = f"{len(self.rows)} records and {len(self.skipped)} skipped rows of {self.unit.num_rows}"
            raise SourceError(
                f"rows {self.unit.start}-{self.unit.stop}: {found}: the source changed while it was read"
            )

    def counts(self) -> dict[str, int]:
        """Counts of the unit, for the chunk's metadata and the card."""
        reasons: dict[str, int] = {}
        for _, reason, _ in self.skipped:
            reasons[f"skipped_{reason}"] = reasons.get(f"skipped_{reason}", 0) + 1
        num_tokens = int(self.num_tokens.sum())
        return {
            "rows": self.unit.num_rows,
            "records": len(self.rows),
            "carried": self.num_carried,
            "skipped": len(self.skipped),
            "truncated": int(self.truncated.any(axis=0).sum()),
            "tokens": num_tokens,
            "padding": self.num_padded_tokens - (num_tokens - self.num_carried_tokens),
            **({} if self.vectors is None else {"dimension": self.vectors.shape[-1]}),
            **reasons,
        }

    def records(self, columns: Sequence[Column]) -> pa.Table:
        """The records in row order, with the columns of the dataset's schema."""
        positions = sorted(self.rows)
        index, ids, sources = zip(*(self.rows[p] for p in positions), strict=True) if positions else ((), (), ())
        data: dict[str, object] = {
            "index": index,
            "id": ids,
            "dataset_source": sources,
            "content_hash": [self.hashes[p] for p in positions],
            "num_tokens": self.num_tokens.sum(axis=0, dtype=np.int32)[positions],
            "truncated": np.logical_or.reduce(self.truncated)[positions],
        }
        for number, name in enumerate(text_names(self.job)):
            data[name] = [self.texts[p][number].text for p in positions]
        types = {column.name: column.arrow_type for column in columns}
        for number, name in enumerate(embedding_names(self.job)):
            data[name] = self._vector_array(number, positions, types[name])
        arrays = [_array(data[column.name], column.arrow_type) for column in columns]
        return pa.Table.from_arrays(arrays, schema=arrow_schema(columns))

    def _vector_array(self, number: int, positions: list[int], kind: pa.DataType) -> pa.Array:
        if self.vectors is None:
            return pa.array([], kind)
        chosen = self.vectors[number, positions].astype(kind.value_type.to_pandas_dtype())
        missing = np.invert(self.is_done[number])[positions]  # a field without text beside one with text
        mask = pa.array(missing) if missing.any() else None
        chosen[missing] = 0
        return pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1)), type=kind, mask=mask)

    def skipped_table(self) -> pa.Table:
        """The rows that give no record, in row order."""
        columns = list(zip(*sorted(self.skipped), strict=True)) or [(), (), ()]
        arrays = [pa.array(c, s.arrow_type) for c, s in zip(columns, SKIPPED_COLUMNS, strict=True)]
        return pa.Table.from_arrays(arrays, schema=arrow_schema(SKIPPED_COLUMNS))


def _array(values: object, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _text(row: Row, column: str) -> str | None:
    value = row.data.get(column)
    return None if value is None else clean_text(str(value))
