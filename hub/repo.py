"""The output: a Hub dataset or a plain folder, behind the few calls that the rest of stillroom makes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hub.budget import PastCommit
from hub.pending import Entry

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
HUB_NAME = re.compile(r"^[\w.-]+$")


class CommitError(RuntimeError):
    """The output cannot take what is pending, and waiting will not help. Everything finished stays in pending."""


@dataclass(frozen=True)
class Change:
    """Files to write (small, or uploaded) and paths to delete; with `parent`, if that is the newest revision when it lands."""

    files: Mapping[str, Entry | bytes] = field(default_factory=dict)
    deletes: Sequence[str] = ()
    parent: str | None = None


class Repo(Protocol):
    """Where chunks go. Paths are relative, with forward slashes; a commit makes its files visible together."""

    name: str
    counts_commits: bool  # whether it allows so many an hour, to all writers together
    takes_handover: bool  # whether a commit may name files that another machine has uploaded

    def list_files(self) -> dict[str, int]:
        """Return size in bytes by path, of all files, at the newest revision."""

    def list_entries(self) -> dict[str, Entry]:
        """The same with SHA-256, which is empty where only reading the file would tell it."""

    def read(self, path: str, revision: str | None = None) -> bytes | None:
        """Return a file's content, at the newest revision or a given one; None where there is none.

        Raises:
            OSError, RuntimeError: no answer after many tries: that says nothing of the file.
        """

    def read_range(self, path: str, start: int, stop: int) -> bytes | None:
        """Return bytes `[start, stop)` of a file, fewer at its end; None where there is none. Raises as `read`."""

    def head(self) -> str | None:
        """Return the newest revision; None where the output keeps none."""

    def recent_commits(self) -> list[PastCommit]:
        """Return the commits of the last hour, newest first."""

    def upload(self, entries: Mapping[Path, Entry]) -> None:
        """Move bytes, by local path, ahead of the commit that shows them."""

    def commit(
        self,
        files: Mapping[str, Entry | bytes],
        deletes: Sequence[str],
        message: str,
        *,
        parent: str | None = None,
        writer: str = "",
    ) -> None:
        """Show all files, and take the deleted ones away (a path that ends in / is a folder; none of `files` is in it).

        An Entry is a file that was uploaded before. With `parent`, the commit is refused unless that is the newest revision.
        `writer` goes into the history, for other writers to see.
        """

    def create(self, path: str, content: bytes, message: str, parent: str | None) -> None:
        """Write a small file where there is none at `parent`, and leave one that is there. `parent` is as in `commit`."""

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return those that the output does not hold with that size and content."""


def open_repo(output: str, *, private: bool) -> Repo:
    """Open, and if need be create, the output named by `--output`.

    Raises:
        ValueError: neither a Hub id nor a path.
        CommitError: the Hub refuses.
    """
    if is_folder(output):
        from hub.folder import FolderRepo

        return FolderRepo(Path(os.path.expanduser(output)))
    if HUB_ID.match(output) or HUB_NAME.match(output):
        from hub.remote import HubRepo

        return HubRepo.open(output, private=private)
    raise ValueError(f"--output {output!r} is neither a Hub dataset (user/name) nor a path (./name)")


def is_folder(output: str) -> bool:
    """Tell a path (`./out`, `/data/out`, `~/out`, or a folder that exists) from a Hub id."""
    return output.startswith((".", "/", "~")) or os.path.isdir(output)
