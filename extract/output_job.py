"""The job that an output holds: read by every later run, written by whoever begins it."""

from __future__ import annotations

import json

from builders.job import Job
from builders.job_files import stored_job
from builders.layout import FORMAT, Layout
from builders.options import ConfigError
from extract.settings import Settings
from extract.stop import Stop
from hub.commit import commit_files
from hub.repo import Repo


def read_job(repo: Repo, layout: Layout) -> Job | None:
    """Return the settled job that an output holds.

    Raises:
        ConfigError: it is of another format than this version of stillroom writes.
    """
    content = repo.read(layout.job)
    if content is None:
        return None
    stored = json.loads(content)
    if stored.get("format", 1) != FORMAT:
        raise ConfigError(
            f"{repo.name} was begun in format {stored.get('format', 1)}, and this stillroom writes format {FORMAT}: "
            "go on with the version that began it, give another --output, or --restart to delete it"
        )
    return stored_job(stored["job"])


def read_previous(repo: Repo, job: Job) -> Job | None:
    """Return the job that readers have while `job`, an update of it, is not finished; None where it is, or is no update."""
    layout = Layout.of(job)
    content = repo.read(layout.previous) if job.updated_from is not None else None
    if content is None or repo.read(layout.ledger) is not None:  # with a ledger only the cleaning is left
        return None
    return stored_job(json.loads(content)["job"])


def begin_in(repo: Repo, job: Job, settings: Settings, stop: Stop) -> None:
    """Write the settled job into an output that does not hold it yet; a restart deletes what was there.

    An update keeps the job of what readers have beside it, and that job's chunks where they are.
    """
    layout = Layout.of(job)
    stored = None if settings.restart else read_job(repo, layout)
    files = {layout.job: job_file(job)}
    message = f"Begin {job.build} of {job.source}"
    if settings.restart and repo.read(layout.job) is not None:
        folders = [f"{folder}/" for folder in (layout.data, layout.skipped)]
        deletes = [
            *folders,
            *layout.generations(repo.list_files()),
            layout.previous,
            layout.ranks,
            layout.ranges,
            layout.job,
        ]
        # on its own and first: the new job must never stand beside chunks of the old one
        commit_files(repo, {}, deletes, f"Delete what {layout.job} began", stop.check_late)
    elif stored is not None:
        if stored.fingerprint == job.fingerprint:
            return
        files = {layout.previous: job_file(read_previous(repo, stored) or stored), **files}
        message = f"Begin the update of {job.source} to {job.revision}"
    commit_files(repo, files, [], message, stop.check_late)


def job_file(job: Job) -> bytes:
    """The content of `_stillroom/job.json`."""
    return json.dumps({"format": FORMAT, "fingerprint": job.fingerprint, "job": job.to_dict()}, indent=1).encode()
