"""A generator that runs ahead in a thread: reading, rendering and tokenising overlap the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


def read_ahead(items: Iterable[T], depth: int, weigh: Callable[[T], int] = lambda item: 1) -> Generator[T, None, None]:
    """Yield `items`, computed in a thread, at most `depth` ahead. An error there is raised here, in its place.

    `weigh` says for how many of the `depth` an item counts, where some hold much memory.

    Closing this generator ends the thread at its next item.
    """
    ready: queue.Queue[tuple[int, T] | BaseException | None] = queue.Queue()
    places = threading.Semaphore(depth)
    is_closed = threading.Event()

    def put(item: T) -> bool:
        weight = min(depth, weigh(item))
        for _ in range(weight):
            while not places.acquire(timeout=POLL_SECONDS):
                if is_closed.is_set():
                    return False
        ready.put((weight, item))
        return not is_closed.is_set()

    def produce() -> None:
        try:
            if all(map(put, items)):
                ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (got := ready.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            places.release(got[0])
            yield got[1]
    finally:
        is_closed.set()
        thread.join(timeout=10)
