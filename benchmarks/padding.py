"""Padding: tokens that a padded model runs for each token of text, with our batches and with others.

Token lengths are MiniLM's of generated demo chats, at most 256; three units of 8,192 rows are drawn from them. (On a CPU our
engine needs no padding at all.)
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.table import Row
from builders.demo import write_demo
from builders.job import Job
from extract.batching import TokenBudget, token_batches
from extract.model_files import read_model_files
from extract.sample import Sample
from extract.tokens import TextTokenizer, load_tokenizer
from tests.runs import MINILM

FIXED, BUDGET, UNITS, UNIT_ROWS, DEMO_ROWS, MAX_LENGTH = 32, 16_384, 3, 8192, 1000, 256
GOAL = 2.0  # % of the tokens that are run


def token_samples(num_rows: int) -> list[Sample]:
    """Texts of demo chats as token ids."""
    job = Job(model=MINILM)
    tokenizer = TextTokenizer(load_tokenizer(job, read_model_files(job)), MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        chats = pq.read_table(write_demo(Path(folder) / "demo.parquet", num_rows)).to_pylist()
    texts = [text for chat in chats for text in job.view.render(chat)]
    return [Sample(n, 0, ids) for n, (ids, _) in enumerate(tokenizer.encode(texts))]


def fixed(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Batches of 32 in the order of the rows."""
    return (samples[start : start + FIXED] for start in range(0, len(samples), FIXED))


def run_per_token(batches: Iterable[Sequence[Sample]]) -> float:
    """Tokens that a model runs, each text as long as the longest of its batch, per token of text."""
    run = texts = 0
    for batch in batches:
        lengths = [sample.num_tokens for sample in batch]
        run, texts = run + len(lengths) * max(lengths), texts + sum(lengths)
    return run / texts


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    samples, draw = token_samples(DEMO_ROWS), random.Random(0)
    parts = [draw.choices(samples, k=UNIT_ROWS) for _ in range(UNITS)]
    ours = [run_per_token(token_batches(part, TokenBudget(BUDGET))) for part in parts]
    by_length = [sorted(part, key=lambda sample: -sample.num_tokens) for part in parts]
    yield Row("padding, our batches", "%", [100 * (1 - 1 / run) for run in ours], goal=GOAL, is_less=True)
    unit = "run per token"
    in_order = [run_per_token(fixed(part)) for part in parts]
    yield Row("padding", unit, ours, in_order, f"batches of {FIXED} in order", is_less=True)
    in_length = [run_per_token(fixed(part)) for part in by_length]
    yield Row("padding", unit, ours, in_length, f"batches of {FIXED} by length", is_less=True)
