"""Goodput of a day: the share of the workers' 24 hours that went into units which are not lost, on a fake clock.

Eight machines of eight workers share nothing but the output (an array of jobs). Each machine is taken away after 4 hours in
the mean, at any moment, half of the time with its disk, and another takes its place at once; in between, a run ends by
itself after 55 minutes (`--max-runtime-minutes`). The real `Stop` decides which unit may begin, and the real committer and
budget, against the server of commits.py, decide when a unit is safe from the loss of its disk. Lost are: the start of each
process (measured on this machine, or a minute, as for a large model), waiting for the last worker and the last commit of a
run, the unit in hand of a lost disk, and its units that were not committed. A kept disk loses nothing: batches of the unit
in hand are on it.
"""

from __future__ import annotations

import heapq
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.commits import DAY, RUN_SECONDS, UPLOAD_SECONDS, WORKERS_PER_MACHINE, Server, Writer
from benchmarks.table import Row
from builders.demo import write_demo
from extract.settle import UNIT_SECONDS
from extract.stop import COMMIT_SECONDS, Stop
from hub.pending import Entry, Receipt
from tests.runs import MINILM, Bench

MACHINES, LOST_EVERY, DISKS_LOST, LONG_START, DAYS = 8, 4 * 3600.0, 0.5, 60.0, 3
GOAL = 0.97


@dataclass
class Clock:
    """A time that is set."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Worker:
    """One worker over the processes of a day. A kept disk has the first `done` of the `took` seconds of its unit in hand."""

    draw: random.Random
    took: float = 0.0
    done: float = 0.0
    worked: float = 0.0  # seconds in units, lost ones too

    def run(
        self, began: float, first: float, killed: float, *, keeps_disk: bool
    ) -> tuple[float, list[tuple[float, float]]]:
        """Live from a process's start and first batch; return when it is idle, and (end, seconds) of finished units."""
        clock = Clock(began)
        stop, finished = Stop(RUN_SECONDS / 60, clock), list[tuple[float, float]]()
        stop.uploaded(UPLOAD_SECONDS)
        stop.keeps_disk = keeps_disk
        clock.now, leave = first, min(killed, began + RUN_SECONDS - stop.drain_seconds)
        while clock.now < leave and stop.may_begin():
            self.took = self.took or UNIT_SECONDS * self.draw.uniform(0.8, 1.2)
            spent = min(self.took - self.done, leave - clock.now)
            clock.now, self.done, self.worked = clock.now + spent, self.done + spent, self.worked + spent
            if clock.now < leave:
                finished.append((clock.now, self.took))
                stop.finished_unit(self.took)
                self.took = self.done = 0.0
        return clock.now, finished

    def lose_disk(self) -> float:
        """Forget the unit in hand; return its seconds."""
        lost, self.took, self.done = self.done, 0.0, 0.0
        return lost


@dataclass
class Machine:
    """The processes of a day on one machine and its successors."""

    number: int
    draw: random.Random
    start_seconds: float
    ends: list[tuple[float, bool]] = field(default_factory=list)  # of processes, and whether the disk was lost there
    offers: list[tuple[float, list[Receipt]]] = field(default_factory=list)
    units: dict[str, tuple[float, float]] = field(default_factory=dict)  # path -> finished, seconds
    lost: float = 0.0  # seconds of units in hand
    worked: float = 0.0

    def live(self) -> None:
        """Fill in the day."""
        workers = [Worker(random.Random(self.draw.random())) for _ in range(WORKERS_PER_MACHINE)]
        now, killed, keeps_disk = 0.0, self.draw.expovariate(1 / LOST_EVERY), False
        while now < DAY:
            results = [
                worker.run(now, now + self.start_seconds, min(killed, DAY), keeps_disk=keeps_disk)
                for worker in workers
            ]
            end = min(killed, max(idle for idle, _ in results) + UPLOAD_SECONDS + COMMIT_SECONDS)
            for finished, seconds in sorted(unit for _, units in results for unit in units):
                self.offer(finished, seconds)
            disk_is_lost = end == killed and self.draw.random() < DISKS_LOST
            if disk_is_lost:
                self.lost += sum(worker.lose_disk() for worker in workers)
            if end == killed:
                killed = end + self.draw.expovariate(1 / LOST_EVERY)
            self.ends.append((end, disk_is_lost))
            now, keeps_disk = end, not disk_is_lost
        self.worked = sum(worker.worked for worker in workers)

    def offer(self, finished: float, seconds: float) -> None:
        """A unit is whole on the disk, and is sent."""
        start = self.number * 10**6 + len(self.units)
        self.units[f"{start}"] = (finished, seconds)
        self.offers.append(
            (finished + UPLOAD_SECONDS, [Receipt(start, start + 1, (Entry(f"{start}", 10**8, "0" * 64),), {})])
        )

    def uncommitted(self, server: Server) -> float:
        """Seconds of units that a lost disk took with it."""
        losses = [end for end, is_lost in self.ends if is_lost]
        taken = 0.0
        for path, (finished, seconds) in self.units.items():
            loss = next((end for end in losses if end >= finished), None)
            taken += seconds if loss is not None and server.visible.get(path, 2 * DAY) > loss else 0.0
        return taken


