"""Pending: chunks finished on the local disk and not yet confirmed in the output.

`files/PATH` holds each file under its path in the output; `receipts/START.json` names the files of one unit and is written
last, so that a receipt exists only for whole files. A unit leaves in the other order: receipt first.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hub.chunk import write_chunk, write_whole

logger = logging.getLogger(__name__)

DISK_SHARE = 0.5  # of the disk that is free at the start may be filled with pending chunks


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as the output must hold it: path in the output, bytes, SHA-256 (64 hex digits)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The files of one unit `[start, stop)` and the unit's counts (rows, records, skipped, tokens, …)."""

    start: int
    stop: int
    files: tuple[Entry, ...]
    counts: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> str:
        """One line of JSON."""
        files = [{"path": one.path, "size": one.size, "sha256": one.sha256} for one in self.files]
        value = {"start": self.start, "stop": self.stop, "files": files, "counts": self.counts}
        return json.dumps(value, sort_keys=True)

    @classmethod
    def from_json(cls, line: str | bytes) -> Receipt:
        """Read what `to_json` wrote."""
        value = json.loads(line)
        return cls(value["start"], value["stop"], tuple(Entry(**entry) for entry in value["files"]), value["counts"])


class Pending:
    """The pending folder of one job on one machine, shared by its worker processes. Capped in bytes."""

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.files = folder / "files"
        self.receipts = folder / "receipts"
        self.files.mkdir(parents=True, exist_ok=True)
        self.receipts.mkdir(parents=True, exist_ok=True)
        self.max_bytes = max_bytes or int(shutil.disk_usage(folder).free * DISK_SHARE)

    def add(self, start: int, stop: int, tables: Mapping[str, pa.Table], metadata: Mapping[str, Any]) -> Receipt:
        """Write the tables of a unit, by path in the output, and its receipt. None of the tables may be empty."""
        entries = []
        for path, table in tables.items():
            local = self.files / path
            sha256 = write_chunk(local, table, metadata)
            entries.append(Entry(path, local.stat().st_size, sha256))
        receipt = Receipt(start, stop, tuple(entries), metadata["counts"])
        write_whole(self._receipt_path(receipt), receipt.to_json().encode())
        return receipt

    def scan(self) -> list[Receipt]:
        """Return what is pending, in row order. A receipt whose files are gone (a lost disk block) is dropped."""
        found = []
        for path in sorted(self.receipts.glob("[0-9]*.json")):
            try:
                receipt = Receipt.from_json(path.read_bytes())
                whole = all((self.files / e.path).stat().st_size == e.size for e in receipt.files)
            except (FileNotFoundError, ValueError, KeyError, TypeError):  # another OSError says nothing of the file
                whole = False
            if whole:
                found.append(receipt)
            elif path.exists():  # else the uploader has just removed the unit
                logger.warning("%s: its chunk is not whole; the unit is computed again", path.name)
                path.unlink(missing_ok=True)
        return found

    @property
    def num_units(self) -> int:
        """Units that wait, as fast as the folder is listed: for displays."""
        return sum(1 for _ in self.receipts.glob("[0-9]*.json"))

    def remove(self, receipt: Receipt) -> None:
        """Forget a unit that the output is known to hold."""
        self._receipt_path(receipt).unlink(missing_ok=True)
        for entry in receipt.files:
            (self.files / entry.path).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete files that no receipt names: what a kill left half way. Only safe while no worker writes."""
        kept = {self.files / entry.path for receipt in self.scan() for entry in receipt.files}
        for path in self.files.rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()

    @property
    def num_bytes(self) -> int:
        """Bytes that wait."""
        return sum(map(_size, self.files.rglob("[0-9]*.parquet")))

    def wait_for_room(
        self, check: Callable[[], None], is_over: Callable[[], bool] = lambda: False, seconds: float = 0.5
    ) -> float:
        """Wait while the cap is exceeded and return the seconds waited; `check` may raise, `is_over` end the wait."""
        started = time.monotonic()
        while self.num_bytes > self.max_bytes and not is_over():
            check()
            time.sleep(seconds)
        return time.monotonic() - started

    def _receipt_path(self, receipt: Receipt) -> Path:
        return self.receipts / f"{receipt.start:012d}-{receipt.stop:012d}.json"


def _size(path: Path) -> int:
    """Bytes of a file; 0 for one that the uploader has just removed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
