"""Before the first batch: what the output holds already, what the job means, and which units are left."""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from builders.job import Job
from builders.job_files import stored_job
from builders.layout import Layout
from builders.options import ConfigError
from builders.quantize import ranges_from_bytes
from builders.rank_table import RankTable
from builders.selection import Selection, select
from builders.source import Source, open_source
from builders.units import Units
from extract.builds import Build, open_build
from extract.calibrate import vector_ranges
from extract.carry import OldRecords, carried_columns
from extract.claim import Plan
from extract.disk import check_cache
from extract.engines import Engine, load_engine
from extract.lock import CacheLock
from extract.model_files import ModelFiles, read_model_files
from extract.output_job import begin_in, read_job, read_previous
from extract.partial import Partial
from extract.plan import open_existing, plan_units
from extract.ranks import rank_table
from extract.settings import STATUS_FILE, Settings
from extract.settle import choose_chunk_rows, settle
from extract.stop import Stop
from extract.token_plan import TokenPlan, read_token_plan
from extract.tokens import load_tokenizer
from extract.update import follow, reopen
from extract.world import World
from hub.carried import CarriedRecords, write_index
from hub.pending import Pending
from hub.repo import Repo, is_folder, open_repo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """All that a worker needs to know before it begins. `repo` is None on workers that neither plan nor upload."""

    plan: Plan
    files: ModelFiles
    repo: Repo | None
    pending: Pending
    partial: Partial
    lock: CacheLock
    cache: Path
    is_complete: bool  # all units are in the output, and so is the card that says so
    engine: Engine | None  # where a pilot has loaded it
    previous: Job | None = None  # what readers have while this job updates it
    old: OldRecords | None = None  # its records, where there is something left to do
    ranks: RankTable | None = None  # of compact teacher logits
    ranges: np.ndarray | None = None  # of int8 vectors, float32 [2, D]

    @property
    def status_file(self) -> Path:
        """Where the run says how far it is, for `stillroom status`."""
        return self.cache / STATUS_FILE


def prepare(asked: Job, settings: Settings, world: World, stop: Stop) -> Session:
    """Settle the job on the main worker, share it, and find what is to do.

    Raises:
        ConfigError: the job cannot be run, or the output holds another one.
    """
    check_cache(settings.cache)
    repo = _open(asked) if world.is_main or world.is_leader else None
    main = _Main(asked, settings, repo, stop)
    shared = world.share("job", main.settle)
    job, previous = stored_job(shared["job"]), stored_job(shared["previous"]) if shared["previous"] else None
    source = main.source or _same(open_source(job, settings.cache), job.revision)
    files = main.files or read_model_files(job)
    cache = job_cache(job, settings)
    lock, pending, partial = _take_cache(cache, settings, world)
    selection, units = units_of(job, source)
    tokens = main.tokens
    if world.is_main and tokens is None:
        tokens = open_tokens(job, files, selection, units, settings)
    todo, is_complete = plan_units(job, units, repo, pending, partial, settings, world, tokens)
    plan = Plan(job, source, selection, units, todo, tokens)
    old = None
    if previous is not None and todo and job.build == "embeddings":  # a logits update computes all rows
        old = open_old(repo or reader(job, shared["output"]), previous, cache, world, stop)
    tables = [base64.b64decode(shared[name]) for name in ("ranks", "ranges")]
    ranks = RankTable.from_bytes(tables[0]) if tables[0] else None
    ranges = ranges_from_bytes(tables[1]) if tables[1] else None
    return Session(
        plan, files, repo, pending, partial, lock, cache, is_complete, main.engine, previous, old, ranks, ranges
    )


@dataclass
class _Main:
    """What the main worker opens to settle the job; the others open the same by what it shares."""

    asked: Job
    settings: Settings
    repo: Repo | None
    stop: Stop
    source: Source | None = None
    files: ModelFiles | None = None
    engine: Engine | None = None
    tokens: TokenPlan | None = None

    def open(self, job: Job) -> tuple[Build, Engine]:
        """Load the model, once."""
        assert self.source is not None and self.files is not None
        self.engine = self.engine or load_engine(job, self.files, self.settings.device, self.settings)
        return open_build(job, self.source, self.files), self.engine

    def settle(self) -> dict[str, object]:
        """Return what the others need: the settled job, the one before it, and the tables of its records."""
        repo, settings, stop = self.repo, self.settings, self.stop
        assert repo is not None
        job, self.source, self.files = settle_in(repo, self.asked, settings)
        if job.chunk_rows is None:
            rows = choose_chunk_rows(job, self.source, select(job, self.source), *self.open(job))
            job = replace(job, chunk_rows=rows)
        is_new = settings.restart or repo.read(Layout.of(job).job) is None
        if is_new and not stop.now:  # what cannot be loaded leaves no job behind, which the mended one would not fit
            self.open(job)
            self.tokens = open_tokens(job, self.files, *units_of(job, self.source), settings)
        begin_in(repo, job, settings, stop)
        ranks = rank_table(repo, job, self.source, self.files, stop)
        ranges = vector_ranges(repo, job, self.source, lambda: self.open(job), stop)
        tables = {"ranks": base64.b64encode(ranks).decode(), "ranges": base64.b64encode(ranges).decode()}
        previous = read_previous(repo, job)
        return {"job": job.to_dict(), "previous": previous and previous.to_dict(), "output": repo.name, **tables}