class Committing(Writer):
    """The committer of a machine, over its processes; what waits is gone with a lost disk."""

    def __init__(self, server: Server, name: str, machine: Machine) -> None:
        super().__init__(server, name, machine.offers, cut=True)
        self.ends = deque(machine.ends)

    def step(self) -> float:
        """See Writer."""
        end, disk_is_lost = self.ends[0]
        while self.offers and self.offers[0][0] <= self.now:
            self.committer.offer(self.offers.popleft()[1])
        if self.now >= end:
            self.ends.popleft()
            if disk_is_lost:
                self.committer.waiting.clear()
                while self.offers and self.offers[0][0] - UPLOAD_SECONDS <= end:
                    self.offers.popleft()
            self.begin()
            return self.now if self.ends else DAY
        is_last = self.now >= end - COMMIT_SECONDS
        self.committer.step(is_last=is_last)
        wakes = self.offers[0][0] if self.offers else DAY
        if self.committer.waiting:
            wakes = self.now + max(0.2, self.committer._wait(is_last))
        return min(wakes, max(self.now + 0.2, end - COMMIT_SECONDS if not is_last else end))


def goodput(seed: int, start_seconds: float) -> float:
    """Live through a day."""
    draw = random.Random(seed)
    server = Server(draw)
    machines = [Machine(number, random.Random(draw.random()), start_seconds) for number in range(MACHINES)]
    for machine in machines:
        machine.live()
    writers = [Committing(server, f"{seed}-{machine.number}", machine) for machine in machines]
    events = [(0.0, number) for number in range(MACHINES)]
    while events[0][0] < DAY:
        now, number = heapq.heappop(events)
        writers[number].now = max(now, writers[number].now)
        heapq.heappush(events, (writers[number].step(), number))
    useful = sum(machine.worked - machine.lost - machine.uncommitted(server) for machine in machines)
    return useful / (DAY * MACHINES * WORKERS_PER_MACHINE)


def starts(count: int = 3) -> list[float]:
    """Seconds from the start of a process to the first batch of MiniLM that is safe on the disk, of a resumed run."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        source = write_demo(bench.root / "demo.parquet", 1000)
        options = ["--source", str(source), "--model", MINILM, "--output", str(bench.root / "out"), "--resume"]
        for number in range(count + 1):
            began, process = time.monotonic(), bench.start(*options, "--chunk-rows", "500")
            before = sum(path.stat().st_size for path in bench.cache.glob("jobs/*/partial/*.part"))
            try:
                while sum(path.stat().st_size for path in bench.cache.glob("jobs/*/partial/*.part")) <= before:
                    if process.poll() is not None:
                        raise RuntimeError(bench.log.read_text()[-2000:])
                    time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
            if number:  # the first makes the output and fills the disk's caches
                found.append(time.monotonic() - began)
    return found


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    measured = starts()
    yield Row("start to the first batch, MiniLM", "s", measured, is_less=True)
    for seconds in (statistics.median(measured), LONG_START):
        days: Sequence[float] = [goodput(seed, seconds) for seed in range(DAYS)]
        note = f"simulated, start {seconds:.0f} s"
        yield Row("goodput of a day with failures", "of all seconds", days, goal=GOAL, note=note)
