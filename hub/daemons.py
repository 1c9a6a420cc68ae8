"""Threads that never hold up the end of the process: an upload that hangs on a dead line must not keep a stopped run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

Task = tuple[Future[None], Callable[[], None]]


class Daemons:
    """A small thread pool. That of the standard library is joined at exit, however long its calls still take."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], None]) -> Future[None]:
        """Have a call made; its error is in the future."""
        future: Future[None] = Future()
        self._queue.put((future, call))
        return future

    def close(self) -> None:
        """Begin no other call; those under way are left to themselves."""
        self._closed.set()
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None and not self._closed.is_set():
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
