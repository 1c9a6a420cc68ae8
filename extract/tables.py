"""A table that a dataset's records cannot be read without: made once, by whoever begins it, and taken over by all others."""

from __future__ import annotations

from collections.abc import Callable

from builders.job import Job
from builders.layout import Layout
from builders.options import ConfigError
from extract.stop import Stop
from hub.commit import create_file
from hub.repo import Repo


def stored_table(
    repo: Repo, job: Job, path: str, make: Callable[[], bytes], check: Callable[[bytes], object], stop: Stop
) -> bytes:
    """Return the table of an output, made where there is none yet: of several that make one, the first one's stays.

    Raises:
        ConfigError: it is missing beside chunks that need it, or damaged, which `check` says with a ValueError.
    """
    table = repo.read(path)
    mend = f"`stillroom verify {repo.name} --repair` mends it"
    if table is None:
        if any(file.startswith(f"{Layout.of(job).data}/") for file in repo.list_files()):
            raise ConfigError(f"{repo.name}: {path} is missing; {mend}")
        table = create_file(repo, path, make(), f"Add {path}", stop.check_late)
    try:
        check(table)
    except ValueError as error:
        raise ConfigError(f"{repo.name}: {path} has {error}; {mend}") from None
    return table
