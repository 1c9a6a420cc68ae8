"""The tokens of each unit, known ahead from a lengths dataset: for the order of units, the time that is left, and dry runs.

Longest first is all that lengths do to the order. It ends 1.26x to 1.01x of the ideal time where row order goes with
length (137 units by 8 workers), and changes 2 % either way where it does not. Units stay ranges of rows, whatever their
lengths are: units of rows of near-equal length would save 6 % of padded tokens at 2,000 rows and 32,768 tokens a batch,
and 2 % in one window of 13,660 rows, and would tie the names of chunks to one tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.job import Job
from builders.job_files import stored_job
from builders.layout import Layout
from builders.lengths import captured_tokens
from builders.lengths_schema import counting, from_metadata
from builders.options import ConfigError
from builders.selection import Selection
from builders.units import Units

READ_THREADS = 16

Array = np.ndarray[Any, Any]


class Files(Protocol):
    """An output to read, as of hub/repo.py."""

    name: str

    def list_files(self) -> dict[str, int]:
        """Sizes by path."""

    def read(self, path: str, revision: str | None = None) -> bytes | None:
        """Content of a file."""


@dataclass(frozen=True)
class TokenPlan:
    """What the model will see of each of U units (int64 [U] each), as the job cuts it.

    `captured` are the assistant's tokens, `records` the rows that give a record; all others will be skipped.
    """

    tokens: Array
    captured: Array
    records: Array

    def left(self, todo: Any) -> int:
        """Tokens of some units."""
        return int(self.tokens[np.asarray(todo, np.int64)].sum())


def read_token_plan(files: Files, job: Job, tokenizer: Any, selection: Selection, units: Units) -> TokenPlan:
    """Read the lengths dataset in `files` for a settled job.

    Raises:
        ConfigError: it is none, is not complete, or counts other rows, or otherwise than the job does.
    """
    layout = Layout.of(_check_job(files, job))
    plan = TokenPlan(*(np.zeros(len(units), np.int64) for _ in range(3)))
    seen = np.zeros(len(units), np.int64)
    own = counting(job, tokenizer)
    for path, table in _tables(files, layout):
        rows, is_mine = _positions(table["index"].to_numpy(), selection)
        numbers = rows[is_mine] // units.chunk_rows
        np.add.at(seen, numbers, 1)
        if path.startswith(layout.data):
            _check_counting(files.name, from_metadata(table.schema.metadata), own)
            tokens, captured, gives_record = as_cut(table, job)
            mine = is_mine & gives_record
            numbers = rows[mine] // units.chunk_rows
            np.add.at(plan.tokens, numbers, tokens[mine])
            np.add.at(plan.captured, numbers, captured[mine])
            np.add.at(plan.records, numbers, 1)
    if (missing := selection.num_rows - int(seen.sum())) > 0:
        raise ConfigError(
            f"--lengths {files.name} lacks {missing:,} of {selection.num_rows:,} rows: complete it first"
        )
    return plan


def _check_job(files: Files, job: Job) -> Job:
    if job.image_column:
        raise ConfigError("--lengths tells nothing of images: it does not go with --image-column")
    content = files.read(Layout(split=job.split).job)
    lengths = None if content is None else stored_job(json.loads(content)["job"])
    if lengths is None or lengths.build != "lengths":
        what = "no stillroom dataset" if lengths is None else f"a dataset of {lengths.build}"
        raise ConfigError(f"--lengths {files.name} is {what}: make one with --build lengths")
    for name in ("revision", "split", "source_config"):
        mine, theirs = getattr(job, name), getattr(lengths, name)
        if mine != theirs:
            raise ConfigError(
                f"--lengths {files.name} is of another {name.replace('_', ' ')} of the source, {theirs!r}, and this job of "
                f"{mine!r}: make lengths of it with --build lengths"
            )
    return lengths


def _check_counting(name: str, theirs: Mapping[str, str], own: Mapping[str, str]) -> None:
    if theirs.get("count") != own["count"]:
        raise ConfigError(f"--lengths {name} counts {theirs.get('count')}: this build needs --count {own['count']}")
    if different := [fact for fact in own if theirs.get(fact) != own[fact]]:
        raise ConfigError(
            f"--lengths {name} counts otherwise than this job: another {', '.join(different)}; make lengths with the same"
        )


def _tables(files: Files, layout: Layout) -> Iterator[tuple[str, pa.Table]]:
    """Yield the chunks of records and of skipped rows; a chunk of records has 9 bytes a row."""
    folders = tuple(f"{layout.of_split(folder)}/" for folder in (layout.data, layout.skipped))
    paths = sorted(path for path in files.list_files() if path.startswith(folders) and path.endswith(".parquet"))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for path, content in zip(paths, pool.map(files.read, paths), strict=True):
            if content is not None:
                yield path, pq.read_table(pa.BufferReader(content))


def _positions(index: Array, selection: Selection) -> tuple[Array, Array]:
    """Return the position of each source index in a selection, and whether it is in it."""
    if selection.chosen is None:
        return index, index < selection.num_rows
    rows = np.minimum(np.searchsorted(selection.chosen, index), max(0, selection.num_rows - 1))
    return rows, (selection.chosen[rows] == index) if selection.num_rows else np.zeros(len(index), bool)


def as_cut(table: pa.Table, job: Job) -> tuple[Array, Array, Array]:
    """Return tokens, captured tokens (int64), and whether there is a record, of each row of lengths as the job cuts it."""
    limit = job.max_length or np.iinfo(np.int32).max
    if "assistant_runs" in table.column_names:
        runs = table["assistant_runs"].combine_chunks()
        borders = runs.offsets.to_numpy() - runs.offsets[0].as_py()
        captured = captured_tokens(runs.flatten().to_numpy(), borders, limit)
        is_kept = captured > 0 if job.build == "logits" else np.ones(len(captured), bool)
        return np.minimum(table["num_tokens"].to_numpy(), limit).astype(np.int64), captured, is_kept
    names = [f"{name}_tokens" for name in job.fields] or ["num_tokens"]
    tokens = sum(np.minimum(table[name].to_numpy(), limit).astype(np.int64) for name in names)
    assert isinstance(tokens, np.ndarray)
    return tokens, np.zeros_like(tokens), np.ones(len(tokens), bool)
