"""A Hub dataset as output. The only file that calls huggingface_hub to write."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from hub.faults import diagnose
from hub.handover import can_rebuild, rebuild
from hub.pending import Entry
from hub.reader import HubReader
from hub.repo import CommitError

PATHS_PER_CALL = 500


@cache
def silence() -> None:
    """Take away the client's bar of each upload: a run has one display. Before the first upload models still show theirs."""
    disable_progress_bars()


class HubRepo(HubReader):
    """A dataset repository. Bytes go ahead of commits (`upload`); a commit then is one small request."""

    counts_commits = True

    def __init__(self, repo_id: str) -> None:
        super().__init__(repo_id)
        self.takes_handover = can_rebuild()
        self._operations: dict[str, CommitOperationAdd] = {}  # uploaded, by path in the repository
        self._lock = threading.Lock()

    @classmethod
    def open(cls, repo_id: str, *, private: bool) -> HubRepo:
        """Find or create the repository; `name` alone is one of the account that is logged in."""
        repo = cls(repo_id)
        try:
            repo.name = repo.full_name()
            try:
                repo.retry(repo._head)
            except RepositoryNotFoundError:
                repo.retry(
                    lambda: repo.api.create_repo(repo.name, repo_type="dataset", private=private, exist_ok=True)
                )
                repo.retry(repo._head)
        except Exception as error:  # of the Hub, the line, or no token at all
            raise CommitError(
                f"--output {repo.name}: {diagnose(error).text}. `hf auth login` with a token that may write, "
                "or give a folder: --output ./out"
            ) from error
        return repo

    def _head(self) -> None:
        """Ask for the repository. One that another machine creates at this moment is there before its branch is."""
        try:
            self.api.dataset_info(self.name, expand=["sha"])  # not all files
        except RevisionNotFoundError:
            raise ConnectionError(f"{self.name} has no branch main yet") from None  # what `retry` waits for

    def upload(self, entries: Mapping[Path, Entry]) -> None:
        """Send bytes. Safe to repeat: what the server has is not sent again."""
        silence()
        operations = [CommitOperationAdd(entry.path, str(local)) for local, entry in entries.items()]
        self.api.preupload_lfs_files(self.name, operations, repo_type="dataset", free_memory=False)
        with self._lock:
            self._operations.update({operation.path_in_repo: operation for operation in operations})

    def commit(
        self,
        files: Mapping[str, Entry | bytes],
        deletes: Sequence[str],
        message: str,
        *,
        parent: str | None = None,
        writer: str = "",
    ) -> None:
        """See Repo. One attempt: whoever calls knows what to look at before the next."""
        operations: list[Any] = [CommitOperationDelete(path) for path in deletes]
        operations += [self._operation(path, content) for path, content in files.items()]
        description = f"stillroom-writer: {writer}" if writer else None
        try:
            self.api.create_commit(
                self.name,
                operations,
                commit_message=message,
                commit_description=description,
                parent_commit=parent,
                repo_type="dataset",
            )
        except Exception as error:
            if diagnose(error).is_fatal:  # as a 400 where the server dropped bytes that waited too long
                self._forget(files)
            raise
        self._forget(files)

    def create(self, path: str, content: bytes, message: str, parent: str | None) -> None:
        """See Repo."""
        if self.read(path, parent) is None:
            self.commit({path: content}, [], message, parent=parent)

    def _operation(self, path: str, content: Entry | bytes) -> CommitOperationAdd:
        if isinstance(content, bytes):
            return CommitOperationAdd(path, content)
        with self._lock:
            ready = self._operations.get(path)
        if ready is None and not self.takes_handover:
            raise LookupError(f"{path} was not uploaded by this process")  # it is then uploaded again
        return ready or rebuild(content)

    def _forget(self, paths: Iterable[str]) -> None:
        with self._lock:
            for path in paths:
                self._operations.pop(path, None)

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """See Repo. LFS files carry their SHA-256, so that content is compared, not only presence."""
        held: dict[str, str | None] = {}
        for start in range(0, len(entries), PATHS_PER_CALL):
            for item in self._paths_info([entry.path for entry in entries[start : start + PATHS_PER_CALL]]):
                lfs = getattr(item, "lfs", None)
                held[item.path] = lfs.sha256 if lfs else None
        return [entry for entry in entries if held.get(entry.path) != entry.sha256]

    def _paths_info(self, paths: list[str]) -> list[Any]:
        return self.retry(lambda: list(self.api.get_paths_info(self.name, paths, repo_type="dataset")))
