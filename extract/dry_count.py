"""The plan of a job that a lengths build could count for: teacher logits, or lengths themselves. Loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from builders.job import Job
from builders.lengths_schema import counted
from builders.packing import record_bytes
from builders.row import Row
from builders.selection import Selection
from builders.source import Source
from builders.units import Unit, Units
from extract.builds import ROW_BYTES, LengthsBuild
from extract.lengths import CountedSample, NoEngine
from extract.model_files import ModelFiles
from extract.prepare import open_tokens
from extract.settings import Settings
from extract.settle import UNIT_SECONDS, two_digits
from extract.token_plan import as_cut
from extract.tokens import load_tokenizer

TYPICAL_IDS = 47  # of a token's nucleus with 98 % of the mass: SmolLM2-135M on real chats; larger models have fewer
COMPACT_ID_BYTES = (
    2.0  # all columns, as written: 119 bytes for 61 ids of a nucleus and its samples, 64 for 32 of --select global
)
GLOBAL_IDS = 32  # kept and drawn at a threshold of 1/256, which grows no faster than 1/threshold
TOKENS_PER_SECOND = 10_000  # a round number to scale by


@dataclass(frozen=True)
class Cost:
    """Totals of the whole job; rows are those that give a record. `skipped`: why others give none, in the sample."""

    rows: float
    tokens: float
    captured: float
    cut: float  # of all rows
    skipped: Counter[str]


def dry_count(
    job: Job, source: Source, files: ModelFiles, selection: Selection, rows: Sequence[Row], settings: Settings
) -> str:
    """Return the plan as text, from some rows, or with --lengths from all of them.

    Raises:
        ConfigError: the model has no chat template, or --lengths does not fit.
    """
    cost = sample_cost(job, source, files, rows, selection.num_rows / max(1, len(rows)))
    is_logits = job.build == "logits"
    row_bytes = ROW_BYTES + (logits_bytes(job, cost, typical_ids(job)) / max(1, cost.rows) if is_logits else 0)
    units = Units(selection.num_rows, job.chunk_rows or two_digits(job.upload_size_mb * 1e6 / row_bytes))
    how = f"from {len(rows):,} rows"
    known = open_tokens(job, files, selection, units, settings)
    if known is not None:
        how = f"exact: {settings.lengths}"
        records, tokens, captured = (int(part.sum()) for part in (known.records, known.tokens, known.captured))
        cost = replace(cost, rows=records, tokens=tokens, captured=captured)
    measured = "" if job.chunk_rows else f" at most; a pilot makes a unit {UNIT_SECONDS:.0f} s or less"
    lines = [
        f"source    {source.name} ({job.split}) at {source.revision}",
        f"model     {job.model} at {files.revision}"
        + (f", {job.dtype}" if is_logits else ", of which nothing is run"),
        f"output    {job.output or '(none: --output)'}",
        f"rows      {selection.num_rows:,}, of which {cost.rows:,.0f} give a record",
        f"units     {len(units):,} of {units.chunk_rows:,} rows{measured}",
        f"tokens    {cost.tokens:,.0f} ({how})",
    ]
    if counted(job) == "chat":
        lines.append(f"assistant {cost.captured:,.0f} tokens")
    return "\n".join([*lines, *_sizes(job, cost), *_skipped(cost, len(rows))])


def sample_cost(job: Job, source: Source, files: ModelFiles, rows: Sequence[Row], scale: float) -> Cost:
    """Count a sample as a lengths build does, and cut it as the job does."""
    counting_job = replace(job, build="lengths", count=counted(job), max_length=None)
    build = LengthsBuild(counting_job, source, load_tokenizer(job, files))
    work = build.work(Unit(0, 0, len(rows)))
    for sample in build.samples(rows, work):
        assert isinstance(sample, CountedSample)
        work.put([sample], [sample.counts], sample.num_tokens)
    work.finish()
    table = work.records(build.columns(NoEngine()))
    tokens, captured, is_kept = as_cut(table, job)
    reasons = Counter(reason for _, reason, _ in work.skipped)
    if job.build == "logits":
        reasons.update(why or "no_assistant_token" for why in table["no_mask"].filter(~is_kept).to_pylist())
    cut = (table["num_tokens"].to_numpy() > (job.max_length or 1 << 40)).mean() if len(table) else 0.0
    num_kept, num_tokens, num_captured = (scale * int(part[is_kept].sum()) for part in (is_kept, tokens, captured))
    return Cost(num_kept, num_tokens, num_captured, float(cut), reasons)


def typical_ids(job: Job) -> float:
    """Ids of one token that a small model keeps for certain on real chats; with --select global, those drawn, too."""
    if job.select == "global":
        return min(GLOBAL_IDS / (256 * job.global_threshold), most_ids(job))
    return min(TYPICAL_IDS, job.top_p_max_elements)


def most_ids(job: Job) -> float:
    """Ids of one token at most. Each weighs the threshold at least, and all weights together are 1."""
    return 1 / job.global_threshold if job.select == "global" else job.top_p_max_elements


def logits_bytes(job: Job, cost: Cost, num_ids: float) -> float:
    """Bytes of records with `num_ids` ids a token: before compression, where input_ids and positions are int32, or compact."""
    if job.is_compact:
        return COMPACT_ID_BYTES * (num_ids + (job.num_sampled if job.select == "top-p" else 0)) * cost.captured
    return record_bytes(num_ids * cost.captured, cost.captured, job.num_sampled) + 4 * (cost.tokens + cost.captured)


def _sizes(job: Job, cost: Cost) -> list[str]:
    if job.build == "lengths":
        return [f"bytes     {ROW_BYTES * cost.rows / 1e6:,.1f} MB at most, before compression"]
    typical, most = (logits_bytes(job, cost, ids) / 1e6 for ids in (typical_ids(job), most_ids(job)))
    seconds = cost.tokens / TOKENS_PER_SECOND
    time = f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
    return [
        f"bytes     {typical:,.1f} MB at {typical_ids(job):.0f} ids a token, as a small model has on real chats; at most "
        f"{most:,.1f} MB; {'as written' if job.is_compact else 'before compression'}",
        f"time      {time} of one worker, if it does {TOKENS_PER_SECOND:,} tokens/s",
        f"cut       {cost.cut:.1%} of rows, at {job.max_length} tokens",
    ]


def _skipped(cost: Cost, num_rows: int) -> list[str]:
    return [f"skipped   {count / max(1, num_rows):.1%} of rows: {why}" for why, count in sorted(cost.skipped.items())]
