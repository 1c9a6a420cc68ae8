"""The upload thread: bytes go out as soon as a chunk is whole, commits are grouped, and a failure here fails the run."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from hub.budget import CommitBudget
from hub.daemons import Daemons
from hub.faults import Fault, diagnose
from hub.pending import Pending, Receipt
from hub.repo import CommitError, Repo

logger = logging.getLogger(__name__)

MAX_UNITS_PER_COMMIT = 100  # the Hub recommends 50 to 100 files; 1,000 still take under 10 s
UPLOAD_THREADS = 4
SMALL_COMMIT_TRIES = 20
POLL_SECONDS = 0.2
LAST_POLL_SECONDS = 0.02  # while the run waits for the last commit
PATIENCE = 6 * 3600.0  # seconds of faults and no success before the run gives up: a limit or an outage passes sooner
FATAL_TRIES = 3  # a 401, 403 or 404 in the middle of a run is tried again: such answers have been seen to pass
FATAL_SECONDS = 10.0  # between two of these tries; several uploads that fail together are one

Describe = Callable[[Sequence[Receipt]], Mapping[str, bytes]]


@dataclass
class UploadStats:
    """What the thread has done, for the progress line and the summary."""

    num_commits: int = 0
    num_units: int = 0
    num_bytes: int = 0
    faults: dict[str, int] = field(default_factory=dict)  # by kind
    upload_seconds: float = 5.0  # of the slowest of the last uploads and commits: what a drain should expect


class Uploader:
    """Pours pending into the repository. `describe` gives the small files that belong into the same commit as some units.

    One per machine. It deletes from pending only what the repository is known to hold with that size and SHA-256.
    """

    def __init__(self, repo: Repo, pending: Pending, budget: CommitBudget, describe: Describe) -> None:
        self.repo, self.pending, self.budget, self.describe = repo, pending, budget, describe
        self.stats = UploadStats()
        self._uploads: dict[int, Future[None]] = {}  # by start of the unit
        self._pool = Daemons(UPLOAD_THREADS, "upload")
        self._closing = threading.Event()
        self._leaving = threading.Event()
        self._error: BaseException | None = None
        self._ill_since: float | None = None  # monotonic time of the first fault after the last success
        self._fatal_tries, self._fatal_from = 0, 0.0
        self._uploads_from = 0.0  # monotonic time before which no upload begins, after one failed
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
        left = self.budget.num_left
        return {
            "pending": self.num_pending,
            "commits": self.stats.num_commits,
            "commits_left": left if left != float("inf") else None,
            "uploaded_bytes": self.stats.num_bytes,
            "faults": self.stats.faults,
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
                if not receipts and self._closing.is_set():
                    return
                self._start_uploads(receipts)
                ready = self._uploaded(receipts)
                if self._is_due(ready, receipts):
                    self._commit(ready[:MAX_UNITS_PER_COMMIT])
                self._leaving.wait(LAST_POLL_SECONDS if self._closing.is_set() else POLL_SECONDS)
        except BaseException as error:
            self._error = error

    def _start_uploads(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if receipt.start not in self._uploads and time.monotonic() >= self._uploads_from:
                self._uploads[receipt.start] = self._pool.submit(partial(self._upload, receipt))

    def _upload(self, receipt: Receipt) -> None:
        started = time.monotonic()
        self.repo.upload({self.pending.files / entry.path: entry for entry in receipt.files})
        self._took(time.monotonic() - started)

    def _uploaded(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Those whose bytes are out; an upload that failed is begun again, after the wait that its error asks for."""
        good = []
        for receipt in receipts:
            upload = self._uploads.get(receipt.start)
            if upload is None or not upload.done():
                continue
            if (error := upload.exception()) is None:
                good.append(receipt)
            else:
                del self._uploads[receipt.start]
                self._uploads_from = time.monotonic() + self._suffer(error, "upload").seconds
        return good

    def _is_due(self, ready: Sequence[Receipt], receipts: Sequence[Receipt]) -> bool:
        is_last = self._closing.is_set() and len(ready) == len(receipts)
        return bool(ready) and self.budget.wait_seconds(is_last=is_last) <= 0

    def _commit(self, receipts: Sequence[Receipt]) -> None:
        """Commit, then ask the repository what it holds: an error may come after the commit landed, and the reverse."""
        entries = [entry for receipt in receipts for entry in receipt.files]
        files: dict[str, Path | bytes] = {entry.path: self.pending.files / entry.path for entry in entries}
        started = time.monotonic()
        try:
            self.budget.spend()
            self.repo.commit({**files, **self.describe(receipts)}, [], _message(receipts))
        except Exception as error:
            if self._suffer(error, "commit").kind in ("busy", "conflict"):
                self.budget.refund()
        self._confirm(receipts)
        self._took(time.monotonic() - started)

    def _confirm(self, receipts: Sequence[Receipt]) -> None:
        entries = [entry for receipt in receipts for entry in receipt.files]
        try:
            missing = set(self.repo.missing(entries))
        except Exception as error:
            self._suffer(error, "check")
            return
        landed = [r for r in receipts if not missing.intersection(r.files)]
        for receipt in landed:
            self.pending.remove(receipt)
            self._uploads.pop(receipt.start, None)
        if landed:
            self._ill_since, self._fatal_tries = None, 0
            self.stats.num_commits += 1
            self.stats.num_units += len(landed)
            self.stats.num_bytes += sum(receipt.size for receipt in landed)

    def _suffer(self, error: BaseException, doing: str) -> Fault:
        """Return the diagnosis and hold back as it asks, or give up where waiting cannot help."""
        if isinstance(error, CommitError) or not isinstance(error, Exception):
            raise error
        fault = diagnose(error)
        self.stats.faults[fault.kind] = self.stats.faults.get(fault.kind, 0) + 1
        now = time.monotonic()
        self._ill_since = now if self._ill_since is None else self._ill_since
        if fault.is_fatal and now >= self._fatal_from:
            self._fatal_tries, self._fatal_from = self._fatal_tries + 1, now + FATAL_SECONDS
        if self._fatal_tries >= FATAL_TRIES or now - self._ill_since > PATIENCE:
            raise CommitError(
                f"{self.repo.name}: {doing} failed: {fault.text}. Finished chunks stay in the cache"
            ) from error
        seconds = self._pause(fault)
        logger.info("%s: %s: %s (%s); again in %.1f s", self.repo.name, doing, fault.text, fault.kind, seconds)
        return replace(fault, seconds=seconds)

    def _pause(self, fault: Fault) -> float:
        """Hold commits back with full jitter, so that writers refused together do not come back together."""
        seconds = fault.seconds or FATAL_SECONDS
        if fault.kind != "hourly":
            seconds *= random.uniform(0.25, 1.0)
        self.budget.block(seconds, fault.per_hour)
        return seconds

    def _took(self, seconds: float) -> None:
        self.stats.upload_seconds = max(0.8 * self.stats.upload_seconds, seconds)


