"""A generator that runs ahead in a thread: reading, rendering and tokenising overlap the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Yield `items`, computed in a thread, at most `depth` ahead. An error there is raised here, in its place.

    Closing this generator ends the thread at its next item.
    """
    ready: queue.Queue[T | BaseException | None] = queue.Queue(depth)
    is_closed = threading.Event()

    def put(item: T | BaseException | None) -> bool:
        while not is_closed.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=POLL_SECONDS)
                return True
        return False

    def produce() -> None:
        try:
            if all(put(item) for item in items):
                put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_closed.set()
        thread.join(timeout=10)
