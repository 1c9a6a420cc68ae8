"""`stillroom status`: how far an output is, by what it holds, and by what this machine knows of a run into it.

`--json` prints one object, whose keys stay:

    output, revision, build, source, model   what it is; revision is the commit of the Hub, null for a folder
    state               complete; running (here); growing: it has units to do, and no run on this machine does them
    units, units_done, percent   units is null where neither this machine nor the source can tell
    rows, records, skipped, truncated, tokens, bytes   sums over the units that are there; skipped is {reason: rows}
    worker_seconds, cost_usd   that they took, with loading; cost_usd is null unless runs had a --cost-per-hour
    seconds_left        by this machine's run, else by the chunks of the Hub's last hour; null where neither tells
    seconds_since_commit, commits_last_hour, chunks_last_hour   of a Hub dataset; of a folder the first alone
    here    [{cache, is_running, seconds_since_heartbeat, pending_units, pending_bytes, run}]   runs into it whose cache is on
                        this machine; `run` is their last status.json: rates, faults, commits left
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from builders.job import Job
from builders.layout import Layout
from builders.options import ConfigError
from builders.source import open_source
from extract.lock import is_held
from extract.output_job import read_job, read_previous
from extract.prepare import job_cache, units_of
from extract.settings import STATUS_FILE, Settings
from extract.summary import SKIPPED, describe_totals, duration, size
from extract.verify import open_pinned
from hub.budget import HOUR
from hub.ledger import Ledger
from hub.pending import Pending
from hub.repo import Repo, is_folder

logger = logging.getLogger(__name__)

CHUNKS = re.compile(r"Add (\d+) chunk")  # the message of a commit


@dataclass(frozen=True)
class Here:
    """A run into the output whose cache is on this machine, going on or ended."""

    cache: str
    is_running: bool
    seconds_since_heartbeat: float | None
    pending_units: int
    pending_bytes: int
    run: dict[str, Any]


@dataclass(frozen=True)
class Status:
    """See the module. `update` says that readers still have the generation before this one."""

    output: str
    revision: str | None
    build: str
    source: str
    model: str
    state: str
    update: bool
    units: int | None
    units_done: int
    percent: float | None
    rows: int
    records: int
    skipped: dict[str, int]
    truncated: int
    tokens: int
    bytes: int
    worker_seconds: float
    cost_usd: float | None
    seconds_left: float | None
    seconds_since_commit: float | None
    commits_last_hour: int | None
    chunks_last_hour: int | None
    here: list[Here]

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1)


def look(output: str, config_name: str, settings: Settings) -> Status:
    """Look at an output, and at this machine's runs into it; nothing is changed.

    Raises:
        ConfigError: there is no such output, or no job in it.
        OSError, RuntimeError: the output does not answer.
    """
    repo, revision = open_pinned(output)
    job = read_job(repo, Layout(config_name))
    if job is None:
        raise ConfigError(
            f"{repo.name} has no {Layout(config_name).job}: it was not made by stillroom, or is another --config-name"
        )
    layout, files = Layout.of(job), repo.list_files()
    ledger = Ledger(repo, layout.receipts, layout.ledger)
    ledger.load(files)
    totals, is_complete = ledger.totals, layout.ledger in files and layout.previous not in files
    here = list(runs_here(job, {output, repo.name}, settings))
    units = totals["units"] if is_complete else count_units(job, here, settings)
    since, commits, chunks = recent(repo, layout, output)
    is_running = any(run.is_running for run in here)
    left = None if units is None else units - totals["units"]
    return Status(
        output=repo.name,
        revision=revision,
        build=job.build,
        source=str(job.source),
        model=str(job.model),
        state="complete" if is_complete else "running" if is_running else "growing",
        update=read_previous(repo, job) is not None,
        units=units,
        units_done=totals["units"],
        percent=round(100 * totals["units"] / units, 2) if units else None,
        **{name: totals[name] for name in ("rows", "records", "truncated", "tokens", "bytes")},
        skipped={n.removeprefix(SKIPPED): count for n, count in totals.items() if n.startswith(SKIPPED)},
        worker_seconds=(totals["milliseconds"] + totals["loading_milliseconds"]) / 1000,
        cost_usd=totals["microdollars"] / 1e6 if "microdollars" in totals else None,
        seconds_left=None if is_complete else seconds_left(here, left, chunks),
        seconds_since_commit=since,
        commits_last_hour=commits,
        chunks_last_hour=chunks,
        here=here,
    )


def runs_here(job: Job, names: set[str], settings: Settings) -> Iterator[Here]:
    """Yield what this machine's cache has of runs into an output, whose name may be given with its account or without."""
    folders = {job_cache(replace(job, output=name), settings) for name in names}
    for folder in sorted(path for one in folders for path in one.parent.glob(f"{one.name}*")):
        file = folder / STATUS_FILE
        pending = Pending(folder / "pending", 1) if (folder / "pending").is_dir() else None
        try:
            run, beat = json.loads(file.read_text()), time.time() - file.stat().st_mtime
        except (OSError, ValueError):  # a run that was killed before its first status
            run, beat = {}, None
        waiting = (pending.num_units, pending.num_bytes) if pending else (0, 0)
        yield Here(str(folder), is_held(folder / "lock"), beat, *waiting, run)


