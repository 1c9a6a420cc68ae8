"""A configuration that was made of an output's own records, put beside them: all its files in one commit, old ones out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa

from hub.chunk import write_chunk
from hub.commit import commit_change
from hub.faults import diagnose
from hub.patience import Patience
from hub.pending import Entry
from hub.repo import Change, CommitError, Repo

README = "README.md"
UPLOAD_TRIES = 8

Files = Mapping[str, "Entry | bytes"]


def put_config(
    repo: Repo,
    folder: str,
    chunks: Iterable[tuple[str, pa.Table]],
    others: Mapping[str, bytes],
    readme: Callable[[str], str],
    message: str,
    workdir: Path,
) -> int:
    """Put chunks (path and table, one in memory at a time) and small files into an output, and return their bytes.

    All become visible in one commit, together with README.md, which `readme` makes of the one that is there; whatever else
    was in `folder` goes. Files wait in `workdir` for it.

    Raises:
        CommitError: the output cannot take them.
    """
    entries: dict[str, Entry] = {}
    for path, table in chunks:
        local = workdir / path
        sha256 = write_chunk(local, table, {"counts": {"records": len(table)}})
        entries[path] = Entry(path, local.stat().st_size, sha256)
        _upload(repo, local, entries[path])
    files: dict[str, Entry | bytes] = {**entries, **others}

    def make(parent: str | None) -> Change:
        old = (repo.read(README, parent) or b"").decode()
        stale = [path for path in repo.list_files() if path.startswith(f"{folder}/") and path not in files]
        return Change({**files, README: readme(old).encode()}, stale, parent)

    commit_change(repo, make, message, lambda: None)
    return sum(entry.size for entry in entries.values()) + sum(map(len, others.values()))


def _upload(repo: Repo, local: Path, entry: Entry) -> None:
    patience = Patience(repo.name)
    for left in reversed(range(UPLOAD_TRIES)):
        try:
            repo.upload({local: entry})
            return
        except Exception as error:  # which kind it is, is what diagnose tells
            fault = diagnose(error)
            if fault.is_fatal or not left:
                raise CommitError(f"{repo.name}: {fault.text}") from error
            time.sleep(patience.suffer(error, "upload").seconds)
