"""Updates: which job a run goes on with, where the source of the one that an output holds may have a new revision.

An update is a job of its own that says what it was updated from. It writes beside the job that readers have (`previous`)
until all its units are there. One that is unfinished is finished before another begins.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from builders.job import Job
from builders.options import ConfigError
from builders.source import is_local
from extract.settings import Settings
from extract.settle import check_same

logger = logging.getLogger(__name__)


def reopen(asked: Job, stored: Job, previous: Job | None, settings: Settings) -> Job:
    """Fill in what `asked` leaves open from the stored job; an update leaves the revision open, for the newest one."""
    if previous is not None:
        logger.info("the update from %s to %s is unfinished: it comes first", previous.revision, stored.revision)
    adopted = asked.adopt(stored)
    if not settings.update:
        return adopted
    _check_source(asked, stored)
    return replace(adopted, revision=asked.revision if previous is None else stored.revision)


def _check_source(asked: Job, stored: Job) -> None:
    """A new revision is one of the same source; a local one may have moved."""
    mine, theirs = asked.source or stored.source, stored.source
    if mine != theirs and not (is_local(str(mine)) and is_local(str(theirs))):
        raise ConfigError(f"--update: --source is {mine!r}, and the output was made of {theirs!r}: give the same one")


def follow(job: Job, stored: Job, previous: Job | None, settings: Settings, output: str) -> Job:
    """Return the settled job that the run goes on with: the one that is stored, or the next update.

    Local files that changed again cannot be read as an unfinished update wants them: what they are now takes its place.

    Raises:
        ConfigError: the output holds another job, or this one and neither --resume nor --restart was given.
    """
    if settings.update and job.revision != stored.revision:
        base = previous or stored
        check_same(replace(job, revision=base.revision), base, output)
        if job.revision == base.revision:
            logger.info("the source is again what it was: %s", base.revision)
            return replace(job, chunk_rows=base.chunk_rows, updated_from=base.updated_from)
        logger.info("updating from %s to %s", base.revision, job.revision)
        return replace(job, chunk_rows=base.chunk_rows, updated_from=base.revision)
    check_same(job, stored, output)
    if not settings.goes_on:
        raise ConfigError(
            f"{output} holds this job already: --resume goes on with it, --restart deletes it, "
            "--update goes on with the newest revision of its source"
        )
    return replace(job, chunk_rows=stored.chunk_rows, updated_from=stored.updated_from)