def _take_cache(cache: Path, settings: Settings, world: World) -> tuple[CacheLock, Pending, Partial]:
    """Lock the job's cache for the workers of this machine; its leader first clears what a kill left half written."""
    lock = CacheLock(cache / "lock")
    if world.is_leader:
        lock.take_alone()
    pending, partial = Pending(cache / "pending", _pending_bytes(settings)), Partial(cache / "partial")
    if world.is_leader:
        pending.sweep()
        lock.share()
    world.barrier("locked")
    if not world.is_leader:
        lock.share()
    return lock, pending, partial


def settle_in(repo: Repo, asked: Job, settings: Settings) -> tuple[Job, Source, ModelFiles]:
    """Settle the job against the one that the output holds, if any, and refuse what does not fit.

    Raises:
        ConfigError: the output holds another job, or this one and neither --resume nor --restart was given.
    """
    stored = None if settings.restart else read_job(repo, Layout.of(asked))
    previous = None if stored is None else read_previous(repo, stored)
    if stored is not None:
        asked = reopen(asked, stored, previous, settings)
    source, files = open_source(asked, settings.cache), read_model_files(asked)
    if source.num_rows == 0 and stored is None:  # an update may find that all rows are gone
        raise ConfigError(f"--source {source.name} has no rows in its split {asked.split!r}")
    job = settle(asked, source, files, settings.device)
    if stored is not None:
        job = follow(job, stored, previous, settings, repo.name)
    return job, source, files


def open_old(repo: Repo, previous: Job, cache: Path, world: World, stop: Stop) -> OldRecords:
    """Open the records of the older generation; one worker of each machine writes their index, where there is none."""
    layout = Layout.of(previous)
    folder = cache / "carry" / previous.fingerprint[:16]
    if world.is_leader and not folder.exists():
        prefix = f"{layout.of_split(layout.data)}/"
        write_index(repo, prefix, previous.fingerprint, folder, stop.check_late)
    world.barrier("carry", stop.check_late)
    return CarriedRecords(repo, folder, carried_columns(previous))


def reader(job: Job, name: str) -> Repo:
    """Open the output to read it, where another worker has opened it to write."""
    if is_folder(str(job.output)):
        return open_repo(str(job.output), private=job.private)
    from hub.remote import HubRepo

    return HubRepo(name)


def units_of(job: Job, source: Source) -> tuple[Selection, Units]:
    """The rows and units of a settled job."""
    assert job.chunk_rows is not None
    selection = select(job, source)
    return selection, Units(selection.num_rows, job.chunk_rows)


def open_tokens(
    job: Job, files: ModelFiles, selection: Selection, units: Units, settings: Settings
) -> TokenPlan | None:
    """Return what --lengths says of the job's units; None without it.

    Raises:
        ConfigError: it does not fit the job.
    """
    if settings.lengths is None:
        return None
    if job.build == "lengths":
        raise ConfigError("--lengths is for builds that run a model: a lengths build counts by itself")
    lengths = open_existing(settings.lengths)
    tokens = read_token_plan(lengths, job, load_tokenizer(job, files), selection, units)
    counts = (tokens.tokens.sum(), tokens.records.sum(), selection.num_rows - tokens.records.sum())
    logger.info("%s: %d tokens of %d rows; %d rows give no record", lengths.name, *counts)
    return tokens


def job_cache(job: Job, settings: Settings) -> Path:
    """Folder of this job's unfinished work: another output, or another fingerprint, is another folder."""
    output = str(job.output)
    where = str(Path(output).expanduser().resolve()) if is_folder(output) else output
    place = hashlib.sha256(where.encode()).hexdigest()[:8]  # ./out of two folders is two outputs
    name = f"{Path(output).name}-{place}-{job.fingerprint[:16]}"
    part = f"-{settings.job_index}-of-{settings.num_jobs}" if settings.num_jobs > 1 else ""
    return settings.cache / "jobs" / (name + part)


def _open(asked: Job) -> Repo:
    if asked.output is None:
        raise ConfigError("--output is missing: give a Hub dataset (user/name) or a folder (./out)")
    try:
        return open_repo(asked.output, private=asked.private)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _same(source: Source, revision: str | None) -> Source:
    """A worker on another machine must read the very same source."""
    if source.revision != revision:
        raise ConfigError(f"--source {source.name} is {source.revision} here and {revision} on the main worker")
    return source


def _pending_bytes(settings: Settings) -> int | None:
    return None if settings.pending_gb is None else int(settings.pending_gb * 1e9)
