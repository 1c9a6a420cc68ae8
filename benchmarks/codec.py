"""Teacher logits: packed, stored, and read back, in tokens per second of one core.

The distributions are made up: 26 exact ids in the mean and 16 drawn ones, anywhere in the vocabulary, with noise in the
bits of their logits, which compression would find equal otherwise. The peer is the plain way: ids as int32 and logits as
float32, lists in Parquet as `datasets` writes them, read into numpy arrays.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.table import Row
from builders.job import Job
from builders.logits_schema import LogitsFormat, logits_columns
from builders.packing import pack
from builders.read_logits import read_logits
from builders.schema import arrow_schema
from extract.batching import TokenBudget
from extract.engines.fake import FakeTeacher
from extract.sample import Batch, Sample
from extract.token_logits import TokenLogits
from hub.chunk import write_chunk

VOCAB, CHATS, LENGTH, RUNS = 49_152, 100, 400, 3
GOAL = 1e6  # tokens/s/core, decoded


def teach() -> list[TokenLogits]:
    """Distributions of all chats."""
    ids, targets = list(range(LENGTH + 1)), range(1, LENGTH + 1)
    samples = [Sample(n, 0, ids, index=n, targets=targets) for n in range(CHATS)]
    batch = Batch(None, samples)  # type: ignore[arg-type]
    engine = FakeTeacher(Job(build="logits"), VOCAB)
    return [scattered(one) for _, found, _ in engine.run([batch], TokenBudget(10**6)) for one in found]


def scattered(one: TokenLogits) -> TokenLogits:
    """The same with ids all over the vocabulary, another way for each token, and with noise."""
    draw = np.random.default_rng(0)
    factors, shifts = 2 * draw.integers(VOCAB // 2, size=LENGTH) + 1, draw.integers(VOCAB, size=LENGTH)
    tokens = np.repeat(np.arange(LENGTH), one.counts)
    nucleus = (one.nucleus_ids * factors[tokens] + shifts[tokens]) % VOCAB
    sampled = np.sort((one.sampled_ids * factors[:, None] + shifts[:, None]) % VOCAB, axis=1)
    noise = [draw.random(part.shape, np.float32) / 2 for part in (one.nucleus_logits, one.sampled_logits)]
    return replace(
        one,
        nucleus_ids=nucleus.astype(np.int32),
        nucleus_logits=one.nucleus_logits + noise[0],
        sampled_ids=sampled.astype(np.int32),
        sampled_logits=one.sampled_logits + noise[1],
    )


def packed(found: list[TokenLogits]) -> pa.Table:
    """Records, as a chunk has them."""
    form, ids = LogitsFormat("default", VOCAB, "", 16), np.arange(LENGTH + 1, dtype=np.int32)
    records = [
        {"index": n, "num_tokens": LENGTH}
        | pack(
            *(one.nucleus_ids, one.nucleus_logits, one.counts, one.logsumexp, one.sampled_ids, one.sampled_logits),
            vocab_size=VOCAB,
            input_ids=ids,
            positions=ids[1:],
        )
        for n, one in enumerate(found)
    ]
    table = pa.Table.from_pylist(records, schema=arrow_schema(logits_columns(form)))
    return table.replace_schema_metadata(table.schema.metadata | form.to_metadata())


def plain(found: list[TokenLogits]) -> pa.Table:
    """The same as lists of numbers."""
    ids = [np.concatenate([one.nucleus_ids, one.sampled_ids.ravel()]) for one in found]
    logits = [np.concatenate([one.nucleus_logits, one.sampled_logits.ravel()]) for one in found]
    columns = {"ids": ids, "logits": logits, "counts": [one.counts.astype(np.int32) for one in found]}
    columns |= {"logsumexp": [one.logsumexp for one in found]}
    return pa.table({name: pa.array([list(value) for value in values]) for name, values in columns.items()})


def read_plain(path: Path) -> None:
    """Lists of numbers as flat numpy arrays."""
    for batch in pq.ParquetFile(path).iter_batches(use_threads=False):
        for column in batch.columns:
            column.flatten().to_numpy()


def read_packed(path: Path) -> None:
    """Decode in batches."""
    for _ in read_logits(pq.ParquetFile(path), None):
        pass


def rate(work: Callable[[], object]) -> float:
    """Tokens per second of processor time."""
    start = time.process_time()
    work()
    return CHATS * LENGTH / (time.process_time() - start)


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    found = teach()
    table, ours, theirs, packing = packed(found), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("ours.parquet", "plain.parquet")]
        write_chunk(paths[0], table, {})
        Dataset(plain(found)).to_parquet(str(paths[1]))
        for number in range(RUNS + 1):
            rates = (
                rate(lambda: packed(found)),
                rate(lambda: read_packed(paths[0])),
                rate(lambda: read_plain(paths[1])),
            )
            if number:
                for values, value in zip((packing, ours, theirs), rates, strict=True):
                    values.append(value)
        sizes = [path.stat().st_size / CHATS / LENGTH for path in paths]
    yield Row("logits packed", "tokens/s/core", packing, note="and made into an Arrow table")
    yield Row("logits decoded from Parquet", "tokens/s/core", ours, goal=GOAL)
    yield Row("logits decoded from Parquet", "tokens/s/core", ours, theirs, "plain lists")
    yield Row("logits stored", "bytes a token", sizes[:1], sizes[1:], "plain lists", is_less=True)
