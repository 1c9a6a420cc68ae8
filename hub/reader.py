"""Reading from a Hub dataset: every call is tried again until it answers, or fails for good."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import takewhile
from typing import Any, TypeVar

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hub.budget import COUNTED, PastCommit
from hub.faults import diagnose
from hub.pending import Entry
from hub.repo import CommitError

logger = logging.getLogger(__name__)

T = TypeVar("T")

WRITER = re.compile(r"^stillroom-writer: (\S+)$", re.MULTILINE)  # in the description of our commits
LOG_PAGE = 100  # commits per page of the history
READ_TRIES = 8  # of a listing or a small file: about two minutes
READ_SECONDS = 30.0  # the longest wait between two of them, but where the server names its own
TIMEOUT = 75.0  # seconds per read or write on the line; the Hub gives a commit 60 s. The client's default is none


@cache
def set_timeouts() -> None:
    """Give the client of huggingface_hub timeouts: on a dead connection it would wait for ever."""
    from huggingface_hub.utils import _http

    def client() -> Any:
        made = _http.default_client_factory()
        made.timeout = TIMEOUT
        return made

    _http.set_client_factory(client)


class HubReader:
    """A dataset repository, to read."""

    def __init__(self, repo_id: str) -> None:
        set_timeouts()
        self.name = repo_id
        self.revision = "main"  # that is read; commits go to main
        self.api = HfApi()

    def full_name(self) -> str:
        """Return the dataset's whole name: `name` alone is one of the account that is logged in."""
        return self.name if "/" in self.name else f"{self.retry(self.api.whoami)['name']}/{self.name}"

    def pin(self) -> str:
        """Read from the newest commit only, whatever is committed from here on, and return its sha.

        Raises:
            CommitError: there is no such dataset, or no access to it.
        """
        self.name = self.full_name()
        try:
            info = self.retry(lambda: self.api.dataset_info(self.name, expand=["sha"]))
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

        return self.retry(get)

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
                age = max(0.0, (now - made).total_seconds())
                yield PastCommit(item["id"], age, writer[1] if writer else None, item.get("title") or "")
            url = page.links.get("next", {}).get("url")

    def retry(self, call: Callable[[], T]) -> T:
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