def count_units(job: Job, here: Sequence[Here], settings: Settings) -> int | None:
    """Units of the whole job: as a run here has counted them, else from the source; None where that cannot be read."""
    for run in here:
        if "units" in run.run:
            return int(run.run["units"])
    try:
        source = open_source(job, settings.cache)
        return len(units_of(job, source)[1]) if source.revision == job.revision else None
    except (ConfigError, RuntimeError, OSError) as error:
        logger.info("how many units there are cannot be told: %s", error)
        return None


def recent(repo: Repo, layout: Layout, output: str) -> tuple[float | None, int | None, int | None]:
    """Return seconds since the last change of the data, and commits and chunks of the last hour; None where nobody counts."""
    if is_folder(output):
        root = Path(output).expanduser()
        times = [path.stat().st_mtime for path in root.glob(f"{layout.receipts}/*.jsonl")]
        times += [(root / layout.ledger).stat().st_mtime] if (root / layout.ledger).exists() else []
        return (time.time() - max(times) if times else None), None, None
    commits = [commit for commit in repo.recent_commits() if commit.age <= HOUR]
    chunks = sum(int(found[1]) for commit in commits if (found := CHUNKS.match(commit.title)))
    return (commits[0].age if commits else None), len(commits), chunks


def seconds_left(here: Sequence[Here], left: int | None, chunks: int | None) -> float | None:
    """By the run that goes on here, else at the pace of the last hour's chunks."""
    for run in here:
        if run.is_running and run.run.get("seconds_left") is not None:
            return float(run.run["seconds_left"])
    return left * HOUR / chunks if left is not None and chunks else None


def as_text(status: Status) -> Iterator[str]:
    """The lines of a status."""
    yield f"{status.output}: {status.build} of {status.source} through {status.model}"
    words = {"running": "running on this machine", "growing": "growing, with no run on this machine"}
    update = ", as an update: readers have the dataset before it" if status.update else ""
    yield f"  state    {words.get(status.state, status.state)}{update}"
    share = "" if status.percent is None else f" ({status.percent:.1f} %)"
    yield f"  units    {status.units_done:,} of {'?' if status.units is None else f'{status.units:,}'}{share}"
    reasons = {f"{SKIPPED}{name}": count for name, count in status.skipped.items()}
    work: dict[str, Any] = {"milliseconds": 1000 * status.worker_seconds, "microdollars": 1e6 * (status.cost_usd or 0)}
    yield f"  data     {describe_totals({**asdict(status), **reasons, **work})}"
    if status.seconds_left is not None:
        yield f"  left     {duration(status.seconds_left)}"
    if status.seconds_since_commit is not None:
        hour = "" if status.commits_last_hour is None else f"; {status.commits_last_hour} in the last hour"
        yield f"  commits  the last {duration(status.seconds_since_commit)} ago{hour}"
    elif status.commits_last_hour is not None:
        yield "  commits  none in the last hour"
    for run in status.here:
        yield from _lines(run)


def _lines(run: Here) -> Iterator[str]:
    beat = "" if run.seconds_since_heartbeat is None else f", heard of {duration(run.seconds_since_heartbeat)} ago"
    rate = f", {run.run['tokens_per_second']:,.0f} tokens/s" if run.is_running and run.run else ""
    yield f"  here     {'a run' if run.is_running else 'no run'}{rate}{beat}: {run.cache}"
    if run.pending_units:
        yield f"  pending  {run.pending_units:,} units, {size(run.pending_bytes)}: --resume uploads them"
