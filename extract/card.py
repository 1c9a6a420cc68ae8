"""`stillroom card`: the card of an output, made anew from its job and its ledger, committed or only looked at."""

from __future__ import annotations

from pathlib import Path

from builders.job import Job
from builders.layout import Layout
from builders.options import ConfigError
from builders.selection import select
from builders.source import open_source
from builders.units import Units
from cards.preview import render_preview
from cards.writer import CardWriter
from extract.output_job import read_job, read_previous
from extract.plan import open_existing
from extract.settings import Settings
from hub.commit import commit_change
from hub.ledger import Ledger
from hub.opened import DamageError, Opened
from hub.repo import CommitError, Repo


def open_cards(output: str, config_name: str, split: str | None, settings: Settings) -> CardWriter:
    """Return what makes the card of an output: of what readers have, where an update runs.

    A complete output is enough in itself; of a growing one the source is opened, which says how many rows there will be.

    Raises:
        ConfigError: there is no such output, or it holds no job.
    """
    repo = open_existing(output)
    try:
        job = read_job(repo, Layout(config_name))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{output} cannot be read: {error}") from error
    if job is None or (split is not None and job.split != split):
        raise ConfigError(f"{output}: there is no job of stillroom here for configuration {config_name}")
    job = read_previous(repo, job) or job
    layout, there = Layout.of(job), repo.list_files()
    if layout.ledger not in there:
        source = open_source(job, settings.cache)
        num_rows = select(job, source).num_rows
        return CardWriter(repo, job, source.columns, num_rows, len(Units(num_rows, job.chunk_rows or 1)))
    ledger = Ledger(repo, layout.receipts, layout.ledger)
    ledger.load(there)
    num_rows = max((receipt.stop for receipt in ledger.receipts), default=0)
    return CardWriter(repo, job, _carried(repo, job, ledger), num_rows, len(ledger.receipts))


def _carried(repo: Repo, job: Job, ledger: Ledger) -> list[str]:
    """Columns of the source that the records carry, read off a chunk."""
    folder = f"{Layout.of(job).data}/"
    entries = (entry for receipt in ledger.receipts for entry in receipt.files if entry.path.startswith(folder))
    entry = next(entries, None)
    names = Opened.open(repo, entry, deep=False).schema.names if entry else []
    return [own for name, own in (("id", job.id_column), ("dataset_source", job.source_column)) if name in names]


def write_card(output: str, config_name: str, split: str | None, preview: Path | None, settings: Settings) -> str:
    """Commit the card anew, or with `preview` only write it as a page; return what was done.

    Raises:
        ConfigError: see `open_cards`, and `render_preview`.
        CommitError: the output refuses the card.
    """
    try:
        cards = open_cards(output, config_name, split, settings)
    except DamageError as error:
        raise CommitError(f"{output} is damaged: {error}; see stillroom verify") from error
    if preview is None:
        commit_change(cards.repo, cards.again, "Make the card anew", lambda: None)
        return f"{output}: README.md is made anew"
    is_complete = cards.load()
    card = cards.card(is_complete=is_complete)
    assets = card.assets() if is_complete else {}
    page = render_preview(
        cards.render(card, None, is_complete=is_complete),
        cards.load_name,
        lambda path: assets.get(path) or cards.repo.read(path),
    )
    preview.write_text(page)
    return f"{preview}: the card as it would be; {output} is as it was"
