"""Proof of an output against its plan: every unit once, every file whole, every row a record or a listed skip.

Reads the file list, the receipts and the footers; `deep` reads all data too. Yields problems, so that a broken output of a
million rows says the first ones at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hub.chunk import METADATA_KEY, chunk_metadata
from hub.pending import Receipt
from hub.repo import Repo

READ_THREADS = 8
NORM_TOLERANCE = {pa.float32(): 1e-4, pa.float16(): 4e-3}  # float16 keeps 11 bits of each value


@dataclass(frozen=True)
class PlannedUnit:
    """A unit as the plan has it: rows `[start, stop)`, the paths of its two files, and its source indices (int64)."""

    number: int
    start: int
    stop: int
    data: str
    skipped: str
    indices: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """Something wrong. `unit` is the number of the unit that computing again would mend; None: the file is in excess."""

    path: str
    what: str
    unit: int | None


@dataclass(frozen=True)
class Verifier:
    """What every file of an output is held against."""

    repo: Repo
    folders: Sequence[str]  # of records and skipped rows; a file in them that no unit has is in excess
    fingerprint: str
    is_normalized: bool
    receipts: Mapping[int, Receipt]  # by start of the unit
    deep: bool

    def problems(self, units: Sequence[PlannedUnit]) -> Iterator[Problem]:
        """Yield what is wrong: files in excess first, then unit by unit."""
        files = self.repo.list_files()
        planned = {path for unit in units for path in (unit.data, unit.skipped)}
        for path in sorted(files):
            if path not in planned and path.startswith(tuple(f"{folder}/" for folder in self.folders)):
                yield Problem(path, "no unit of the plan has this file", None)
        schema = self._schema(units, files)
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for found in pool.map(lambda unit: list(self._unit(unit, files, schema)), units):
                yield from found

    def _schema(self, units: Sequence[PlannedUnit], files: Mapping[str, int]) -> pa.Schema | None:
        """The schema of the first chunk that can be read, which `datasets` takes for the whole split."""
        for unit in units:
            if unit.data in files:
                try:
                    return self._open(unit.data).schema_arrow
                except (pa.ArrowException, OSError):
                    continue
        return None

    def _open(self, path: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.repo.open_file(path))

    def _unit(self, unit: PlannedUnit, files: Mapping[str, int], schema: pa.Schema | None) -> Iterator[Problem]:
        present = [path for path in (unit.data, unit.skipped) if path in files]
        if not present:
            yield Problem(unit.data, "missing", unit.number)
            return
        receipt = self.receipts.get(unit.start)
        tables = {}
        for path in present:
            try:
                for what in self._file(unit, path, schema, receipt):
                    yield Problem(path, what, unit.number)
                tables[path] = self._open(path).read() if self.deep else None
            except (pa.ArrowException, OSError, ValueError) as error:
                yield Problem(path, f"cannot be read: {' '.join(str(error).split())[:100]}", unit.number)
                return
        lost = [e.path for e in receipt.files if e.path not in present] if receipt else []
        yield from (Problem(path, "missing", unit.number) for path in lost)
        if self.deep:
            rows = self._rows(unit, tables.get(unit.data), tables.get(unit.skipped))
            yield from (Problem(unit.data, what, unit.number) for what in rows)

    def _file(self, unit: PlannedUnit, path: str, schema: pa.Schema | None, receipt: Receipt | None) -> Iterator[str]:
        """Compare one file with its receipt and its footer with the plan."""
        file = self._open(path)
        said = chunk_metadata(self.repo.open_file(path))
        if said.get("fingerprint") != self.fingerprint:
            yield "made by another job: its fingerprint differs"
        if (said.get("start"), said.get("stop")) != (unit.start, unit.stop):
            yield f"holds rows {said.get('start')}-{said.get('stop')}: the file stands in the wrong place"
        counts = said.get("counts", {})
        number = counts.get("records" if path == unit.data else "skipped")
        if file.metadata.num_rows != number or counts.get("rows") != unit.stop - unit.start:
            yield f"has {file.metadata.num_rows} rows where its metadata says {number}"
        if path == unit.data and schema is not None and _plain(file.schema_arrow) != _plain(schema):
            yield "has other columns than the first chunk"
        entry = next((e for e in receipt.files if e.path == path), None) if receipt else None
        if entry is None:
            yield "no receipt names it"
        elif self.repo.missing([entry]) or (self.deep and self._sha256(path) != entry.sha256):
            yield "is not the file that was uploaded: size or SHA-256 differ"

    def _sha256(self, path: str) -> str:
        with self.repo.open_file(path) as file:
            return hashlib.sha256(file.read()).hexdigest()

    def _rows(self, unit: PlannedUnit, data: pa.Table | None, skipped: pa.Table | None) -> Iterator[str]:
        """Compare the indices of both files with the source's, and look at every vector."""
        parts = [table["index"].to_numpy() for table in (data, skipped) if table is not None]
        if not np.array_equal(np.sort(np.concatenate(parts)), unit.indices()):
            yield "records and skipped rows together are not the rows of the unit, each once"
        if data is None:
            return
        if np.any(np.diff(data["index"].to_numpy()) <= 0):
            yield "records are not in row order"
        for field in data.schema:
            if pa.types.is_fixed_size_list(field.type):
                yield from self._vectors(field, data[field.name].combine_chunks())

    def _vectors(self, field: pa.Field, column: pa.FixedSizeListArray) -> Iterator[str]:
        vectors = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, field.type.list_size)
        if not np.isfinite(vectors).all():
            yield f"{field.name} has values that are not finite"
        elif self.is_normalized:
            norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
            if len(norms) and np.abs(norms - 1).max() > NORM_TOLERANCE[field.type.value_type]:
                yield f"{field.name} has vectors that are not of length 1"


def _plain(schema: pa.Schema) -> pa.Schema:
    """A schema without what differs from chunk to chunk."""
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != METADATA_KEY}
    return schema.with_metadata(metadata)
