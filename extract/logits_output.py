"""An output of a logits build, opened to be read: a folder or a Hub dataset, whole or still growing."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builders.job import Job
from builders.layout import Layout
from builders.logits_schema import LogitsFormat
from builders.options import ConfigError
from builders.packing import Logits
from builders.rank_table import RankTable
from builders.read_logits import LogitsBatch, read_batch, read_logits
from extract.output_job import read_job, read_previous
from extract.verify import open_pinned
from hub.pending import Entry
from hub.ranges import RangeFile
from hub.repo import Repo

NUM_UNITS = re.compile(r"% of ([\d,]+) chunks are here")  # in a card


@dataclass(frozen=True)
class Found:
    """One record: what stands beside its distributions, and those."""

    about: dict[str, Any]  # index, id, dataset_source, …: the columns of one value
    path: str
    logits: Logits


@dataclass(frozen=True)
class LogitsOutput:
    """What readers have of an output: while an update runs, the dataset before it."""

    repo: Repo
    revision: str | None
    job: Job
    layout: Layout
    chunks: list[Entry]  # in order of their rows
    is_complete: bool
    form: LogitsFormat
    ranks: RankTable | None

    @classmethod
    def open(cls, output: str, config_name: str = "default") -> LogitsOutput:
        """Find the job, the chunks and what decodes them.

        Raises:
            ConfigError: there is no such output, it is no logits dataset, or it holds no chunk yet.
            OSError, RuntimeError: the output does not answer.
        """
        repo, revision = open_pinned(output)
        job = read_job(repo, Layout(config_name))
        if job is None:
            where = Layout(config_name).job
            raise ConfigError(f"{repo.name} has no {where}: it was not made by stillroom, or is another --config-name")
        if job.build != "logits":
            raise ConfigError(f"{repo.name} holds {job.build}: explore shows datasets of --build logits")
        job = read_previous(repo, job) or job
        layout, files = Layout.of(job), repo.list_entries()
        prefix = f"{layout.of_split(layout.data)}/"
        chunks = [files[path] for path in sorted(files) if path.startswith(prefix) and path.endswith(".parquet")]
        if not chunks:
            raise ConfigError(f"{repo.name} holds no record yet: run its job again with --resume")
        with opened(repo, chunks[0]) as file:
            try:
                form = LogitsFormat.from_metadata(file.schema_arrow.metadata)
            except ValueError as error:
                raise ConfigError(f"{repo.name}: {chunks[0].path}: {error}") from None
        ranks = read_ranks(repo, layout, form)
        return cls(repo, revision, job, layout, chunks, layout.ledger in files, form, ranks)

    @property
    def state(self) -> str:
        """How complete it is, by its card."""
        if self.is_complete:
            return "complete"
        card = (self.repo.read("README.md") or b"").decode(errors="replace")
        found = NUM_UNITS.search(card)
        return f"growing: {len(self.chunks):,} {f'of {found[1]} ' if found else ''}chunks are here"

    def batches(self, rows: int | None = None) -> Iterator[tuple[LogitsBatch, float]]:
        """Yield batches in order of index, with their bytes as they are stored; the first `rows` records, or all."""
        left = rows
        for chunk in self.chunks:
            with opened(self.repo, chunk) as file:
                size = chunk.size / max(1, file.metadata.num_rows)
                for batch in read_logits(file, self.ranks):
                    part = batch if left is None else batch.head(left)
                    yield part, len(part) * size
                    left = None if left is None else left - len(part)
                    if left == 0:
                        return

    def find(self, *, index: int | None = None, id: str | None = None) -> Found:
        """Return the record of an index, or the first of an id.

        Raises:
            ConfigError: there is none.
        """
        if index is not None:
            found = self._search([self._chunk_of(index)], "index", index)
            what = f"--sample {index}: no row of that index"
        else:
            found = self._search(self.chunks, "id", id)
            what = f"--id {id!r}: no row of that id"
        if found is None:
            first, last = self._bounds(0)[0], self._bounds(len(self.chunks) - 1)[1]
            raise ConfigError(
                f"{what} in {self.repo.name}, whose indices go from {first} to {last}; some were skipped"
            )
        return found

    def some_indices(self, number: int) -> list[int]:
        """Indices from all over the dataset, at most `number`."""
        out = []
        for place in range(number):
            share = (place + 0.5) / number * len(self.chunks)
            with opened(self.repo, self.chunks[int(share)]) as file:
                indices = file.read(columns=["index"])["index"]
                out.append(indices[int((share % 1) * len(indices))].as_py())
        return sorted(set(out))

    def _search(self, chunks: list[Entry], name: str, value: Any) -> Found | None:
        for chunk in chunks:
            with opened(self.repo, chunk) as file:
                if name not in file.schema_arrow.names:
                    raise ConfigError(f"--{name}: {self.repo.name} has no column {name!r}")
                for group in range(file.num_row_groups):
                    keys = file.read_row_group(group, columns=[name])[name]
                    row = pc.index(keys, pa.scalar(value, keys.type)).as_py()
                    if row >= 0:
                        (record,) = file.read_row_group(group).slice(row, 1).combine_chunks().to_batches()
                        names = [n for n in record.schema.names if not is_nested(record.schema.field(n).type)]
                        about = {n: record[n][0].as_py() for n in names}
                        return Found(about, chunk.path, read_batch(record, self.ranks).record(0))
        return None

    def _chunk_of(self, index: int) -> Entry:
        """The chunk that can hold an index: chunks are in order, and their footers name the least and greatest of each."""
        place = bisect_right(range(len(self.chunks)), index, key=lambda number: self._bounds(number)[0])
        return self.chunks[max(0, place - 1)]

    def _bounds(self, number: int) -> tuple[int, int]:
        if number not in self._known_bounds:
            with opened(self.repo, self.chunks[number]) as file:
                column = file.schema_arrow.names.index("index")
                groups = [file.metadata.row_group(g).column(column).statistics for g in range(file.num_row_groups)]
                self._known_bounds[number] = (min(g.min for g in groups), max(g.max for g in groups))
        return self._known_bounds[number]

    @cached_property
    def _known_bounds(self) -> dict[int, tuple[int, int]]:
        return {}


def read_ranks(repo: Repo, layout: Layout, form: LogitsFormat) -> RankTable | None:
    """Return the rank table that compact records need; None for default ones.

    Raises:
        ConfigError: it is not there, or is not the one that they were packed with.
    """
    if form.encoding != "compact":
        return None
    content = repo.read(layout.ranks)
    try:
        ranks = RankTable.from_bytes(content) if content is not None else None
        form.check_ranks(ranks)
    except ValueError as error:
        raise ConfigError(f"{repo.name}: {error}") from None
    return ranks


def is_nested(type_: pa.DataType) -> bool:
    """Whether a column holds more than one value of a record."""
    return pa.types.is_list(type_) or pa.types.is_binary(type_)


@contextmanager
def opened(repo: Repo, chunk: Entry) -> Iterator[pq.ParquetFile]:
    """Open a chunk to be read in ranges.

    Raises:
        RuntimeError: it is no Parquet file.
    """
    with RangeFile(repo, chunk.path, chunk.size) as source:
        try:
            yield pq.ParquetFile(source, pre_buffer=True)
        except pa.ArrowInvalid as error:
            line = " ".join(str(error).split())[:100]
            raise RuntimeError(f"{repo.name}: {chunk.path} cannot be read: {line}; `stillroom verify`") from error
