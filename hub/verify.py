"""Proof of an output against its plan: every unit once, every file whole, every row a record or a listed skip.

The file list, with its sizes and SHA-256, is held against the receipts, and the footers against the plan: one ranged read
per file. `deep` reads all data, each file once, and at most DEEP_THREADS files are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from hub.opened import DamageError, Opened, receipt_of
from hub.pending import Entry, Receipt
from hub.repo import Repo

READ_THREADS = 16  # footers: small, and mostly waiting
DEEP_THREADS = 3  # chunks in memory: about 100 MB each
NUM_SAMPLED = 5  # footers whose most common schema is what the others are held against


@dataclass(frozen=True)
class PlannedUnit:
    """A unit as the plan has it: rows `[start, stop)`, the paths of its two files, and its source indices (int64)."""

    number: int
    start: int
    stop: int
    data: str
    skipped: str
    indices: Callable[[], np.ndarray]

    @property
    def paths(self) -> tuple[str, str]:
        """Both files, of which one may not exist."""
        return self.data, self.skipped


@dataclass(frozen=True)
class Problem:
    """Something wrong, and what mends it: compute `unit` again, delete the file, write its receipt or the table anew."""

    path: str
    what: str
    unit: int | None
    repair: Literal["compute", "delete", "receipt", "table"]


@dataclass(frozen=True)
class Verifier:
    """What every file of an output is held against."""

    repo: Repo
    files: Mapping[str, Entry]  # all that the output holds
    folders: Sequence[str]  # of records and skipped rows; a file in them that no unit has is in excess
    fingerprint: str
    wrong: Callable[[pa.RecordBatch], Iterator[str]]  # what is wrong with some records; only `deep` asks
    receipts: Mapping[int, Receipt]  # by start of the unit
    ledger: str  # path of the receipts, for what is said of them
    is_finished: bool  # the output says that it is complete
    deep: bool
    _schemas: dict[int, pa.Schema | None] = field(default_factory=dict)  # found once, by kind of file

    def absent(self, units: Iterable[PlannedUnit]) -> list[PlannedUnit]:
        """Units that a growing output does not hold yet: no file, no receipt."""
        gone = (unit for unit in units if not self.is_finished and unit.start not in self.receipts)
        return [unit for unit in gone if not self.files.keys() & unit.paths]

    def problems(self, units: Sequence[PlannedUnit]) -> Iterator[Problem]:
        """Yield what is wrong: files and receipts in excess first, then unit by unit.

        Raises:
            OSError, RuntimeError: the output does not answer, after many tries.
        """
        planned = {path for unit in units for path in unit.paths}
        for path in sorted(self.files):
            if path not in planned and path.startswith(tuple(f"{folder}/" for folder in self.folders)):
                yield Problem(path, "no unit of the plan has this file", None, "delete")
        fitting = self.fitting_receipts(units)
        for start in sorted(self.receipts.keys() - fitting.keys()):
            what = f"names rows {start}-{self.receipts[start].stop}, and files that are not those of a unit"
            yield Problem(self.ledger, what, None, "receipt")
        schemas = [self._schema(units, kind, fitting) for kind in (0, 1)]
        with ThreadPoolExecutor(DEEP_THREADS if self.deep else READ_THREADS) as pool:
            for found in pool.map(lambda unit: list(self._unit(unit, schemas, fitting.get(unit.start))), units):
                # the receipt of a unit that is computed again is written with it
                yield from [problem for problem in found if problem.repair == "compute"] or found

    def fitting_receipts(self, units: Iterable[PlannedUnit]) -> dict[int, Receipt]:
        """Return the receipts that are of a unit of the plan, by its start."""
        pairs = ((unit, self.receipts[unit.start]) for unit in units if unit.start in self.receipts)
        return {u.start: r for u, r in pairs if u.stop == r.stop and {e.path for e in r.files} <= set(u.paths)}

    def metadata(self, units: Sequence[PlannedUnit]) -> Mapping[bytes, bytes]:
        """Return what most chunks say of their records, in the metadata of their schema; {} where there is no chunk."""
        schema = self._schema(units, 0, self.fitting_receipts(units))
        return (schema.metadata if schema is not None else None) or {}

    def receipt_of(self, unit: PlannedUnit) -> Receipt:
        """Write the receipt of a unit from its files.

        Raises:
            DamageError: a file cannot be read.
        """
        return receipt_of(
            self.repo, unit.start, unit.stop, [self.files[path] for path in reversed(self._present(unit))]
        )

    def _present(self, unit: PlannedUnit) -> list[str]:
        return [path for path in unit.paths if path in self.files]

    def _schema(self, units: Sequence[PlannedUnit], kind: int, receipts: Mapping[int, Receipt]) -> pa.Schema | None:
        """The most common schema of some records (`kind` 0) or skipped rows (1), first of files that receipts prove."""
        if kind not in self._schemas:
            there = [(unit, unit.paths[kind]) for unit in units if unit.paths[kind] in self.files]
            proved = [p for u, p in there if (r := receipts.get(u.start)) and self._differs(p, r) is None]
            paths = dict.fromkeys([*proved[:NUM_SAMPLED], *(path for _, path in there[:NUM_SAMPLED])])
            self._schemas[kind] = self._most_common(list(paths)[:NUM_SAMPLED])
        return self._schemas[kind]

    def _most_common(self, paths: Iterable[str]) -> pa.Schema | None:
        found: Counter[bytes] = Counter()
        for path in paths:
            try:
                opened = Opened.open(self.repo, self.files[path], deep=False)
                if opened.said.get("fingerprint") == self.fingerprint:
                    found[opened.schema.serialize().to_pybytes()] += 1
            except DamageError:
                continue
        return pa.ipc.read_schema(pa.py_buffer(found.most_common(1)[0][0])) if found else None

    def _unit(
        self, unit: PlannedUnit, schemas: Sequence[pa.Schema | None], receipt: Receipt | None
    ) -> Iterator[Problem]:
        present = self._present(unit)
        if not present:
            if receipt is not None or self.is_finished:
                yield Problem(unit.data, "missing", unit.number, "compute")
            return
        files = [self._file(unit, p, schemas[unit.paths.index(p)], receipt) for p in present]
        for file in files:
            yield from (Problem(file.path, what, unit.number, "compute") for what in file.whats)
        counts = next((file.counts for file in files if file.counts), {})
        for path, kind in zip(unit.paths, ("records", "skipped"), strict=True):
            named = receipt is not None and any(entry.path == path for entry in receipt.files)
            if path not in present and (named or counts.get(kind)):
                yield Problem(path, "missing", unit.number, "compute")
        if not all(file.is_whole for file in files):
            return
        if self.deep:
            indices = np.sort(np.concatenate([file.indices for file in files]))
            if not np.array_equal(indices, unit.indices()):
                what = "records and skipped rows together are not the rows of the unit, each once"
                yield Problem(unit.data, what, unit.number, "compute")
        yield from (Problem(path, what, unit.number, "receipt") for path, what in _unproved(receipt, present, counts))

    def _file(self, unit: PlannedUnit, path: str, schema: pa.Schema | None, receipt: Receipt | None) -> _File:
        """Open one file and look at all of it; it is let go before the next."""
        file = _File(path)
        if (differs := receipt and self._differs(path, receipt)) is not None:
            file.whats.append(f"is not the file that was uploaded: {differs} differs")
        try:
            opened = Opened.open(self.repo, self.files[path], deep=self.deep)
            file.counts = opened.counts
            file.whats += self._footer(unit, opened, schema)
            if self.deep:
                if differs is None and self._hashes(path, receipt) - {opened.sha256}:
                    file.whats.append("is not the file that was uploaded: its SHA-256 differs")
                self._rows(opened, file)
        except DamageError as error:
            file.whats.append(str(error))
            file.is_whole = False
        return file

    def _footer(self, unit: PlannedUnit, opened: Opened, schema: pa.Schema | None) -> Iterator[str]:
        """Compare a footer with the plan."""
        said, counts = opened.said, opened.counts
        if said.get("fingerprint") != self.fingerprint:
            yield "made by another job: its fingerprint differs"
        if (said.get("start"), said.get("stop")) != (unit.start, unit.stop):
            yield f"holds rows {said.get('start')}-{said.get('stop')}: the file stands in the wrong place"
        number = counts.get("records" if opened.entry.path == unit.data else "skipped")
        if opened.file.metadata.num_rows != number or counts.get("rows") != unit.stop - unit.start:
            yield f"has {opened.file.metadata.num_rows} rows where its metadata says {number}"
        if schema is not None and opened.schema != schema:
            yield "has other columns than the other chunks"
        elif schema is not None and not opened.schema.equals(schema, check_metadata=True):
            yield "its metadata tells of other records than that of the other chunks"

    def _differs(self, path: str, receipt: Receipt) -> str | None:
        """What of a file the file list has otherwise than its receipt."""
        wanted, held = next((e for e in receipt.files if e.path == path), None), self.files[path]
        if wanted is None:
            return None
        if wanted.size != held.size:
            return "its size"
        return "its SHA-256" if held.sha256 not in ("", wanted.sha256) else None

    def _hashes(self, path: str, receipt: Receipt | None) -> set[str]:
        """SHA-256 that the content must have, by its receipt and by the file list."""
        named = {entry.sha256 for entry in receipt.files if entry.path == path} if receipt else set()
        return (named | {self.files[path].sha256}) - {""}

    def _rows(self, opened: Opened, file: _File) -> None:
        """Read all rows of a file, some at a time."""
        parts, whats = [file.indices], dict[str, None]()
        for batch in opened.batches():
            if "index" not in batch.schema.names or not pa.types.is_integer(batch.schema.field("index").type):
                raise DamageError("has no whole numbers in a column `index`")
            parts.append(batch["index"].to_numpy(zero_copy_only=False))
            whats.update(dict.fromkeys(self.wrong(batch) if opened.entry.path.startswith(self.folders[0]) else ()))
        file.indices = np.concatenate(parts)
        if np.any(np.diff(file.indices) <= 0):
            whats["rows are not in the order of the source"] = None
        file.whats += whats


@dataclass
class _File:
    """What was found in one file. `indices` is int64 [rows], read with `deep` only."""

    path: str
    whats: list[str] = field(default_factory=list)
    counts: Mapping[str, Any] = field(default_factory=dict)
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    is_whole: bool = True


def _unproved(
    receipt: Receipt | None, present: Sequence[str], counts: Mapping[str, object]
) -> Iterator[tuple[str, str]]:
    """Files that no receipt names, and a receipt whose counts are not those of its files."""
    named = {entry.path for entry in receipt.files} if receipt else set()
    yield from ((path, "no receipt names it") for path in present if path not in named)
    if receipt is not None and receipt.counts != counts:
        yield present[0], "its receipt has other counts"
