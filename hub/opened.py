"""A chunk opened for a proof: its bytes are here before they are parsed, so that a fault of the line is never damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hub.chunk import METADATA_KEY
from hub.pending import Entry, Receipt
from hub.repo import Repo

END_BYTES = 1 << 16  # read at first: a footer with its job is 5 to 20 kB
BATCH_ROWS = 8192  # decoded at a time
NORM_TOLERANCE = {pa.float32(): 1e-4, pa.float16(): 4e-3}  # float16 keeps 11 bits of each value


class DamageError(ValueError):
    """A file that cannot be what its writer wrote; the text says why."""


@dataclass(frozen=True)
class Opened:
    """A chunk. `content` is the whole file, or with `deep` false its end, which holds the footer."""

    entry: Entry
    content: bytes
    file: pq.ParquetFile

    @classmethod
    def open(cls, repo: Repo, entry: Entry, *, deep: bool) -> Opened:
        """Read the file once, or only its footer in one request.

        Raises:
            DamageError: it is no Parquet file, or its bytes are gone.
            OSError, RuntimeError: the output does not answer.
        """
        content = repo.read(entry.path) if deep else _read_end(repo, entry)
        if content is None:
            raise DamageError("cannot be read: it is listed, and its bytes are not there")
        try:
            return cls(entry, content, pq.ParquetFile(pa.BufferReader(content)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamageError(_unreadable(error)) from error

    @cached_property
    def said(self) -> Mapping[str, Any]:
        """What the writer said of the chunk; {} where it is none of ours."""
        try:
            said = json.loads((self.file.metadata.metadata or {}).get(METADATA_KEY, b"{}"))
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def counts(self) -> Mapping[str, Any]:
        """The writer's counts of the unit; {} where it is none of ours."""
        counts = self.said.get("counts", {})
        return counts if isinstance(counts, dict) else {}

    @property
    def sha256(self) -> str:
        """SHA-256 of the content that was read."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def schema(self) -> pa.Schema:
        """The columns, without what differs from chunk to chunk.

        Raises:
            DamageError: the footer's schema cannot be read.
        """
        try:
            schema = self.file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamageError(_unreadable(error)) from error
        metadata = {key: value for key, value in (schema.metadata or {}).items() if key != METADATA_KEY}
        return schema.with_metadata(metadata)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Decode all columns, some rows at a time. The content must be whole.

        Raises:
            DamageError: a page cannot be decoded.
        """
        try:
            yield from self.file.iter_batches(BATCH_ROWS)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamageError(_unreadable(error)) from error


def receipt_of(repo: Repo, start: int, stop: int, entries: Sequence[Entry]) -> Receipt:
    """Write the receipt of a unit from its files: skipped rows first, as a run has them.

    Raises:
        DamageError: a file cannot be read.
        OSError, RuntimeError: the output does not answer.
    """
    opened = [Opened.open(repo, entry, deep=not entry.sha256) for entry in entries]
    whole = (Entry(o.entry.path, o.entry.size, o.entry.sha256 or o.sha256) for o in opened)
    return Receipt(start, stop, tuple(whole), opened[-1].counts)


def wrong_vectors(batch: pa.RecordBatch, *, is_normalized: bool) -> Iterator[str]:
    """Say of each vector column whether it has values that are not finite, or vectors that are not of length 1."""
    for field in batch.schema:
        if not pa.types.is_fixed_size_list(field.type):
            continue
        vectors = batch[field.name].drop_null().flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(-1, field.type.list_size).astype(np.float32)
        if not np.isfinite(vectors).all():
            yield f"{field.name} has values that are not finite"
        elif is_normalized and len(vectors):
            norms = np.linalg.norm(vectors, axis=1)
            if np.abs(norms - 1).max() > NORM_TOLERANCE.get(field.type.value_type, 1e-4):
                yield f"{field.name} has vectors that are not of length 1"


def _read_end(repo: Repo, entry: Entry) -> bytes | None:
    """Read the end of a file as far as its footer goes: the last 8 bytes are the footer's length and PAR1."""
    end = repo.read_range(entry.path, max(0, entry.size - END_BYTES), entry.size)
    if end is None or len(end) < 8:
        return end
    wanted = int.from_bytes(end[-8:-4], "little") + 8
    if end[-4:] != b"PAR1" or not len(end) < wanted <= entry.size:
        return end
    return repo.read_range(entry.path, entry.size - wanted, entry.size)


def _unreadable(error: Exception) -> str:
    return f"cannot be read: {' '.join(str(error).split())[:100]}"