def _message(receipts: Sequence[Receipt]) -> str:
    records = sum(receipt.counts.get("records", 0) for receipt in receipts)
    ranges = f"rows {receipts[0].start:,}–{receipts[-1].stop:,}"
    return f"Add {len(receipts)} chunk{'s'[: len(receipts) != 1]}, {records:,} records ({ranges})"


def commit_files(
    repo: Repo, files: Mapping[str, bytes], deletes: Sequence[str], message: str, check: Callable[[], None]
) -> None:
    """Commit small files, trying again until it succeeds; `check` may raise to end the wait.

    Safe to repeat: the Hub's client drops files that are already there, and deletes are asked for only while needed.

    Raises:
        CommitError: the output refuses for good.
    """
    for attempt in range(SMALL_COMMIT_TRIES):
        try:
            there = repo.list_files() if deletes else {}
            wanted = [path for path in deletes if any(f == path or f.startswith(path) for f in there)]
            repo.commit(files, wanted, message)
            return
        except Exception as error:
            if isinstance(error, CommitError):
                raise
            fault = diagnose(error)
            if fault.is_fatal or attempt == SMALL_COMMIT_TRIES - 1:
                raise CommitError(f"{repo.name}: {fault.text}") from error
            logger.info("%s: commit: %s; trying again", repo.name, fault.text)
            end = time.monotonic() + random.uniform(0.25, 1.0) * fault.seconds
            while time.monotonic() < end:
                check()
                time.sleep(POLL_SECONDS)
