"""The ranges of int8 vectors: measured once per dataset, in front of its first chunk, and the same in all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from builders.job import Job
from builders.layout import Layout
from builders.quantize import VectorFormat, calibrate, ranges_from_bytes, ranges_to_bytes
from builders.selection import select
from builders.source import Source
from builders.units import Unit
from extract.batching import TokenBudget
from extract.builds import Build
from extract.engines import Engine
from extract.settle import sample_rows
from extract.stages import batches
from extract.stop import Stop
from extract.tables import stored_table
from hub.repo import Repo
from hub.verify import Problem

logger = logging.getLogger(__name__)

ROWS = 1024  # of which ranges are taken; about one value in a thousand of the others then lies outside, on either side


def vector_ranges(
    repo: Repo, job: Job, source: Source, opened: Callable[[], tuple[Build, Engine]], stop: Stop
) -> bytes:
    """Return the dataset's one file of ranges, measured where there is none yet; empty for a job without.

    Raises:
        ConfigError: the one in the output is damaged, or gone.
    """
    if job.build != "embeddings" or job.storage_dtype != "int8":
        return b""
    path = Layout.of(job).ranges
    make = lambda: ranges_to_bytes(measure(job, source, *opened(), stop))  # noqa: E731
    return stored_table(repo, job, path, make, ranges_from_bytes, stop)


def measure(job: Job, source: Source, build: Build, engine: Engine, stop: Stop) -> np.ndarray:
    """Run rows of all parts of the source through the model and return the ranges of their vectors, float32 [2, D]."""
    indices = sample_rows(select(job, source), ROWS)
    work = build.work(Unit(0, 0, len(indices)))
    budget = TokenBudget(engine.max_batch_tokens)
    rows = source.read(indices, build.needed_columns)
    parts = [np.zeros((0, engine.dimension), np.float32)]
    for _, vectors, _ in engine.run(batches(build.samples(rows, work), budget, work), budget):
        stop.check_late()
        parts.append(vectors)
    vectors = np.concatenate(parts)
    logger.info("ranges of int8 vectors, from %d vectors of %d rows", len(vectors), len(indices))
    return calibrate(vectors) if len(vectors) else np.zeros((2, engine.dimension), np.float32)


def wrong_ranges(repo: Repo, job: Job, metadata: Mapping[bytes, bytes]) -> Iterator[Problem]:
    """Say whether the output's file of ranges is not that of its chunks, as most of them have it in `metadata`."""
    wanted = ranges_of_chunks(job, metadata)
    path = Layout.of(job).ranges
    if wanted is not None and (held := repo.read(path)) != wanted:
        yield Problem(path, "missing" if held is None else "has not the ranges of the chunks", None, "table")


def ranges_of_chunks(job: Job, metadata: Mapping[bytes, bytes]) -> bytes | None:
    """The file of ranges as chunks have it, each in its own metadata; None where there is no chunk, or they need none."""
    if job.build != "embeddings" or job.storage_dtype != "int8":
        return None
    try:
        ranges = VectorFormat.from_metadata(metadata).ranges
    except (ValueError, KeyError):
        return None
    return None if ranges is None else ranges_to_bytes(ranges)
