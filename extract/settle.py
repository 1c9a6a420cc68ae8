"""Settling a job: what was left open becomes a value, once, before any model is loaded."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from builders.block import MAX_VOCAB
from builders.engines import SERVERS
from builders.images import row_view
from builders.job import Job
from builders.options import ConfigError
from builders.selection import Selection
from builders.source import Source
from builders.units import Unit
from extract.batching import TokenBudget
from extract.builds import Build
from extract.device import best_dtype, default_device
from extract.engines import Engine
from extract.image_job import settle_images
from extract.model_files import ModelFiles
from extract.stages import batches

logger = logging.getLogger(__name__)

PILOT_ROWS = 48
UNIT_SECONDS = 120.0  # of one worker: what a lost disk costs at most


def settle(job: Job, source: Source, files: ModelFiles, device: str | None) -> Job:
    """Fill in everything but `chunk_rows`: revisions, lengths, pooling, prompt and dtype."""
    _check_columns(job, source)
    job = settle_images(job, files)
    _check_vectors(job, files)
    if job.build == "logits" and files.vocab_size > MAX_VOCAB:
        raise ConfigError(
            f"--model {job.model} knows {files.vocab_size:,} ids: the format holds {MAX_VOCAB:,} at most"
        )
    limit, count = files.max_length, _count(job, source)
    is_chat = job.build == "logits" or count == "chat"
    if job.max_length is not None and job.max_length > limit:
        raise ConfigError(f"--max-length {job.max_length}: the model takes at most {limit} tokens")
    return replace(
        job,
        revision=source.revision,
        model_revision=files.revision,
        max_length=None if job.build == "lengths" else job.max_length or limit,  # lengths are those of whole rows
        pooling=job.pooling or files.pooling,
        normalize=files.modules.is_normalized if job.normalize is None else job.normalize,
        dimensions=job.dimensions or files.truncate_dim,
        modules=files.modules.words if job.build == "embeddings" else (),
        instruction=files.prompt_named(job.prompt_name) if job.instruction is None else job.instruction,
        prompt_name=None,
        dtype=job.dtype or _dtype(job, device),
        count=count,
        chat_template=_chat_template(job),
        template_date=job.template_date or (date.today().isoformat() if is_chat else None),
    )


def _check_vectors(job: Job, files: ModelFiles) -> None:
    """What is asked of the vectors is something that the model's modules can give."""
    modules = files.modules
    if job.build != "embeddings" or job.engine == "fake":
        return
    if job.pooling == "logits-mean":
        if modules.is_static or any(step.kind == "Dense" for step in modules.steps):
            raise ConfigError("--pooling logits-mean: the model has modules of its own behind a pooling")
        return
    if modules.is_static and (job.pooling or "mean", job.layer) != ("mean", -1):
        raise ConfigError(
            f"--pooling {job.pooling} of --layer {job.layer}: a StaticEmbedding has the mean of one layer"
        )
    if modules.words and job.engine == "vllm":
        raise ConfigError(f"--engine vllm does not run what {job.model} has: {', '.join(modules.words)}")
    if not modules.include_prompt and job.engine in SERVERS:
        raise ConfigError(f"--engine {job.engine} pools all tokens, and {job.model} leaves out those of its prompt")
    size = files.size(job.pooling)
    if (job.dimensions or 0) > size:
        raise ConfigError(f"--dimensions {job.dimensions}: the model's vectors have {size}")


def _check_columns(job: Job, source: Source) -> None:
    """A column that is not there is an error now."""
    is_chat = job.build == "logits" or _count(job, source) == "chat"
    if is_chat and job.messages_column not in source.columns:
        known = ", ".join(map(repr, source.columns))
        raise ConfigError(f"--messages-column is {job.messages_column!r}: --source {source.name} has {known}")
    try:
        row_view(job).columns([job.messages_column] if is_chat else source.columns)
    except ValueError as error:
        raise ConfigError(f"--source {source.name}: {error}") from None


def _count(job: Job, source: Source) -> str | None:
    """What a lengths build counts; None of other builds."""
    if job.build != "lengths":
        return None
    return job.count or ("chat" if job.messages_column in source.columns else "text")


def _chat_template(job: Job) -> str | None:
    """The content of a template's file becomes part of the job; a name of one of the tokenizer's stays."""
    given = job.chat_template
    if given is None or "{" in given or not Path(given).suffix:
        return given
    try:
        return Path(given).expanduser().read_text()
    except OSError as error:
        raise ConfigError(f"--chat-template {given}: {error.strerror}") from None


def _dtype(job: Job, device: str | None) -> str:
    """What a server computes in is its own: float32 stands for it, and is what another engine goes on in."""
    is_ours = job.engine in ("transformers", "vllm") and job.build != "lengths"
    return best_dtype(device or default_device()) if is_ours else "float32"


def check_same(asked: Job, stored: Job, output: str) -> None:
    """Refuse a job that differs from the one that the output holds.

    Raises:
        ConfigError: with each option that differs.
    """
    differences = stored.differences(replace(asked, chunk_rows=asked.chunk_rows or stored.chunk_rows))
    if differences:
        is_newer = len(differences) == 1 and differences[0].startswith("revision:")
        raise ConfigError(
            f"{output} holds another job; it differs in {'; '.join(differences)}. "
            + "--update goes on with this revision and computes the rows that differ. Or give" * is_newer
            + "Give" * (not is_newer)
            + " the job that it holds, another --output or --config-name, or --restart to delete it"
        )


def sample_rows(selection: Selection, count: int) -> np.ndarray:
    """Return up to `count` source indices (int64), evenly spread over the selection."""
    positions = np.unique(np.linspace(0, selection.num_rows - 1, min(count, selection.num_rows)).astype(np.int64))
    return np.concatenate([selection.indices(p, p + 1) for p in positions]) if len(positions) else positions


def choose_chunk_rows(job: Job, source: Source, selection: Selection, build: Build, engine: Engine) -> int:
    """Measure a pilot and return the rows of a unit: about `upload_size_mb` per chunk, two minutes at most.

    Rounded to two digits. The pilot runs twice and the second time counts: the first builds kernels.
    """
    unit = Unit(0, 0, min(PILOT_ROWS, max(1, selection.num_rows)))
    rows = list(source.read(sample_rows(selection, unit.num_rows), source.columns))
    budget = TokenBudget(engine.max_batch_tokens)
    for _ in range(2):
        work = build.work(unit)
        started = time.monotonic()
        for batch, results, padded in engine.run(batches(build.samples(rows, work), budget, work), budget):
            work.put(batch.samples, results, padded)
        work.finish()  # rows without a result are no records
        seconds = time.monotonic() - started
    row_bytes = build.row_bytes(work, engine)
    by_size = job.upload_size_mb * 1e6 / row_bytes
    by_time = UNIT_SECONDS * unit.num_rows / max(seconds, 1e-6)
    chosen = two_digits(min(by_size, by_time))
    logger.info("pilot: %.1f rows/s, %d bytes/row: %d rows per chunk", unit.num_rows / seconds, row_bytes, chosen)
    return chosen


def two_digits(number: float) -> int:
    """Round down to two significant digits, at least 1: 8,743 gives 8,700."""
    whole = max(1, int(number))
    step = 10 ** max(0, len(str(whole)) - 2)
    return whole // step * step
