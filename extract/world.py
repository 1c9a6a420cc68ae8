"""The workers of a run: who is who, who takes which unit, and how one's failure or stop becomes everybody's.

Everything goes through the launcher's key-value store (torchrun's and accelerate's TCPStore): an atomic counter gives out
units, so that a slow worker holds nobody. No process group is made: nothing here needs NCCL, and a lost peer cannot hang one.
A worker that is silent for a minute is a failure too (extract/heartbeat.py), and so is a store that does not answer.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from extract.heartbeat import Heartbeat
from extract.stop import LateError

STORE_TIMEOUT = timedelta(seconds=60)
MEET_SECONDS = 300.0  # between the first and the last worker: imports from a slow disk
POLL_SECONDS = 0.05
CHECK_SECONDS = 1.0
SAFE = "Finished chunks stay in the caches; run again with --resume"


class WorkerError(RuntimeError):
    """Another worker of this run failed, or is gone; the text is its error."""


class World:
    """The workers as one of them sees them. Alone, without a launcher, everything is local."""

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, store: Any = None) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self.per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.store = store
        self.heartbeat = Heartbeat() if world_size > 1 else None
        self._claimed = 0
        self._checked = 0.0

    @classmethod
    def join(cls) -> World:
        """Join the run that the launcher's environment names (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, …).

        Raises:
            WorkerError: the store cannot be reached, or not all workers come.
        """
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if world_size == 1:
            return cls()
        from torch.distributed.rendezvous import rendezvous

        world = cls(rank, world_size, int(os.environ.get("LOCAL_RANK", rank)))
        store, _, _ = world._ask(lambda: next(rendezvous("env://", rank, world_size, timeout=STORE_TIMEOUT)))
        world.meet(store)
        return world

    def meet(self, store: Any) -> None:
        """Agree on a part of the store that is this run's alone, and begin to beat.

        The store outlives workers that the launcher starts again, and its count of restarts differs between machines: one
        that restarts for another's sake does not count it (torch 2.13). So the main worker names the meeting, and opens it
        once all have come. An older one that has the name still knows every rank, or was never opened.
        """
        from torch.distributed import PrefixStore

        assert self.heartbeat is not None
        key, name, is_mine = f"stillroom/{self.world_size}", "", False
        if self.is_main:
            self._ask(lambda: store.set(key, uuid.uuid4().hex))
        end = time.monotonic() + MEET_SECONDS
        while True:
            found = self._ask(lambda: store.get(key).decode() if store.check([key]) else "")
            if found != name:
                name, self.store = found, PrefixStore(f"stillroom/{found}", store)
                is_mine = self._ask(lambda: self.store.add(f"came/{self.rank}", 1)) == 1
            if self.is_main and self._has(*(f"came/{rank}" for rank in range(self.world_size))):
                self._ask(lambda: self.store.set("open", ""))
            if is_mine and self._has("open"):
                break
            if time.monotonic() > end:
                raise WorkerError(f"not all {self.world_size} workers came within {MEET_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        self.heartbeat.listen_to(self.store, self.rank, self.neighbour)

    @property
    def neighbour(self) -> int:
        """The worker that this one listens to: together, the workers listen to all."""
        return (self.rank + 1) % self.world_size

    @property
    def is_main(self) -> bool:
        """The one worker that plans, and finishes the card."""
        return self.rank == 0

    @property
    def is_leader(self) -> bool:
        """The one worker of this machine that uploads."""
        return self.local_rank == 0

    @property
    def num_machines(self) -> int:
        """Machines in the run, from what the launcher says of each."""
        return max(1, self.world_size // self.per_machine)

    def claim(self) -> int:
        """Return the next number that no worker has had, from 0."""
        if self.store is None:
            self._claimed += 1
            return self._claimed - 1
        return int(self._ask(lambda: self.store.add("claims", 1))) - 1

    def share(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what the main worker makes, on every worker. It goes through JSON."""
        if self.store is None:
            return make()
        if self.is_main:
            value = make()
            self._ask(lambda: self.store.set(key, json.dumps(value)))
            return value
        self._wait(key)
        return self._read(key)

    def gather(self, key: str, value: Any) -> list[Any]:
        """Return every worker's value, by rank, on every worker."""
        if self.store is None:
            return [value]
        self._ask(lambda: self.store.set(f"{key}/{self.rank}", json.dumps(value)))
        self.barrier(key)
        return [self._read(f"{key}/{rank}") for rank in range(self.world_size)]

    def barrier(self, name: str, tick: Callable[[], None] = lambda: None) -> None:
        """Wait until every worker is here, or one has failed."""
        if self.store is None:
            return
        if int(self._ask(lambda: self.store.add(f"barrier/{name}", 1))) == self.world_size:
            self._ask(lambda: self.store.set(f"barrier/{name}/open", "1"))
        self._wait(f"barrier/{name}/open", tick)

    def post(self, key: str, value: Any) -> None:
        """Leave a value for others to look at."""
        if self.store is not None:
            self._ask(lambda: self.store.set(f"{key}/{self.rank}", json.dumps(value)))

    def posted(self, key: str) -> list[Any]:
        """Return the values that workers have left, in no order."""
        if self.store is None:
            return []
        keys = [f"{key}/{rank}" for rank in range(self.world_size)]
        return [self._read(k) for k in keys if self._has(k)]

    def append(self, topic: str, text: str) -> None:
        """Add an entry to a list that all workers can read."""
        number = int(self._ask(lambda: self.store.add(f"{topic}/count", 1))) - 1
        self._ask(lambda: self.store.set(f"{topic}/{number}", text))

    def read(self, topic: str, start: int) -> list[str]:
        """Return the entries of a list from number `start` (0-based) on, up to the first that is still being written."""
        stop, entries = int(self._ask(lambda: self.store.add(f"{topic}/count", 0))), list[str]()
        while start + len(entries) < stop and self._has(key := f"{topic}/{start + len(entries)}"):
            entries.append(self._ask(lambda key=key: self.store.get(key)).decode())  # type: ignore[misc]
        return entries

    def request_stop(self, reason: str) -> None:
        """Ask all workers to drain."""
        if self.store is not None:
            self._ask(lambda: self.store.set("stop", reason))

    def stop_reason(self) -> str | None:
        """Why another worker asked for a stop, looked up once a second. A failure elsewhere is raised here.

        Raises:
            WorkerError: a worker failed; the text is its error.
        """
        if self.store is None or time.monotonic() - self._checked < CHECK_SECONDS:
            return None
        self._checked = time.monotonic()
        self._raise_failure()
        return self._ask(lambda: self.store.get("stop")).decode() if self._has("stop") else None

    def fail(self, error: BaseException) -> None:
        """Tell the others; the first failure is the one they raise. A LateError is their LateError."""
        if self.store is not None and not isinstance(error, WorkerError):
            is_late = isinstance(error, LateError)
            with suppress(WorkerError):  # a store that is gone must not hide the error
                self._fail(str(error) if is_late else f"worker {self.rank}: {type(error).__name__}: {error}", is_late)

    def _fail(self, text: str, is_late: bool = False) -> None:
        self._ask(lambda: self.store.compare_set("failed", "", json.dumps([text, is_late])))

    def _raise_failure(self) -> None:
        if self.heartbeat is not None and self.heartbeat.is_silent:
            seconds = self.heartbeat.lost_seconds
            self._fail(f"{self._describe(self.neighbour)} has not been heard of for {seconds:.0f} s. {SAFE}")
        if self._has("failed"):
            text, is_late = self._read("failed")
            raise LateError(text) if is_late else WorkerError(text)

    def _describe(self, rank: int) -> str:
        """A worker by its machine: that is what is lost, as launchers end all workers of a machine with one of them."""
        machine = rank // self.per_machine
        first, last = machine * self.per_machine, (machine + 1) * self.per_machine - 1
        return f"worker {rank}" if first <= self.rank <= last else f"machine {machine} (ranks {first}-{last})"

    def _read(self, key: str) -> Any:
        return json.loads(self._ask(lambda: self.store.get(key)))

    def _has(self, *keys: str) -> bool:
        return bool(self._ask(lambda: self.store.check(list(keys))))

    def _wait(self, key: str, tick: Callable[[], None] = lambda: None) -> None:
        while not self._has(key):
            self._raise_failure()
            tick()
            time.sleep(POLL_SECONDS)

    def _ask(self, call: Callable[[], Any]) -> Any:
        assert self.heartbeat is not None
        try:
            return self.heartbeat.ask(call)
        except Exception as error:  # torch raises its own types, and RuntimeError, for a lost connection
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            why = str(error).partition("\n")[0]  # what follows are frames of C++
            raise WorkerError(f"the launcher's store at {where} does not answer ({why}). {SAFE}") from error
