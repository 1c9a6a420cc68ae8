"""Carried records: those of an output's older generation, found by content hash, so that they need no model again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hub.chunk import METADATA_KEY
from hub.faults import diagnose
from hub.ranges import RangeFile
from hub.repo import Repo

logger = logging.getLogger(__name__)

T = TypeVar("T")

HASH = "content_hash"
READ_THREADS = 16
READ_TRIES = 3  # beside those of the Hub's client; then the rows are computed, which costs more than a wait
GROUPS_KEPT = 2  # row groups in memory, 100 MB at most each: a unit of a moved source lies across two
CHUNK_BIT, GROUP_BIT = 40, 24  # location: chunk << 40 | row group << 24 | row in the group


def write_index(repo: Repo, prefix: str, fingerprint: str, folder: Path, check: Callable[[], None]) -> None:
    """Index the chunks below `prefix` that a job wrote, by content hash, in `folder`, which appears whole.

    Reads the hashes and footers only: 32 bytes of a record. The index takes 24 bytes of a record, and thrice that in memory
    while it is sorted. A chunk that is unreadable, of another job, or older than content hashes carries nothing.
    """
    sizes = repo.list_files()
    paths = sorted(path for path in sizes if path.startswith(prefix) and path.endswith(".parquet"))
    parts = []
    pool = ThreadPoolExecutor(READ_THREADS)
    try:
        reads = pool.map(lambda path: _hashes(repo, path, sizes[path], fingerprint), paths)
        for number, (digests, locations) in enumerate(reads):
            check()
            parts.append((digests, locations | number << CHUNK_BIT))
    finally:
        pool.shutdown(cancel_futures=True)
    digests = np.concatenate([np.empty((0, 2), np.uint64), *(part for part, _ in parts)])
    locations = np.concatenate([np.empty(0, np.int64), *(part for _, part in parts)])
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    partial_folder = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial_folder.mkdir(parents=True, exist_ok=True)
    np.save(partial_folder / "high.npy", digests[order, 0])
    np.save(partial_folder / "low.npy", digests[order, 1])
    np.save(partial_folder / "location.npy", locations[order])
    (partial_folder / "chunks.json").write_text(json.dumps([(path, sizes[path]) for path in paths]))
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)
    logger.info("%s: %d records of %d chunks can be carried over", repo.name, len(order), len(paths))


def _hashes(repo: Repo, path: str, size: int, fingerprint: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digests (uint64 [N, 2]) of a chunk and their locations in it (int64 [N])."""
    nothing = np.empty((0, 2), np.uint64), np.empty(0, np.int64)

    def read() -> tuple[np.ndarray, np.ndarray]:
        with RangeFile(repo, path, size) as source:
            file = pq.ParquetFile(source)
            said = json.loads((file.metadata.metadata or {}).get(METADATA_KEY, b"{}"))
            if said.get("fingerprint") != fingerprint or HASH not in file.schema_arrow.names:
                return nothing
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            places = [np.arange(rows) | group << GROUP_BIT for group, rows in enumerate(sizes)]
            return _digests(file.read([HASH])[HASH].to_pylist()), np.concatenate([nothing[1], *places])

    return _try(read, path) or nothing


def _digests(hashes: Sequence[str]) -> np.ndarray:
    """Hex digits as uint64 [N, 2]."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), ">u8").reshape(-1, 2).astype(np.uint64)


def _try(read: Callable[[], T], path: str) -> T | None:
    """Read, again after a fault that passes; None where that does not help, which costs time but no record."""
    for left in reversed(range(READ_TRIES)):
        try:
            return read()
        except Exception as error:  # of Parquet, the disk, the Hub or its HTTP library; ValueError: not hex
            fault = diagnose(error)
            if fault.is_fatal or not left:
                logger.warning("%s: %s: its records are computed again", path, fault.text)
                return None
            time.sleep(fault.seconds)
    return None


class CarriedRecords:
    """The records of an index, read by row group. One per process; the index is mapped into memory, not read.

    Rows that were appended, edited or deleted leave the others in order, and each row group is read about once. A shuffled
    source wants records from all of them in each call of `find`: it reads the whole older generation once a call.
    """

    def __init__(self, repo: Repo, folder: Path, columns: Sequence[str]) -> None:
        self.repo, self.columns = repo, [HASH, *columns]
        self.high, self.low, self.location = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("high", "low", "location")
        )
        self.chunks: list[tuple[str, int]] = json.loads((folder / "chunks.json").read_text())
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._broken: set[int] = set()  # chunks

    def find(self, hashes: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Yield (which of `hashes`: int64 [K], their K records) for each row group that holds some of them."""
        which, locations = self._locate(_digests(hashes))
        order = np.argsort(locations, kind="stable")
        which, locations = which[order], locations[order]
        groups, starts = np.unique(locations >> GROUP_BIT, return_index=True)
        for group, start, stop in zip(groups.tolist(), starts, [*starts[1:], len(which)], strict=False):
            part = slice(start, stop)
            table = self._group(group >> (CHUNK_BIT - GROUP_BIT), group & (1 << (CHUNK_BIT - GROUP_BIT)) - 1)
            if table is None:
                continue
            records = table.take(pa.array(locations[part] & (1 << GROUP_BIT) - 1))
            wanted = np.array([hashes[position] for position in which[part]])
            is_same = np.array(records[HASH].to_pylist()) == wanted  # an index may be older than its chunk
            yield which[part][is_same], records.filter(pa.array(is_same))

    def _locate(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which digests (uint64 [N, 2]) the index has, and where."""
        at = np.searchsorted(self.high, digests[:, 0])
        end = len(self.high)
        open_ = np.flatnonzero(at < end)
        found = np.full(len(digests), -1)
        while len(open_):  # once, but where the first halves of two digests are equal
            places = at[open_]
            same = self.high[places] == digests[open_, 0]
            hit = same & (self.low[places] == digests[open_, 1])
            found[open_[hit]] = places[hit]
            open_ = open_[same & ~hit]
            at[open_] += 1
            open_ = open_[at[open_] < end]
        which = np.flatnonzero(found >= 0)
        return which, self.location[found[which]]

    def _group(self, chunk: int, group: int) -> pa.Table | None:
        if chunk in self._broken:
            return None
        key = (chunk, group)
        if key not in self._groups:
            table = _try(partial(self._read, chunk, group), self.chunks[chunk][0])
            if table is None:
                self._broken.add(chunk)
                return None
            while len(self._groups) >= GROUPS_KEPT:
                self._groups.popitem(last=False)
            self._groups[key] = table
        self._groups.move_to_end(key)
        return self._groups[key]

    def _read(self, chunk: int, group: int) -> pa.Table:
        with RangeFile(self.repo, *self.chunks[chunk]) as source:
            table = pq.ParquetFile(source, pre_buffer=True).read_row_group(group, self.columns)
        table.validate(full=True)
        return table
