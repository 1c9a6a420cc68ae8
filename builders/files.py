"""Source files and how rows are read from them by position: Parquet by row group, JSONL by line offset."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.row import Row, RowError

BATCH_ROWS = 1000  # rows decoded at a time: long chats reach megabytes a row
BATCH_BYTES = 2**26  # and at most so many, before compression
MAX_OPEN = 16  # Parquet files at a time: a source may have thousands, a process 1,024, and a footer takes 0.2 MB
LINES_PER_MARK = 256  # a JSONL offset is kept for every 256th line: 3 MB of marks for 100 M rows


class SourceError(RuntimeError):
    """The source cannot be read: it is missing, not allowed, of an unknown format or damaged. Exit code 2 or 1."""


class RowFile(Protocol):
    """One file of a split: it knows how many rows it has and reads some of them, by position in the file."""

    @property
    def num_rows(self) -> int:
        """Rows of the file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in the file's order; for JSONL those of the first rows."""

    def read(self, positions: np.ndarray, columns: Sequence[str], offset: int) -> Iterator[Row]:
        """Yield rows at sorted `positions` (int64 [N]) with only `columns`; `Row.index` is `offset` + position."""


def _open(url: str) -> pq.ParquetFile:
    """Ranges are fetched ahead and joined (`pre_buffer`)."""
    try:
        if url.startswith("hf://"):
            from huggingface_hub import HfFileSystem

            file = HfFileSystem().open(url, "rb", cache_type="none")  # pyarrow knows what it wants
            return pq.ParquetFile(file, pre_buffer=True)
        return pq.ParquetFile(url, pre_buffer=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{url} is not a readable Parquet file: {error}") from error


@dataclass
class ParquetFile:
    """A Parquet file, local or on the Hub (`hf://datasets/user/name@sha/path`), of which only what is needed is read."""

    url: str
    num_rows: int

    @cached_property
    def reader(self) -> pq.ParquetFile:
        """The open file, while it is among the last MAX_OPEN opened: units go from file to file, in order."""
        _opened.append(self)
        if len(_opened) > MAX_OPEN:
            _opened.popleft().__dict__.pop("reader", None)
        return _open(self.url)

    @property
    def columns(self) -> tuple[str, ...]:
        """Top-level column names."""
        return tuple(self.reader.schema_arrow.names)

    def read(self, positions: np.ndarray, columns: Sequence[str], offset: int) -> Iterator[Row]:
        """Yield the rows from the row groups that hold them; see RowFile."""
        for start, batch in self.batches(positions, columns):
            low, high = np.searchsorted(positions, [start, start + batch.num_rows])
            wanted = positions[low:high]
            for position, data in zip(wanted, batch.take(pa.array(wanted - start)).to_pylist(), strict=True):
                yield Row(offset + int(position), data)

    def batches(self, positions: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (first row, batch) that hold at least one of the sorted positions."""
        metadata, start = self.reader.metadata, 0
        for group in range(metadata.num_row_groups):
            stop = start + metadata.row_group(group).num_rows
            low, high = np.searchsorted(positions, [start, stop])
            if low < high:
                yield from self._group_batches(group, start, positions[low:high], columns)
            start = stop

    def _batch_rows(self, group: int) -> int:
        """Rows to decode at a time: fewer where a row holds images."""
        about = self.reader.metadata.row_group(group)
        return max(1, min(BATCH_ROWS, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))

    def _group_batches(
        self, group: int, start: int, positions: np.ndarray, columns: Sequence[str]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        try:
            for batch in self.reader.iter_batches(self._batch_rows(group), row_groups=[group], columns=list(columns)):
                low, high = np.searchsorted(positions, [start, start + batch.num_rows])
                if low < high:
                    yield start, batch
                start += batch.num_rows
                if start > positions[-1]:
                    return
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{self.url}, row group {group}: {error}") from error


_opened: deque[ParquetFile] = deque()  # oldest first


@dataclass
class JsonlFile:
    """A JSON-lines file. Blank lines are no rows; a broken line is a row that is skipped and listed."""

    path: str
    num_rows: int
    marks: list[int]  # byte offset of row 0, 256, 512, …
    sha256: str

    @classmethod
    def scan(cls, path: str) -> JsonlFile:
        """Count and mark the rows and hash the content, in one pass over the bytes."""
        digest, marks, num_rows, offset = hashlib.sha256(), [], 0, 0
        with open(path, "rb") as file:
            for line in file:
                if line.strip():
                    if num_rows % LINES_PER_MARK == 0:
                        marks.append(offset)
                    num_rows += 1
                digest.update(line)
                offset += len(line)
        return cls(path, num_rows, marks, digest.hexdigest())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Keys of the first 100 readable rows, in order of appearance: lines may differ."""
        head = np.arange(min(self.num_rows, 100))
        rows = self.read(head, (), 0)
        return tuple(dict.fromkeys(key for row in rows for key in row.data))

    def read(self, positions: np.ndarray, columns: Sequence[str], offset: int) -> Iterator[Row]:
        """Yield rows; a key that a line lacks is None. No `columns` gives all keys. See RowFile."""
        if not len(positions):
            return
        wanted = iter(positions.tolist())
        position = next(wanted)
        number = position // LINES_PER_MARK * LINES_PER_MARK
        with open(self.path, "rb") as file:
            file.seek(self.marks[number // LINES_PER_MARK])
            for line in file:
                if not line.strip():
                    continue
                if number == position:
                    yield _parse_line(line, offset + position, columns)
                    if (following := next(wanted, None)) is None:
                        return
                    position = following
                number += 1


def _parse_line(line: bytes, index: int, columns: Sequence[str]) -> Row:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return Row(index, error=RowError("invalid_json", str(error)))
    if not isinstance(data, dict):
        return Row(index, error=RowError("invalid_json", f"expected an object, got {type(data).__name__}"))
    return Row(index, {name: data.get(name) for name in columns} if columns else data)


@dataclass
class ArrowFile:
    """A split of another format, read by the `datasets` library into its memory-mapped Arrow cache."""

    dataset: Any  # datasets.Dataset

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return len(self.dataset)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.dataset.column_names)

    def read(self, positions: np.ndarray, columns: Sequence[str], offset: int) -> Iterator[Row]:
        """Yield rows; see RowFile."""
        table = self.dataset.select_columns(list(columns)).with_format("arrow")
        for low in range(0, len(positions), BATCH_ROWS):
            wanted = positions[low : low + BATCH_ROWS]
            for position, data in zip(wanted, table[wanted].to_pylist(), strict=True):
                yield Row(offset + int(position), data)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
