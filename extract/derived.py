"""A configuration made from a dataset's vectors, committed beside its data together with its section of the card."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from builders.curate.vectors import cache_folder
from hub.chunk import write_chunk
from hub.commit import commit_change
from hub.pending import Entry
from hub.repo import Change, is_folder, open_repo


def commit_derived(
    output: str,
    name: str,
    parts: Iterable[tuple[str, pa.Table]],
    about: Mapping[str, Any],
    write_card: Callable[[str, str], str],
    cache: Path | None = None,
    others: Mapping[str, bytes] | None = None,
    *,
    private: bool = True,
) -> str:
    """Write the configuration `name` into the output, in the place of an older one, and return what `load_dataset` takes.

    `parts` are paths below `name`/ and their tables, `about` goes into the metadata of each; `write_card` makes README.md from
    the one that is there and the name to load; `others` are small files beside them, as pictures. An output that is not there
    yet is made, `private` or not.

    Raises:
        CommitError: the output refuses.
    """
    repo = open_repo(output, private=private)
    loaded = output if is_folder(output) else repo.name
    work = cache_folder(cache) / "derived" / uuid.uuid4().hex
    try:
        entries = {}
        for path, table in parts:
            sha256 = write_chunk(work / path, table, about)
            entries[work / path] = Entry(path, (work / path).stat().st_size, sha256)
        repo.upload(entries)
        mine = {entry.path for entry in entries.values()}

        def change(parent: str | None) -> Change:
            old = [path for path in repo.list_files() if path.startswith(f"{name}/") and path not in mine]
            readme = write_card((repo.read("README.md", parent) or b"").decode(), loaded)
            return Change(
                {**{e.path: e for e in entries.values()}, **(others or {}), "README.md": readme.encode()}, old, parent
            )

        commit_change(repo, change, f"{name}: {about.get('n', 0):,} rows", lambda: None)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return loaded
