"""Chunks: how fast Parquet is written and read, and how many bytes it takes, beside what `datasets` writes by default.

The table has 20,000 records of 384 float32 values with ids, sources and hashes, as an embeddings build makes them. Ours is
also hashed and flushed to the disk. `Dataset.to_parquet` has the settings that `push_to_hub` uses. Rates are in MB of Arrow
memory per CPU second, as the disk is shared with whatever else runs. Both are read by pyarrow on one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.table import Row
from hub.chunk import write_chunk

ROWS, DIMENSION, RUNS = 20_000, 384, 5
PEER = "`Dataset.to_parquet`"


def records(seed: int) -> pa.Table:
    """Records whose vectors are random directions: what is left to compress are exponents."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((ROWS, DIMENSION), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {
        "index": pa.array(np.arange(ROWS)),
        "id": pa.array([f"chat-{n}" for n in range(ROWS)]),
        "dataset_source": pa.array([f"source-{n % 16}" for n in range(ROWS)]),
        "content_hash": pa.array([draw.bytes(16).hex() for _ in range(ROWS)]),
        "num_tokens": pa.array(draw.integers(5, 256, ROWS, np.int32)),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION),
    }
    return pa.table(columns)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    writing, reading, size = ([], []), ([], []), ([], [])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("ours.parquet", "theirs.parquet")]
        for seed in range(RUNS + 1):
            table = records(seed)
            dataset = Dataset(table)
            writes = (lambda: write_chunk(paths[0], table, {}), lambda: dataset.to_parquet(str(paths[1])))  # noqa: B023
            for side, (path, write) in enumerate(zip(paths, writes, strict=True)):
                written = cpu_seconds(write)
                read = cpu_seconds(lambda path=path: pq.read_table(path, use_threads=False))
                if seed:  # the first fills caches
                    writing[side].append(table.nbytes / written / 1e6)
                    reading[side].append(table.nbytes / read / 1e6)
                    size[side].append(path.stat().st_size / ROWS)
    yield Row("chunk written", "MB/CPU s", *writing, PEER, note="ours with SHA-256 and flush")
    yield Row("chunk read", "MB/CPU s", *reading, PEER, goal=1.0)
    yield Row("chunk size", "bytes a row", *size, PEER, goal=1.0, is_less=True)
