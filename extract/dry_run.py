"""The plan of a job, from a sample of its rows and the real tokenizer. Loads no model and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from builders.images import row_view
from builders.job import Job
from builders.quantize import BYTES
from builders.row import Row, RowError
from builders.selection import select
from builders.source import Source, open_source
from builders.text import PLAN_VIEWS, TextView
from builders.units import Units
from extract.builds import ROW_BYTES
from extract.dry_count import dry_count
from extract.model_files import ModelFiles, read_model_files
from extract.prepare import open_tokens
from extract.processor import VisionProcessor, load_processor
from extract.settings import Settings
from extract.settle import UNIT_SECONDS, sample_rows, settle, two_digits
from extract.tokens import TextTokenizer, load_text_tokenizer

SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class ViewCost:
    """Tokens of a text view over the sample, before and after cutting."""

    name: str
    num_rows: int  # of the sample
    tokens: int
    tokens_kept: int
    num_truncated: int
    num_empty: int


def dry_run(asked: Job, settings: Settings) -> str:
    """Return the plan as text: rows, units, tokens, bytes, share truncated, and what other text views would cost.

    Raises:
        ConfigError: the job cannot be run.
    """
    source, files = open_source(asked, settings.cache), read_model_files(asked)
    job = settle(asked, source, files, "cpu")
    selection = select(job, source)
    rows = list(source.read(sample_rows(selection, SAMPLE_ROWS), source.columns))
    if job.build != "embeddings":
        return dry_count(job, source, files, selection, rows, settings)
    views = _views(job, source, files, rows)
    mine = views[0]
    dimension = min(job.dimensions or 10**9, files.size(job.pooling))
    row_bytes = ROW_BYTES + dimension * BYTES[job.storage_dtype] * max(1, len(job.fields))
    scale = selection.num_rows / max(1, len(rows))
    chunk_rows = job.chunk_rows or two_digits(job.upload_size_mb * 1e6 / row_bytes)
    units = Units(selection.num_rows, chunk_rows)
    known = open_tokens(job, files, selection, units, settings)
    tokens = f"{mine.tokens_kept * scale:,.0f}, from {len(rows):,} rows with the real tokenizer"
    if known is not None:
        tokens = f"{known.tokens.sum():,}, of {known.records.sum():,} rows that give a record"
    measured = "" if job.chunk_rows else f" at most; a pilot makes a unit {UNIT_SECONDS:.0f} s or less"
    lines = [
        f"source    {source.name} ({job.split}) at {source.revision}",
        f"model     {job.model} at {files.revision}, {dimension} dimensions, {job.pooling} pooling, {job.dtype}",
        f"output    {job.output or '(none: --output)'}",
        f"rows      {selection.num_rows:,}",
        f"units     {len(units):,} of {chunk_rows:,} rows{measured}",
        f"tokens    {tokens}",
        f"bytes     {selection.num_rows * row_bytes / 1e6:,.1f} MB of vectors",
        f"cut       {mine.num_truncated / max(1, mine.num_rows):.1%} of rows, at {job.max_length} tokens",
        f"empty     {mine.num_empty / max(1, mine.num_rows):.1%} of rows",
        "",
        f"{'text view':<12}{'tokens':>16}{'at most ' + str(job.max_length):>20}{'cut':>8}{'empty':>8}",
    ]
    return "\n".join(lines + [_line(view, scale) for view in views])


def _views(job: Job, source: Source, files: ModelFiles, rows: Sequence[Row]) -> list[ViewCost]:
    """What the job's own view of the rows costs, and what others of their texts would."""
    if job.image_column:
        return [image_cost("this job", rows, job, load_processor(job, files))]
    views = {"this job": job.view}
    if job.messages_column in source.columns:
        views |= {n: replace(job.view, template=t, fields=(), system=False) for n, t in PLAN_VIEWS.items()}
    tokenizer = load_text_tokenizer(job, files)
    return [cost(name, rows, view, tokenizer) for name, view in views.items()]


def _line(view: ViewCost, scale: float) -> str:
    rows = max(1, view.num_rows)
    return (
        f"{view.name:<12}{view.tokens * scale:>16,.0f}{view.tokens_kept * scale:>20,.0f}"
        f"{view.num_truncated / rows:>8.1%}{view.num_empty / rows:>8.1%}"
    )


def image_cost(name: str, rows: Sequence[Row], job: Job, processor: VisionProcessor) -> ViewCost:
    """Count the sample in full, from the headers of its images; what is no image counts as empty."""
    view, counts = row_view(job), []
    for row in rows:
        try:
            (text,) = view.render(row.data)
            sample = processor.sample(0, text)
            counts.append((processor.count(text), sample.num_tokens, sample.truncated))
        except RowError:
            continue
    tokens, kept, truncated = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    return ViewCost(name, len(rows), tokens, kept, truncated, len(rows) - len(counts))


def cost(name: str, rows: Sequence[Row], view: TextView, tokenizer: TextTokenizer) -> ViewCost:
    """Tokenise a view of the sample in full."""
    tokens = tokens_kept = num_truncated = num_empty = 0
    for row in rows:
        try:
            texts = [text for text in view.render(row.data) if text.text]
        except RowError:
            num_empty += 1
            continue
        encoded = tokenizer.encode(texts)
        tokens += sum(tokenizer.counts(texts))
        tokens_kept += sum(len(ids) for ids, _ in encoded)
        num_truncated += any(truncated for _, truncated in encoded)
    return ViewCost(name, len(rows), tokens, tokens_kept, num_truncated, num_empty)
