"""The upload thread: bytes go out as soon as a chunk is whole, commits are grouped, and a failure here fails the run."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from hub.committer import Outcome
from hub.daemons import Daemons
from hub.faults import diagnose
from hub.outbox import Outbox
from hub.patience import Patience
from hub.pending import Pending, Receipt
from hub.repo import Change, CommitError, Repo

logger = logging.getLogger(__name__)

UPLOAD_THREADS = 4
UNITS_PER_UPLOAD = 16  # chunks that wait together go in one call: 3 requests for all of them, and one for each
SECONDS_PER_MACHINE = 1.8  # 3 requests in 1.8 s are half of the 1,000 in 5 minutes that a free account has
SMALL_COMMIT_TRIES = 20
STALE_HEADS = 4  # refusals for a parent that is said to be old; the Hub's answer which one is newest can lag behind
POLL_SECONDS = 0.2
LAST_POLL_SECONDS = 0.02  # while the run waits for the last commit


@dataclass
class UploadStats:
    """What the thread has done, for the progress line and the summary."""

    num_units: int = 0
    num_bytes: int = 0
    upload_seconds: float = 5.0  # of the slowest of the last uploads and commits: what a drain should expect


class Uploader:
    """Pours pending into the repository. One per machine; `num_machines` share the account's quota of requests.

    It deletes from pending only what the repository is known to hold with that size and SHA-256.
    """

    def __init__(
        self, repo: Repo, pending: Pending, outbox: Outbox, patience: Patience, num_machines: int = 1
    ) -> None:
        self.repo, self.pending, self.outbox, self.patience = repo, pending, outbox, patience
        self.stats = UploadStats()
        self.upload_interval = SECONDS_PER_MACHINE * (num_machines - 1)
        self._uploads: dict[int, Future[None]] = {}  # by start of the unit
        self._pool = Daemons(UPLOAD_THREADS, "upload")
        self._closing = threading.Event()
        self._leaving = threading.Event()
        self._error: BaseException | None = None
        self._uploads_from = 0.0  # monotonic time before which no upload begins, after another began or failed
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)

    def __enter__(self) -> Uploader:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._leaving.set()
        self._thread.join(timeout=5)
        self._pool.close()

    def check(self) -> None:
        """Raise here what failed there.

        Raises:
            CommitError: the output cannot take the chunks; they stay in pending.
        """
        if self._error is not None:
            raise CommitError(str(self._error)) from self._error

    @property
    def num_pending(self) -> int:
        """Units that wait for the output to confirm them."""
        return self.pending.num_units

    def status(self) -> dict[str, object]:
        """What the progress display says of uploads."""
        return {
            "pending": self.num_pending,
            "uploaded_bytes": self.stats.num_bytes,
            **self.outbox.status(),
            "faults": dict(self.patience.faults),
        }

    def drain(
        self, timeout: Callable[[], float | None] = lambda: None, tick: Callable[[], None] = lambda: None
    ) -> bool:
        """Commit all that is pending now and tell whether that succeeded within `timeout` seconds.

        The time is asked for again and again, as a signal may shorten it; a longer answer than an earlier one counts not.
        """
        self._closing.set()
        end = float("inf")
        while self._thread.is_alive() and time.monotonic() < end:
            if (seconds := timeout()) is not None:
                end = min(end, time.monotonic() + seconds)
            self._thread.join(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
            tick()
        self.check()
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._leaving.is_set():
                receipts = self.pending.scan()
                is_closing = self._closing.is_set()
                if is_closing and not receipts and self.outbox.is_done:
                    return
                self._start_uploads(receipts, is_closing=is_closing)
                ready = self._uploaded(receipts)
                self.outbox.offer(ready)
                if is_closing and len(ready) == len(receipts):
                    self.outbox.close()
                self._take(self.outbox.step())
                if is_closing:
                    self._leaving.wait(LAST_POLL_SECONDS)
                else:
                    self._closing.wait(POLL_SECONDS)
        except BaseException as error:
            self._error = error

    def _start_uploads(self, receipts: Sequence[Receipt], *, is_closing: bool) -> None:
        """Send what waits in groups, at the pace that the quota of requests allows; the last units wait for no pace."""
        new = [receipt for receipt in receipts if receipt.start not in self._uploads]
        if new and time.monotonic() >= self._uploads_from:
            pause = 0.0 if is_closing else self.upload_interval * random.uniform(0.5, 1.5)  # machines drift apart
            self._uploads_from = time.monotonic() + pause
            size = min(UNITS_PER_UPLOAD, -(-len(new) // UPLOAD_THREADS))
            for first in range(0, len(new), size):
                group = new[first : first + size]
                future = self._pool.submit(partial(self._upload, group))
                self._uploads |= {receipt.start: future for receipt in group}

    def _upload(self, receipts: Sequence[Receipt]) -> None:
        started = time.monotonic()
        self.repo.upload({self.pending.files / entry.path: entry for r in receipts for entry in r.files})
        self._took(time.monotonic() - started)

    def _uploaded(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Those whose bytes are out; an upload that failed is begun again, after the wait that its error asks for."""
        good, failed = list[Receipt](), set[Future[None]]()
        for receipt in receipts:
            upload = self._uploads.get(receipt.start)
            if upload is None or not upload.done():
                continue
            if (error := upload.exception()) is None:
                good.append(receipt)
                continue
            del self._uploads[receipt.start]
            if upload not in failed:  # one error of a group
                failed.add(upload)
                self._uploads_from = time.monotonic() + self.patience.suffer(error, "upload").seconds
        return good

    def _take(self, outcome: Outcome) -> None:
        for receipt in outcome.landed:
            self.pending.remove(receipt)
            self.stats.num_units += 1
            self.stats.num_bytes += receipt.size
        for receipt in (*outcome.landed, *outcome.again):
            self._uploads.pop(receipt.start, None)
        if outcome.landed:
            self.patience.recover()
        if outcome.seconds:
            self._took(outcome.seconds)

    def _took(self, seconds: float) -> None:
        self.stats.upload_seconds = max(0.8 * self.stats.upload_seconds, seconds)


