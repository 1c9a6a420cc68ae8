"""A Hub dataset as output. The only file that calls huggingface_hub to write."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, get_session, hf_raise_for_status

from hub.budget import COMMITS_PER_HOUR, COUNTED, PastCommit
from hub.faults import diagnose
from hub.handover import can_rebuild, rebuild
from hub.pending import Entry
from hub.repo import CommitError

logger = logging.getLogger(__name__)

T = TypeVar("T")

WRITER = re.compile(r"^stillroom-writer: (\S+)$", re.MULTILINE)  # in the description of our commits
LOG_PAGE = 100  # commits per page of the history
READ_TRIES = 8  # of a listing or a small file: about two minutes
READ_SECONDS = 30.0  # the longest wait between two of them, but where the server names its own
TIMEOUT = 75.0  # seconds per read or write on the line; the Hub gives a commit 60 s. The client's default is none
PATHS_PER_CALL = 500


@cache
def set_timeouts() -> None:
    """Give the client of huggingface_hub timeouts: on a dead connection it would wait for ever."""
    from huggingface_hub.utils import _http

    def client() -> Any:
        made = _http.default_client_factory()
        made.timeout = TIMEOUT
        return made

    _http.set_client_factory(client)


@cache
def silence() -> None:
    """Take away the client's bar of each upload: a run has one display. Before the first upload models still show theirs."""
    disable_progress_bars()


class HubRepo:
    """A dataset repository. Bytes go ahead of commits (`upload`); a commit then is one small request."""

    commits_per_hour: float | None = COMMITS_PER_HOUR

    def __init__(self, repo_id: str) -> None:
        set_timeouts()
        self.takes_handover = can_rebuild()
        self.name = repo_id
        self.revision = "main"  # that is read; commits go to main
        self.api = HfApi()
        self._operations: dict[str, CommitOperationAdd] = {}  # uploaded, by path in the repository
        self._lock = threading.Lock()

    @classmethod
    def open(cls, repo_id: str, *, private: bool) -> HubRepo:
        """Find or create the repository; `name` alone is one of the account that is logged in."""
        repo = cls(repo_id)
        try:
            repo.name = repo._full_name()
            try:
                repo._retry(lambda: repo.api.dataset_info(repo.name, expand=["sha"]))  # not all files
            except RepositoryNotFoundError:
                repo._retry(
                    lambda: repo.api.create_repo(repo.name, repo_type="dataset", private=private, exist_ok=True)
                )
        except Exception as error:  # of the Hub, the line, or no token at all
            raise CommitError(
                f"--output {repo.name}: {diagnose(error).text}. `hf auth login` with a token that may write, "
                "or give a folder: --output ./out"
            ) from error
        return repo

    def _full_name(self) -> str:
        return self.name if "/" in self.name else f"{self._retry(self.api.whoami)['name']}/{self.name}"

    def pin(self) -> str:
        """Read from the newest commit only, whatever is committed from here on, and return its sha.

        Raises:
            CommitError: there is no such dataset, or no access to it.
        """
        self.name = self._full_name()
        try:
            info = self._retry(lambda: self.api.dataset_info(self.name, expand=["sha"]))
        except HfHubHTTPError as error:
            if diagnose(error).is_fatal:
                raise CommitError(f"{self.name}: {diagnose(error).text}") from error
            raise
        self.revision = str(info.sha)
        return self.revision

    def list_files(self) -> dict[str, int]:
        """See Repo."""
        return {path: entry.size for path, entry in self.list_entries().items()}

    def list_entries(self) -> dict[str, Entry]:
        """See Repo: LFS files carry their SHA-256. 1,000 entries a request, folders counted."""
        rows = (row for row in self._tree() if row["type"] == "file")
        return {row["path"]: Entry(row["path"], row["size"], (row.get("lfs") or {}).get("oid", "")) for row in rows}

    def _tree(self) -> Iterator[dict[str, Any]]:
        """The recursive listing. A page that fails is asked for again alone: the client's own listing would begin anew."""
        url: str | None = f"{self.api.endpoint}/api/datasets/{self.name}/tree/{self.revision}?recursive=true"
        while url is not None:
            page = self._get(url)
            yield from page.json()
            url = page.links.get("next", {}).get("url")

    def read(self, path: str, revision: str | None = None) -> bytes | None:
        """See Repo. Read past the cache: the file may have changed a second ago."""
        try:
            return bytes(self._get(self._url(path, revision)).content)
        except EntryNotFoundError:
            return None

    def read_range(self, path: str, start: int, stop: int) -> bytes | None:
        """See Repo."""
        try:
            answer = self._get(self._url(path), {"Range": f"bytes={start}-{stop - 1}"})
        except EntryNotFoundError:
            return None
        return bytes(answer.content if answer.status_code == 206 else answer.content[start:stop])

    def _url(self, path: str, revision: str | None = None) -> str:
        where = {"revision": revision or self.revision, "endpoint": self.api.endpoint}
        return hf_hub_url(self.name, path, repo_type="dataset", **where)

    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """Return the answer to a GET, whole. Plain bytes are asked for: a range of a compressed answer would be torn."""
        asked = {**build_hf_headers(), "Accept-Encoding": "identity", **(headers or {})}

        def get() -> Any:
            answer = get_session().get(url, headers=asked, follow_redirects=True)
            hf_raise_for_status(answer)
            return answer

        return self._retry(get)

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

    def _operation(self, path: str, content: Entry | bytes) -> CommitOperationAdd:
        if isinstance(content, bytes):
            return CommitOperationAdd(path, content)
        with self._lock:
            ready = self._operations.get(path)
        if ready is None and not self.takes_handover:
            raise LookupError(f"{path} was not uploaded by this process")  # it is then uploaded again
        return ready or rebuild(content)

    def head(self) -> str | None:
        """See Repo."""
        return next(self._log(1)).sha

    def recent_commits(self) -> list[PastCommit]:
        """See Repo. Ages are by the server's own clock."""
        return list(takewhile(lambda commit: commit.age < COUNTED, self._log(LOG_PAGE)))

    def _log(self, limit: int) -> Iterator[PastCommit]:
        """The history, newest first, page after page; the client's own call reads all of it."""
        url: str | None = f"{self.api.endpoint}/api/datasets/{self.name}/commits/main?limit={limit}"
        while url is not None:
            page = self._get(url)
            date = page.headers.get("Date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            for item in page.json():
                made = datetime.fromisoformat(item["date"])
                writer = WRITER.search(item.get("message") or "")
                yield PastCommit(item["id"], max(0.0, (now - made).total_seconds()), writer[1] if writer else None)
            url = page.links.get("next", {}).get("url")

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
        return self._retry(lambda: list(self.api.get_paths_info(self.name, paths, repo_type="dataset")))

    def _retry(self, call: Callable[[], T]) -> T:
        """Try a call that changes nothing until it answers, or fails for good."""
        for left in reversed(range(READ_TRIES)):
            try:
                return call()
            except Exception as error:  # which kind it is, is what diagnose tells
                fault = diagnose(error)
                if fault.is_fatal or not left:
                    if isinstance(error, OSError | RuntimeError):
                        raise
                    # the HTTP library has types of its own, which no caller knows
                    raise ConnectionError(f"{self.name}: {fault.text}") from error
                seconds = min(READ_SECONDS, 2.0 ** (READ_TRIES - left) / 2)
                seconds = fault.seconds if fault.kind == "rate" else seconds
                logger.info("%s: %s; again in %.1f s", self.name, fault.text, seconds)
                time.sleep(seconds)
        raise AssertionError("unreachable")
