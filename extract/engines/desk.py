"""Batches in, vectors out in their order, with many requests to several servers between."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from extract.engines import EngineError, EngineLostError
from extract.engines.endpoint import Endpoint
from extract.engines.wire import Fault, ServerFault, TooBigFault
from extract.sample import Batch, Sample

POLL_SECONDS = 0.1
ALONE_TRIES, MOST_TRIES = 2, 6  # server errors after which a text is sent alone, and after which it is the culprit
AHEAD = 2  # requests that wait for each that may be under way
MOST_TOKENS_AHEAD = 2**22


@dataclass(eq=False)
class Flight:
    """A batch under way."""

    batch: Batch
    num_left: int
    vectors: list[np.ndarray | None] = field(default_factory=list)


@dataclass(eq=False)
class Item:
    """One text to send, and whose it is."""

    flight: Flight
    place: int
    sample: Sample
    tries: int = 0  # that ended in a server error


class Desk:
    """The queue between one run and its endpoints. Threads take from it; `patience` is in seconds."""

    def __init__(self, endpoints: Sequence[Endpoint], patience: float) -> None:
        self.endpoints, self.patience = endpoints, patience
        self.changed = threading.Condition()
        self.items: deque[Item] = deque()
        self.flights: deque[Flight] = deque()
        self.num_waiting_tokens = 0
        self.is_closed = self.is_ended = False  # ended: no more batches will come
        self.error: BaseException | None = None
        self.num_threads = dict.fromkeys(endpoints, 0)
        self.began = time.monotonic()

    @property
    def has_room(self) -> bool:
        """Whether more batches are wanted."""
        wanted = sum(AHEAD * endpoint.tokens * endpoint.requests for endpoint in self.endpoints)
        return self.num_waiting_tokens < min(wanted, MOST_TOKENS_AHEAD)

    def put(self, batch: Batch) -> None:
        """Queue a batch."""
        flight = Flight(batch, len(batch.samples), [None] * len(batch.samples))
        with self.changed:
            self.flights.append(flight)
            self.items += [Item(flight, place, sample) for place, sample in enumerate(batch.samples)]
            self.num_waiting_tokens += batch.num_tokens
            self._staff()
            self.changed.notify_all()

    def end(self) -> None:
        """Say that no more batches will come."""
        with self.changed:
            self.is_ended = True

    def take(self, timeout: float) -> Flight | None:
        """Return the first batch if it is whole, or becomes so in time.

        Raises:
            EngineLostError: no server has answered for longer than the patience.
            EngineError: a server refuses what is sent.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.error or (self.flights and not self.flights[0].num_left), timeout)
            if self.error is not None:
                raise self.error
            if self.flights and not self.flights[0].num_left:
                return self.flights.popleft()
            self._check_patience()
            self._staff()
        return None

    def close(self) -> None:
        """Let the threads end; requests under way are left to themselves."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    def _check_patience(self) -> None:
        last = max(self.began, *(endpoint.answered for endpoint in self.endpoints))
        if all(endpoint.is_down for endpoint in self.endpoints) and time.monotonic() - last > self.patience:
            names = ", ".join(endpoint.client.name for endpoint in self.endpoints)
            raise EngineLostError(f"no answer from {names} for {self.patience / 60:g} minutes")

    def _staff(self) -> None:
        for endpoint in self.endpoints:
            while self.num_threads[endpoint] < min(endpoint.requests, len(self.items) + self.num_threads[endpoint]):
                self.num_threads[endpoint] += 1
                threading.Thread(target=self._serve, args=(endpoint,), name="endpoint", daemon=True).start()

    def _serve(self, endpoint: Endpoint) -> None:
        """What each thread does: take what a request should hold, send it, put the answer where it belongs."""
        while True:
            with self.changed:
                while not self.is_closed and not (self.items and endpoint.may_send):
                    if not self.items and endpoint.may_send and not self.is_ended:
                        endpoint.pace.starve()
                    self.changed.wait(POLL_SECONDS)
                if self.is_closed:
                    return
                items = self._pick(endpoint)
                epoch = endpoint.pace.sent()
            try:
                vectors = endpoint.client.embed([item.sample for item in items])
                if vectors.shape[0] != len(items) or not np.isfinite(vectors).all():
                    raise ServerFault(f"{endpoint.client.name}: {vectors.shape[0]} finite vectors of {len(items)}")
            except Fault as fault:
                self._fail(endpoint, epoch, items, fault)
            except BaseException as error:  # refused for good, or a defect of ours: the run must end
                with self.changed:
                    self.error = self.error or error
                    self.changed.notify_all()
                return
            else:
                self._deliver(endpoint, epoch, items, vectors)

    def _pick(self, endpoint: Endpoint) -> list[Item]:
        items = [self.items.popleft()]
        longest = items[0].sample.num_tokens
        while self.items and len(items) < endpoint.max_texts and items[0].tries < ALONE_TRIES:
            longest = max(longest, self.items[0].sample.num_tokens)
            if longest * (len(items) + 1) > endpoint.tokens or self.items[0].tries >= ALONE_TRIES:
                break
            items.append(self.items.popleft())
        self.num_waiting_tokens -= sum(item.sample.num_tokens for item in items)
        return items

    def _deliver(self, endpoint: Endpoint, epoch: int, items: list[Item], vectors: np.ndarray) -> None:
        with self.changed:
            for item, vector in zip(items, vectors, strict=True):
                item.flight.vectors[item.place] = vector
                item.flight.num_left -= 1
            endpoint.succeed(epoch, sum(item.sample.num_tokens for item in items))
            self._staff()
            self.changed.notify_all()

    def _fail(self, endpoint: Endpoint, epoch: int, items: list[Item], fault: Fault) -> None:
        with self.changed:
            tokens = max(item.sample.num_tokens for item in items) * len(items)
            was_well = not endpoint.is_down
            endpoint.suffer(epoch, fault, len(items), tokens)
            if len(items) == 1 and isinstance(fault, TooBigFault):
                self.error = EngineError(
                    f"one text of {tokens} tokens is too long, give a smaller --max-length: {fault}"
                )
            if isinstance(fault, ServerFault):
                for item in items:
                    item.tries += 1
                if items[0].tries >= MOST_TRIES and was_well:  # others were answered between its tries
                    self.error = EngineError(f"one text of {tokens} tokens fails again and again: {fault}")
            behind = items[0].tries >= ALONE_TRIES  # let others show whether the server is well
            (self.items.extend if behind else self.items.extendleft)(items if behind else items[::-1])
            self.num_waiting_tokens += sum(item.sample.num_tokens for item in items)
            self.changed.notify_all()