def commit_files(
    repo: Repo, files: Mapping[str, bytes], deletes: Sequence[str], message: str, check: Callable[[], None]
) -> None:
    """Commit small files, trying again until it succeeds; `check` may raise to end the wait.

    Raises:
        CommitError: the output refuses for good.
    """
    commit_change(repo, lambda parent: Change(files, deletes), message, check)


def commit_change(
    repo: Repo, make: Callable[[str | None], Change], message: str, check: Callable[[], None], writer: str = ""
) -> None:
    """Commit what `make` makes of the newest revision, making it anew each time that somebody else's commit came between.

    Safe to repeat: the Hub's client drops files that are already there, and deletes are asked for only while needed.

    Raises:
        CommitError: the output refuses for good.
    """
    patience, num_stale = Patience(repo.name), 0
    for attempt in range(SMALL_COMMIT_TRIES):
        try:
            change = make(repo.head())
            there = repo.list_files() if change.deletes else {}
            wanted = [path for path in change.deletes if any(f == path or f.startswith(path) for f in there)]
            parent = change.parent if num_stale < STALE_HEADS else None
            if change.files or wanted:
                repo.commit(change.files, wanted, message, parent=parent, writer=writer)
            return
        except Exception as error:
            if isinstance(error, CommitError):
                raise
            fault = diagnose(error)
            if fault.is_fatal or attempt == SMALL_COMMIT_TRIES - 1:
                raise CommitError(f"{repo.name}: {fault.text}") from error
            num_stale += fault.kind == "conflict"
            end = time.monotonic() + patience.suffer(error, "commit").seconds
            while time.monotonic() < end:
                check()
                time.sleep(POLL_SECONDS)


def create_file(repo: Repo, path: str, content: bytes, message: str, check: Callable[[], None]) -> bytes:
    """Write a small file unless the output has it, and return the one that it has: of several writers, the first one's.

    Raises:
        CommitError: the output refuses for good.
    """

    def make(parent: str | None) -> Change:
        repo.create(path, content, message, parent)
        return Change()

    commit_change(repo, make, message, check)
    return repo.read(path) or content
