"""Signs of life between workers, and an end to every call of the launcher's store.

A machine that is taken away sends no reset. torch's TCPStore (2.13) has neither keepalive nor a timeout for an answer: `add`
and `check` of a store whose machine is gone wait until the kernel gives up, 15 minutes with Linux's defaults, and its
`timeout` counts only for connecting and for keys that nobody has set. So one thread makes all calls, and whoever asks waits
for it no longer than `LOST_SECONDS`. The same thread beats: it lives as long as its process, however long a batch takes.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

BEAT_SECONDS = 5.0
# TCP doubles its pause, 0.2 s at first, after each try: a line that is down for 45 s is in use again after 51.
LOST_SECONDS = 60.0

CLOSE_SECONDS = 1.0

Task = tuple[Future[Any], Callable[[], Any]]


class Heartbeat:
    """The thread that calls the store; once `listen_to` is called it beats, and listens to another worker.

    Clocks of machines differ, so that a beat is a counter: what counts is when it was last seen to change, here.
    """

    def __init__(self, beat_seconds: float = BEAT_SECONDS, lost_seconds: float = LOST_SECONDS) -> None:
        self.beat_seconds, self.lost_seconds = beat_seconds, lost_seconds
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._is_stuck = False
        self._beats: Callable[[], int] | None = None
        self._count, self._changed, self._listened = -1, 0.0, 0.0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that Python ends inside a call of torch ends the process with SIGABRT

    def close(self) -> None:
        """Make no more calls; one that does not come back is left to itself."""
        self._tasks.put(None)
        self._thread.join(CLOSE_SECONDS)

    def ask(self, call: Callable[[], Any]) -> Any:
        """Return what a call of the store returns.

        Raises:
            TimeoutError: the store has not answered for `lost_seconds`; later calls are not made.
        """
        future: Future[Any] = Future()
        if not self._is_stuck:
            self._tasks.put((future, call))
        try:
            return future.result(0.0 if self._is_stuck else self.lost_seconds)
        except TimeoutError:
            if future.done():  # the store's own
                raise
            self._is_stuck = True
            raise TimeoutError(f"no answer for {self.lost_seconds:.0f} s") from None

    def listen_to(self, store: Any, rank: int, other: int) -> None:
        """Begin to beat as worker `rank`, and to listen to another one's beats."""

        def beats() -> int:
            store.add(f"beat/{rank}", 1)
            return int(store.add(f"beat/{other}", 0))

        self._changed = self._listened = time.monotonic()
        self._beats = beats

    @property
    def is_silent(self) -> bool:
        """The other one has not beaten for so long that it, its machine or its line must be gone.

        Only time up to the last answer of the store counts: while this machine's own line is down, nobody can be heard.
        """
        return self._listened - self._changed > self.lost_seconds

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + self.beat_seconds
                self._listen()
            try:
                task = self._tasks.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                continue
            if task is None:
                return
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

    def _listen(self) -> None:
        if self._beats is None:
            return
        try:
            count = self._beats()
        except Exception:  # whoever asks next gets the error
            return
        self._listened = time.monotonic()
        if count != self._count:
            self._count, self._changed = count, self._listened
