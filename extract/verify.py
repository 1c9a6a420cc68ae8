"""`stillroom verify`: the plan of an output, from the job that it holds and its source, for hub/verify.py to prove.

`--json` prints one object, whose keys stay:

    output, num_units, num_rows, deep   what was looked at, and whether all data was read
    revision                            the commit of the Hub that was; null for a folder
    is_complete                         the output has its last card and ledger, and no unit is missing
    missing     [{unit, start, stop}]   units of a growing output that are not there yet: `--resume` computes them
    problems    [{path, what, unit, repair}]   what is wrong; `repair` is what `--repair` does about it: compute (the unit
                                        again), delete (the file; unit is null), receipt (write it from the files) or
                                        table (make the rank table again; units that were packed with another, too; or
                                        write the ranges of int8 vectors from those that every chunk has)
    repaired    the problems that `--repair` found before it mended them; empty without it
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow as pa

from builders.job import Job
from builders.layout import Layout
from builders.lengths_schema import wrong_lengths
from builders.options import ConfigError
from builders.selection import Selection, select
from builders.source import open_source
from builders.units import Units
from builders.wrong_logits import wrong_logits
from builders.wrong_quantized import wrong_quantized
from extract.calibrate import wrong_ranges
from extract.output_job import read_job, read_previous
from extract.plan import open_existing
from extract.ranks import wrong_table
from extract.settings import Settings
from hub.ledger import Ledger
from hub.opened import wrong_vectors
from hub.repo import CommitError, Repo, is_folder
from hub.verify import PlannedUnit, Problem, Verifier

logger = logging.getLogger(__name__)

SHOWN = 20  # problems in the table; JSON has all


@dataclass(frozen=True)
class Missing:
    """A unit of rows `[start, stop)` that a growing output does not hold yet."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class Report:
    """What was found, and of how much; see the module."""

    output: str
    revision: str | None
    num_units: int
    num_rows: int
    deep: bool
    is_complete: bool
    missing: Sequence[Missing]
    problems: Sequence[Problem]
    repaired: Sequence[Problem] = ()

    @property
    def is_clean(self) -> bool:
        """Complete, and nothing wrong."""
        return self.is_complete and not self.problems

    def to_json(self) -> str:
        """All problems, for programs."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        """A short table for people."""
        how = "all data read" if self.deep else "footers read; --deep reads all data"
        return "\n".join([f"{self.output}: {self.num_units:,} units of {self.num_rows:,} rows, {how}", *self._lines()])

    def _lines(self) -> Iterator[str]:
        if self.is_clean:
            yield "nothing is missing, doubled or damaged"
        elif self.missing:
            counts = f"{len(self.missing):,} of {self.num_units:,} units are not there yet"
            yield f"incomplete: {counts}; run again with --resume"
        elif not self.is_complete:
            yield "incomplete: all units are there, the last card is not; run again with --resume"
        if self.problems:
            yield f"{len(self.problems):,} problem{'s'[: len(self.problems) != 1]}"
            yield from (f"  {problem.path}: {problem.what}" for problem in self.problems[:SHOWN])
        if len(self.problems) > SHOWN:
            yield f"  … and {len(self.problems) - SHOWN:,} more"


@dataclass(frozen=True)
class Proof:
    """An output held against its plan: the job and its units, the files at one moment, and what was found."""

    job: Job
    layout: Layout
    units: Sequence[PlannedUnit]
    verifier: Verifier
    report: Report


def verify(output: str, config_name: str, split: str | None, settings: Settings, *, deep: bool) -> Proof:
    """Prove an output against its source.

    Raises:
        ConfigError: the output holds no job, or one of another split, or its source has changed.
        OSError, RuntimeError: the output or the source does not answer.
    """
    repo, revision = open_pinned(output)
    job = read_job(repo, Layout(config_name))
    if job is None:
        raise ConfigError(
            f"{repo.name} has no {Layout(config_name).job}: it was not made by stillroom, or is another --config-name"
        )
    if split not in (None, job.split):
        raise ConfigError(f"--split is {split!r}: the job of {repo.name} makes {job.split!r}")
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
    units = plan(job, layout, selection)
    verifier = hold(repo, job, layout, deep=deep)
    missing = [Missing(unit.number, unit.start, unit.stop) for unit in verifier.absent(units)]
    metadata = verifier.metadata(units)
    problems = [*wrong_table(repo, job, metadata), *wrong_ranges(repo, job, metadata), *verifier.problems(units)]
    is_complete = verifier.is_finished and not missing
    report = Report(repo.name, revision, len(units), selection.num_rows, deep, is_complete, missing, problems)
    return Proof(replace(job, output=output), layout, units, verifier, report)


def hold(repo: Repo, job: Job, layout: Layout, *, deep: bool) -> Verifier:
    """Read the file list and the receipts of an output, to hold its chunks against."""
    files = repo.list_entries()
    ledger = Ledger(repo, layout.receipts, layout.ledger)
    ledger.load(files)
    return Verifier(
        repo,
        files,
        [layout.of_split(folder) for folder in (layout.data, layout.skipped)],
        job.fingerprint,
        wrong_records(job),
        ledger.by_start,
        layout.ledger,
        layout.ledger in files,
        deep,
    )


def wrong_records(job: Job) -> Callable[[pa.RecordBatch], Iterator[str]]:
    """Return what says what is wrong with records of the job."""
    if job.build == "logits":
        return partial(wrong_logits, job=job)
    if job.build == "lengths":
        return wrong_lengths
    if job.storage_dtype in ("int8", "binary"):
        return partial(wrong_quantized, job=job)
    return partial(wrong_vectors, is_normalized=bool(job.normalize))


def plan(job: Job, layout: Layout, selection: Selection) -> list[PlannedUnit]:
    """Return the units of a job with their paths and source indices."""
    assert job.chunk_rows is not None
    return [
        PlannedUnit(
            unit.number,
            unit.start,
            unit.stop,
            unit.path(layout.data, layout.split_folder),
            unit.path(layout.skipped, layout.split_folder),
            partial(selection.indices, unit.start, unit.stop),
        )
        for unit in Units(selection.num_rows, job.chunk_rows)
    ]


def open_pinned(output: str) -> tuple[Repo, str | None]:
    """Open an output to be read as it is at this moment, and return the commit where there is one.

    Raises:
        ConfigError: there is no such output.
    """
    repo = open_existing(output)
    if is_folder(output):
        return repo, None
    from hub.remote import HubRepo

    assert isinstance(repo, HubRepo)
    try:
        return repo, repo.pin()
    except CommitError as error:
        raise ConfigError(str(error)) from error
