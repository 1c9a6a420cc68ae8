"""A configuration made from a dataset's vectors, committed beside its data together with its section of the card."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from builders.curate.vectors import cache_folder
from builders.options import ConfigError
from cards.section import has_section
from hub.chunk import write_chunk
from hub.commit import commit_change
from hub.pending import Entry
from hub.repo import Change, Repo, is_folder, open_repo


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
    replaces: str | None = None,
) -> str:
    """Write the configuration `name` into the output, in the place of an older one, and return what `load_dataset` takes.

    `parts` are paths below `name`/ and their tables, `about` goes into the metadata of each; `write_card` makes README.md from
    the one that is there and the name to load; `others` are small files beside them, as pictures. An output that is not there
    yet is made, `private` or not. With `replaces`, an older one is only replaced where the card has the section of that name.

    Raises:
        ConfigError: the output holds something else.
        CommitError: the output refuses.
    """
    repo = open_repo(output, private=private)
    if replaces is not None:
        _refuse_other(repo, name, replaces)
    loaded = output if is_folder(output) else repo.name
    with _uploaded(repo, parts, about, cache_folder(cache) / "derived" / uuid.uuid4().hex) as entries:

        def change(parent: str | None) -> Change:
            old = [path for path in repo.list_files() if path.startswith(f"{name}/") and path not in entries]
            readme = write_card((repo.read("README.md", parent) or b"").decode(), loaded)
            return Change({**entries, **(others or {}), "README.md": readme.encode()}, old, parent)

        commit_change(repo, change, f"{name}: {about.get('n', 0):,} rows", lambda: None)
    return loaded


@contextmanager
def _uploaded(
    repo: Repo, parts: Iterable[tuple[str, pa.Table]], about: Mapping[str, Any], work: Path
) -> Iterator[dict[str, Entry]]:
    """Entries of the parts by path, ready to be committed; their local files, in `work`, go at the end."""
    try:
        entries = {path: _written(work, path, table, about) for path, table in parts}
        repo.upload({work / path: entry for path, entry in entries.items()})
        yield entries
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _written(work: Path, path: str, table: pa.Table, about: Mapping[str, Any]) -> Entry:
    sha256 = write_chunk(work / path, table, about)
    return Entry(path, (work / path).stat().st_size, sha256)


def _refuse_other(repo: Repo, name: str, section: str) -> None:
    """Refuse an output that holds data, and no card of ours that says what may be replaced."""
    if any(path.startswith(f"{name}/") for path in repo.list_files()):
        readme = (repo.read("README.md") or b"").decode()
        if not has_section(readme, section):
            raise ConfigError(f"--to {repo.name}: it holds data of something else: give a new dataset or folder")
