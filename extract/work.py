"""The unit in hand: what is known of each of its rows so far, and the record table once all are done."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from builders.chat import clean_text, stored_messages
from builders.columns import MESSAGES
from builders.content import content_hash
from builders.files import SourceError
from builders.job import Job
from builders.row import Row, RowError
from builders.schema import SKIPPED_COLUMNS, Column, arrow_schema
from builders.tally import SOURCES, TALLIES, binned, by_source
from builders.text import Text
from builders.units import Unit
from extract.sample import Sample

Messages = list[dict[str, str]] | None


@dataclass
class Work(ABC):
    """Results of one unit of N rows with F samples each, filled in any order; tables come out in row order.

    What a result is, is the build's: a vector, or the teacher's distributions.
    """

    unit: Unit
    job: Job
    rows: dict[int, tuple[int, str | None, str | None]] = field(default_factory=dict)  # position: index, id, source
    hashes: dict[int, str] = field(default_factory=dict)  # position: content hash
    messages: dict[int, Messages] = field(default_factory=dict)  # position: chat, where the job keeps them
    # position: why it has no result, where that came up late
    failed: dict[int, RowError] = field(default_factory=dict)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)  # index, reason, detail
    num_padded_tokens: int = 0
    num_carried: int = 0
    num_carried_tokens: int = 0
    seconds: float = 0.0  # from claim to the last result
    started: float = field(default_factory=time.monotonic)

    # of a row that has no sample
    nothing: ClassVar[RowError] = RowError("empty_text", "the tokenizer finds no token in the text")

    def __post_init__(self) -> None:
        num_fields, num_rows = max(1, len(self.job.fields)), self.unit.num_rows
        self.num_tokens = np.zeros((num_fields, num_rows), np.int32)
        self.truncated = np.zeros((num_fields, num_rows), bool)
        self.is_done = np.zeros((num_fields, num_rows), bool)

    @property
    def num_waiting_bytes(self) -> int:
        """Bytes that wait with the unit until it is finished, beside its results."""
        return 0

    @property
    def message_bytes(self) -> float:
        """Bytes of the chat of a record, in the mean."""
        chats = [one for one in self.messages.values() if one]
        return sum(len(m["content"]) for chat in chats for m in chat) / max(1, len(self.messages))

    def add_row(self, position: int, row: Row, content_hash: str) -> None:
        """Account for a row that gives a record."""
        self.rows[position] = (row.index, _text(row, self.job.id_column), _text(row, self.job.source_column))
        self.hashes[position] = content_hash
        if self.job.keep_messages:
            self.messages[position] = stored_messages(row.data.get(self.job.messages_column))

    def add_texts(self, position: int, row: Row, texts: tuple[Text, ...]) -> None:
        """Account for a row that gives a record of these texts."""
        self.add_row(position, row, content_hash(texts))

    def skip(self, index: int, error: RowError) -> None:
        """Account for a row that gives none."""
        self.skipped.append((index, error.reason, clean_text(error.detail)))

    def fail(self, position: int, error: RowError) -> None:
        """Say why a row that was accounted for gives no record after all. Any thread may."""
        self.failed[position] = error

    def put(self, samples: Sequence[Sample], results: Any, padded: int) -> None:
        """Keep the results of a batch, for which the model ran `padded` tokens."""
        if not samples:
            return
        self.num_padded_tokens += padded
        fields, positions = [s.field for s in samples], [s.position for s in samples]
        self.keep(samples, results)
        self.num_tokens[fields, positions] = [sample.num_tokens for sample in samples]
        self.truncated[fields, positions] = [sample.truncated for sample in samples]
        self.is_done[fields, positions] = True

    @abstractmethod
    def keep(self, samples: Sequence[Sample], results: Any) -> None:
        """Keep the results of some samples."""

    @abstractmethod
    def dump(self, results: Any) -> bytes:
        """Results as bytes, for the partial file."""

    @abstractmethod
    def load(self, num_samples: int, content: memoryview) -> Any:
        """Results from what `dump` gave."""

    def finish(self) -> None:
        """List the rows that ended without any result; call it once, when all batches are back."""
        for position in [p for p in self.rows if not self.is_done[:, p].any()]:
            index, _, _ = self.rows.pop(position)
            self.skip(index, self.failed.get(position, self.nothing))
        self.seconds = time.monotonic() - self.started
        if len(self.rows) + len(self.skipped) != self.unit.num_rows:
            found = f"{len(self.rows)} records and {len(self.skipped)} skipped rows of {self.unit.num_rows}"
            raise SourceError(
                f"rows {self.unit.start}-{self.unit.stop}: {found}: the source changed while it was read"
            )

    def counts(self) -> dict[str, Any]:
        """Counts of the unit, for the chunk's metadata and the card: numbers that add up, tallies, and rows by source."""
        reasons: dict[str, int] = {}
        for _, reason, _ in self.skipped:
            reasons[f"skipped_{reason}"] = reasons.get(f"skipped_{reason}", 0) + 1
        num_tokens = int(self.num_tokens.sum())
        totals = self.num_tokens.sum(axis=0)[list(self.rows)]
        return {
            "rows": self.unit.num_rows,
            "records": len(self.rows),
            "carried": self.num_carried,
            "skipped": len(self.skipped),
            "truncated": int(self.truncated.any(axis=0).sum()),
            "tokens": num_tokens,
            "padding": self.num_padded_tokens - (num_tokens - self.num_carried_tokens),
            **reasons,
            SOURCES: by_source((source for _, _, source in self.rows.values()), totals),
            TALLIES: {"tokens": binned(totals)},
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
            MESSAGES: [self.messages.get(p) for p in positions],
            **self.results(positions, {column.name: column.arrow_type for column in columns}),
        }
        arrays = [_array(data[column.name], column.arrow_type) for column in columns]
        return pa.Table.from_arrays(arrays, schema=arrow_schema(columns))

    @abstractmethod
    def results(self, positions: Sequence[int], types: Mapping[str, pa.DataType]) -> dict[str, object]:
        """The build's own columns for the rows at `positions`."""

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
