"""Sources: rows streamed from Parquet beside `datasets`, and the plan of a source of 100 M rows.

The large source is 1,000 files of 100,000 rows in row groups of 1,000, with one trivial column: what planning reads of a
source are its footers. Planning runs as a build does it, up to the list of units that are left.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.table import Row, seconds
from builders.demo import write_demo
from builders.job import Job
from builders.source import open_source
from extract.prepare import prepare
from extract.settings import Settings
from extract.stop import Stop
from extract.world import World
from tests.runs import MINILM

RUNS, DEMO_ROWS, DEMO_TIMES = 3, 2400, 8
FILES, FILE_ROWS, GROUP_ROWS = 1000, 100_000, 1000
PLAN_SECONDS, PLAN_MB = 30.0, 500.0


def streaming_rows(folder: Path) -> Iterator[Row]:
    """Rows with all their columns as Python objects, in order."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    chats = pq.read_table(write_demo(folder / "demo.parquet", DEMO_ROWS))
    path = folder / "chats.parquet"
    pq.write_table(pa.concat_tables([chats] * DEMO_TIMES), path, row_group_size=1000)
    num_rows = DEMO_ROWS * DEMO_TIMES

    def ours() -> None:
        source = open_source(Job(source=str(path)), folder)
        assert sum(1 for _ in source.read(np.arange(num_rows), source.columns)) == num_rows

    def theirs() -> None:
        stream = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        assert sum(1 for _ in stream) == num_rows

    rates = [[num_rows / seconds(side) for side in (ours, theirs)] for _ in range(RUNS + 1)][1:]
    mine, others = zip(*rates, strict=True)
    yield Row("source streamed", "rows/s", mine, others, "`load_dataset(streaming=True)`", goal=1.0)


def large_source(folder: Path) -> Path:
    """Write 100 M rows."""
    folder.mkdir()
    first = folder / "part-0000.parquet"
    table = pa.table({"text": pa.array(["yes"] * FILE_ROWS)})
    pq.write_table(table, first, row_group_size=GROUP_ROWS)
    for number in range(1, FILES):
        shutil.copyfile(first, folder / f"part-{number:04}.parquet")
    return folder


def peak_mb() -> float:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan_rows(folder: Path) -> Iterator[Row]:
    """The plan of 100 M rows in units of 20,000."""
    source = large_source(folder / "large")

    def plan(number: int) -> None:
        job = Job(source=str(source), model=MINILM, engine="fake", chunk_rows=20_000, output=str(folder / f"{number}"))
        settings = Settings(resume=True, cache_dir=str(folder / "cache" / f"{number}"))
        session = prepare(job, settings, World(), Stop(None))
        assert len(session.plan.todo) == FILES * FILE_ROWS // 20_000

    before = peak_mb()
    taken = [seconds(lambda number=number: plan(number)) for number in range(RUNS)]
    yield Row("plan of 100 M rows in 1,000 files", "s", taken, goal=PLAN_SECONDS, is_less=True)
    yield Row("memory of that plan", "MB", [peak_mb() - before], goal=PLAN_MB, is_less=True)


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        yield from plan_rows(Path(folder))
        yield from streaming_rows(Path(folder))
