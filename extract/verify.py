"""`stillroom verify`: the plan of an output, from the job that it holds and its source, for hub/verify.py to prove."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from builders.job import Job
from builders.layout import Layout
from builders.options import ConfigError
from builders.selection import select
from builders.source import open_source
from builders.units import Units
from extract.prepare import read_job, read_previous
from extract.settings import Settings
from hub.commit import commit_files
from hub.ledger import Ledger
from hub.repo import Repo, is_folder, open_repo
from hub.verify import PlannedUnit, Problem, Verifier

logger = logging.getLogger(__name__)

SHOWN = 20  # problems in the table; JSON has all


@dataclass(frozen=True)
class Report:
    """What was found, and of how much."""

    output: str
    num_units: int
    num_rows: int
    deep: bool
    problems: Sequence[Problem]

    def to_json(self) -> str:
        """All problems, for programs."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        """A short table for people."""
        how = "all data read" if self.deep else "footers read; --deep reads all data"
        head = f"{self.output}: {self.num_units:,} units of {self.num_rows:,} rows, {how}"
        if not self.problems:
            return f"{head}\nnothing is missing, doubled or damaged"
        lines = [f"  {problem.path}: {problem.what}" for problem in self.problems[:SHOWN]]
        more = [f"  … and {len(self.problems) - SHOWN:,} more"] if len(self.problems) > SHOWN else []
        return "\n".join([head, f"{len(self.problems):,} problems", *lines, *more])


def verify(output: str, config_name: str, split: str, settings: Settings, *, deep: bool) -> tuple[Job, Report]:
    """Prove an output against its source and return its job and what is wrong.

    Raises:
        ConfigError: the output holds no job, or its source has changed.
    """
    repo = open_existing(output)
    layout = Layout(config_name, split)
    job = read_job(repo, layout)
    if job is None:
        raise ConfigError(
            f"{repo.name} has no {layout.job}: it was not made by stillroom, or is another --config-name"
        )
    layout = Layout.of(job)
    previous = read_previous(repo, job)
    if previous is not None:
        logger.info("an update is unfinished: this proves it, at %s; readers have %s", job.revision, previous.revision)
    source = open_source(job, settings.cache)
    if source.revision != job.revision:
        raise ConfigError(
            f"--source {source.name} has changed: it is {source.revision}, and was {job.revision}: "
            "--update goes on with what it is"
        )
    selection = select(job, source)
    assert job.chunk_rows is not None
    units = Units(selection.num_rows, job.chunk_rows)
    planned = [
        PlannedUnit(
            unit.number,
            unit.start,
            unit.stop,
            unit.path(layout.data, layout.split_folder),
            unit.path(layout.skipped, layout.split_folder),
            partial(selection.indices, unit.start, unit.stop),
        )
        for unit in units
    ]
    ledger = Ledger(repo, layout.receipts, layout.ledger)
    ledger.load(repo.list_files())
    folders = [layout.of_split(folder) for folder in (layout.data, layout.skipped)]
    verifier = Verifier(repo, folders, job.fingerprint, job.normalize, ledger.by_start, deep)
    problems = list(verifier.problems(planned))
    return replace(job, output=output), Report(repo.name, len(units), selection.num_rows, deep, problems)


def remove_damaged(job: Job, report: Report) -> None:
    """Take the files of damaged units, and those in excess, out of the output, so that a resumed run computes them."""
    assert job.chunk_rows is not None
    layout, units = Layout.of(job), Units(report.num_rows, job.chunk_rows)
    damaged = {units[problem.unit] for problem in report.problems if problem.unit is not None}
    paths = {unit.path(folder, layout.split_folder) for unit in damaged for folder in (layout.data, layout.skipped)}
    excess = {problem.path for problem in report.problems if problem.unit is None}
    repo = open_existing(str(job.output))
    commit_files(repo, {}, sorted(paths | excess), "Remove damaged chunks", lambda: None)


def open_existing(output: str) -> Repo:
    """Open an output without making it: a proof changes nothing.

    Raises:
        ConfigError: there is no such folder.
    """
    if is_folder(output):
        if not Path(output).expanduser().is_dir():
            raise ConfigError(f"{output}: there is no such folder")
        return open_repo(output, private=True)
    from hub.remote import HubRepo

    return HubRepo(output)
