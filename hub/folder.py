"""A plain folder as output: the same layout and the same promises as on the Hub, with no account and no network."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hub.budget import PastCommit
from hub.chunk import sync_and_hash, sync_folder, write_whole
from hub.pending import Entry
from hub.repo import CommitError


class FolderRepo:
    """Files become visible one by one, each whole, in the order given: data first, then what describes it."""

    counts_commits = False
    takes_handover = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)
        self._uploaded: dict[str, Path] = {}  # local path by path in the folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommitError(f"--output {folder} cannot be made: {error.strerror}: give another folder") from error

    def list_files(self) -> dict[str, int]:
        """Size by path; temporary files (a leading dot) are left out."""
        return {
            path.relative_to(self.folder).as_posix(): path.stat().st_size
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def list_entries(self) -> dict[str, Entry]:
        """See Repo."""
        return {path: Entry(path, size, "") for path, size in self.list_files().items()}

    def read(self, path: str, revision: str | None = None) -> bytes | None:
        """See Repo."""
        try:
            return (self.folder / path).read_bytes()
        except FileNotFoundError:
            return None

    def read_range(self, path: str, start: int, stop: int) -> bytes | None:
        """See Repo."""
        try:
            with (self.folder / path).open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except FileNotFoundError:
            return None

    def head(self) -> str | None:
        """A folder keeps no revisions."""
        return None

    def recent_commits(self) -> list[PastCommit]:
        """See Repo: nobody counts."""
        return []

    def upload(self, entries: Mapping[Path, Entry]) -> None:
        """Note where the files are: a commit links them, or copies them to another disk."""
        self._uploaded |= {entry.path: local for local, entry in entries.items()}

    def commit(
        self,
        files: Mapping[str, Entry | bytes],
        deletes: Sequence[str],
        message: str,
        *,
        parent: str | None = None,
        writer: str = "",
    ) -> None:
        """See Repo. Deletes last: a kill in between leaves too much, never too little.

        Raises:
            CommitError: the disk is full or read-only.
        """
        try:
            for path, content in files.items():
                if isinstance(content, bytes):
                    write_whole(self.folder / path, content)
                else:
                    self._place(self._uploaded[path], self.folder / path)
            for path in deletes:
                self._delete(path)
            for path in files:
                self._uploaded.pop(path, None)
        except OSError as error:
            why = error.strerror or error
            raise CommitError(
                f"{self.folder}: {why}: chunks stay in the cache; mend that, then run again with --resume"
            ) from error

    def create(self, path: str, content: bytes, message: str, parent: str | None) -> None:
        """See Repo: of several writers the first one's link stays, as a link replaces nothing.

        Raises:
            CommitError: the disk is full or read-only.
        """
        target = self.folder / path
        # machines that share a disk share process ids
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            if not target.exists():
                write_whole(partial, content)
                with suppress(FileExistsError):
                    os.link(partial, target)
        except OSError as error:
            raise CommitError(f"{target}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def _delete(self, path: str) -> None:
        target = self.folder / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def _place(self, local: Path, target: Path) -> None:
        """Put a pending file in its place in one step; a hard link costs nothing and keeps the pending file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        try:
            try:
                os.link(local, partial)
            except OSError:  # another disk, or one without hard links: each file system has an errno of its own for it
                shutil.copyfile(local, partial)
                sync_and_hash(partial)
            os.replace(partial, target)
        finally:
            # It is there after a failure, and after a rename onto another link of the same file, which does nothing.
            partial.unlink(missing_ok=True)
        sync_folder(target.parent)

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """See Repo. Files arrive whole, so that the size tells."""
        files = ((entry, self.folder / entry.path) for entry in entries)
        return [entry for entry, path in files if not path.exists() or path.stat().st_size != entry.size]
