"""24 hours of many writers on one repository, on a fake clock: the real committer and budget against the server's rules.

python benchmarks/commits.py --plot docs/commits.svg

The server: one commit at a time per repository (409 to any other), 128 commits per rolling hour (429), a commit takes 1 s and
9 ms per file, and one in 50 ends with a 500, half of these after it landed. A unit takes a worker five minutes; a chunk of
100 MB goes out at 50 MB/s. Workers stand in machines of eight. A run commits for all of its machines; jobs share nothing but
the repository, and see each other in its history; `cut` jobs end together every 55 minutes, as array jobs do.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from extract.settings import Settings
from hub.budget import HOUR, CommitBudget, PastCommit
from hub.commit import SECONDS_PER_MACHINE, UNITS_PER_UPLOAD
from hub.committer import Committer
from hub.patience import Patience
from hub.pending import Entry, Receipt

DAY = 24 * HOUR
WORKERS_PER_MACHINE = 8
UNIT_SECONDS = 300.0
UPLOAD_SECONDS = 2.0  # of one chunk
COMMITS_PER_HOUR = 128
COMMIT_SECONDS, FILE_SECONDS, CALL_SECONDS = 1.0, 0.009, 0.1
FAULT_RATE = 0.02
START_SECONDS = 60.0  # of a run that was cut: until its first unit begins again
RUN_SECONDS = 55 * 60.0
DRAIN_SECONDS = 90.0  # before its end a cut run stops computing and commits what it has
WINDOW = 300.0  # seconds of the window in which requests are counted


class Refusal(Exception):
    """An answer of the server, as huggingface_hub's errors carry it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = SimpleNamespace(status_code=status, text=text, headers={})


@dataclass
class Server:
    """One repository: what it holds, when, and what it was asked."""

    draw: random.Random
    visible: dict[str, float] = field(default_factory=dict)  # time by path
    history: list[tuple[float, str]] = field(default_factory=list)  # (time, writer) of commits that landed
    recent: deque[float] = field(default_factory=deque)
    locked_until: float = 0.0
    calls: Counter[int] = field(default_factory=Counter)  # by window of five minutes
    answers: Counter[str] = field(default_factory=Counter)

    def call(self, now: float, number: int = 1) -> None:
        """Count requests."""
        self.calls[int(now // WINDOW)] += number

    def commit(self, now: float, paths: Sequence[str], writer: str) -> float:
        """Land a commit and return its seconds, or refuse."""
        self.call(now, 2)  # preupload of the receipts, and the commit
        while self.recent and self.recent[0] <= now - HOUR:
            self.recent.popleft()
        if now < self.locked_until:
            self.answers["409"] += 1
            raise Refusal(409, "Another commit operation is in progress")
        if len(self.recent) >= COMMITS_PER_HOUR:
            self.answers["429"] += 1
            raise Refusal(429, f"the rate limit for repository commits ({COMMITS_PER_HOUR} per hour)")
        chance, seconds = self.draw.random(), COMMIT_SECONDS + FILE_SECONDS * len(paths)
        if chance >= FAULT_RATE / 2:
            self.locked_until = now + seconds
            self.recent.append(now + seconds)
            self.history.append((now + seconds, writer))
            for path in paths:
                self.visible.setdefault(path, now + seconds)
        if chance < FAULT_RATE:
            self.answers["500"] += 1
            raise Refusal(500, "Internal error")
        return seconds


class Writer:
    """One committer on its own clock; the repository as it sees it."""

    name = "simulated"

    def __init__(self, server: Server, name: str, offers: Sequence[tuple[float, list[Receipt]]], cut: bool) -> None:
        self.server, self.writer, self.offers, self.cut = server, name, deque(offers), cut
        self.now = 0.0
        self.draw = random.Random(name)
        self.end = RUN_SECONDS if cut else DAY
        self.begin()

    def begin(self) -> None:
        """Start a process: what the last one knew is gone, but for what is in pending."""
        waiting = self.committer.waiting if hasattr(self, "committer") else {}
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        budget = CommitBudget(Settings().commits_per_hour, self.writer, clock, self.draw.random)
        patience = Patience(self.name, clock, self.draw.random)
        self.committer = Committer(self, budget, patience, clock=clock)  # type: ignore[arg-type]
        self.committer.offer(waiting.values())

    def step(self) -> float:
        """Act at `now` and return the time of the next step."""
        while self.offers and self.offers[0][0] <= self.now:
            self.committer.offer(self.offers.popleft()[1])
        is_last = self.now >= self.end - DRAIN_SECONDS and self.cut
        self.committer.step(is_last=is_last)
        if self.cut and (self.now >= self.end or (is_last and not self.committer.waiting)):
            self.now = self.end + START_SECONDS
            self.end += RUN_SECONDS
            self.begin()
            return self.now
        wakes = self.offers[0][0] if self.offers else DAY
        if self.committer.waiting:
            wakes = self.now + max(0.2, self.committer._wait(is_last))
        return wakes if is_last else min(wakes, max(self.now + 0.2, self.end - DRAIN_SECONDS))

    def recent_commits(self) -> list[PastCommit]:
        """See Repo."""
        self.server.call(self.now, 2)  # pages
        recent = [(t, w) for t, w in self.server.history[-400:] if self.now - HOUR < t <= self.now]
        return [PastCommit("", self.now - t, w) for t, w in recent]

    def commit(self, files: Mapping[str, Any], deletes: object, message: str, *, parent: object, writer: str) -> None:
        """See Repo."""
        try:
            self.now += self.server.commit(self.now, list(files), writer)
        except Refusal:
            self.now += CALL_SECONDS
            raise

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """See Repo."""
        self.server.call(self.now, -(-len(entries) // 500))
        return [entry for entry in entries if self.server.visible.get(entry.path, DAY * 2) > self.now]


def finished(worker: int, cut: bool, draw: random.Random) -> Iterator[tuple[float, Receipt]]:
    """Yield when a worker finishes its units; a cut run begins none that it cannot end."""
    now, end = draw.uniform(0, 60), RUN_SECONDS if cut else DAY
    for number in range(10**6):
        seconds = UNIT_SECONDS * draw.uniform(0.8, 1.2)
        if cut and now + seconds > end - DRAIN_SECONDS:
            now, end = end + START_SECONDS, end + RUN_SECONDS
        now += seconds
        if now >= DAY:
            return
        start = worker * 10**6 + number
        yield now, Receipt(start, start + 1, (Entry(f"{start}", 10**8, "0" * 64),), {})


def uploads(
    machine: int, num_workers: int, num_machines: int, cut: bool, server: Server, draw: random.Random
) -> Iterator[tuple[float, list[Receipt], list[float]]]:
    """Yield (time, units, when they were finished) of a machine's uploads, at the pace that Uploader keeps."""
    workers = range(machine * WORKERS_PER_MACHINE, machine * WORKERS_PER_MACHINE + num_workers)
    ready = deque(heapq.merge(*(finished(worker, cut, draw) for worker in workers), key=lambda unit: unit[0]))
    free = 0.0
    while ready:
        now = max(free, ready[0][0] + 0.2)
        group = []
        while ready and ready[0][0] <= now and len(group) < UNITS_PER_UPLOAD:
            group.append(ready.popleft())
        done = now + UPLOAD_SECONDS * len(group)
        server.call(now, 3)
        free = now + SECONDS_PER_MACHINE * (num_machines - 1) * draw.uniform(0.5, 1.5)
        yield done, [receipt for _, receipt in group], [t for t, _ in group]


@dataclass(frozen=True)
class Result:
    """One simulated day."""

    name: str
    workers: int
    per_hour: list[float]  # landed commits of the rolling hour, every ten minutes
    most_per_hour: int
    units_per_commit: float
    median_seconds: float
    p99_seconds: float
    most_calls: int
    busy: int
    limited: int
    late: int  # units that were finished an hour before the end and are not visible


def simulate(name: str, num_workers: int, *, jobs: bool, cut: bool) -> Result:
    """Run a day and measure it."""
    draw = random.Random(name)
    server = Server(draw)
    num_machines = -(-num_workers // WORKERS_PER_MACHINE)
    offers, made = list[list[tuple[float, list[Receipt]]]](), dict[str, float]()
    for machine in range(num_machines):
        size = min(WORKERS_PER_MACHINE, num_workers - machine * WORKERS_PER_MACHINE)
        mine = []
        for done, receipts, times in uploads(machine, size, num_machines, cut, server, draw):
            mine.append((done, receipts))
            made.update(zip((r.files[0].path for r in receipts), times, strict=True))
        offers.append(mine)
    if not jobs:
        offers = [sorted((offer for mine in offers for offer in mine), key=lambda offer: offer[0])]
    writers = [Writer(server, f"{name}-{number}", mine, cut) for number, mine in enumerate(offers)]
    events = [(writer.step(), number) for number, writer in enumerate(writers)]
    heapq.heapify(events)
    while events[0][0] < DAY:
        now, number = heapq.heappop(events)
        writers[number].now = max(now, writers[number].now)
        heapq.heappush(events, (writers[number].step(), number))
    landed = sorted(t for t, _ in server.history)
    waits = [server.visible[path] - t for path, t in made.items() if path in server.visible]
    return Result(
        name,
        num_workers,
        [sum(end - HOUR < t <= end for t in landed) for end in range(3600, int(DAY), 600)],
        max(sum(t - HOUR < other <= t for other in landed) for t in landed),
        len(server.visible) / len(landed),
        median(waits),
        quantiles(waits, n=100)[98],
        max(server.calls.values()),
        server.answers["409"],
        server.answers["429"],
        sum(t < DAY - HOUR and path not in server.visible for path, t in made.items()),
    )


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw commits per rolling hour over the day, and the time until a chunk is visible."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for result in results:
        left.plot([1 + number / 6 for number in range(len(result.per_hour))], result.per_hour, label=result.name)
    left.axhline(COMMITS_PER_HOUR, color="grey", linestyle=":")
    left.set(xlabel="hour", ylabel="commits landed in the hour before", ylim=(0, COMMITS_PER_HOUR + 8))
    left.legend(fontsize=7, ncols=2)
    places = range(len(results))
    right.bar(places, [result.p99_seconds for result in results], color="lightgrey", label="p99")
    right.bar(places, [result.median_seconds for result in results], width=0.5, label="median")
    right.set(ylabel="seconds from finished chunk to visible", yscale="log")
    right.set_xticks(places, [result.name for result in results], rotation=40, ha="right", fontsize=7)
    right.legend()
    figure.tight_layout()
    figure.savefig(path)


@click.command()
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="SVG to draw into; needs matplotlib")
def main(plot_path: Path | None) -> None:
    """Simulate a day for each size of run, and print one table."""
    cases = [(f"run of {n:,}", n, False, False) for n in (1, 8, 64, 256, 1024)]
    cases += [(f"{n // 8} jobs of 8", n, True, False) for n in (64, 256, 512)]
    cases += [(f"{n // 8} jobs of 8, cut", n, True, True) for n in (64, 256)]
    print(
        "| | workers | commits/h, most | chunks/commit | visible after, median | p99 | requests/5 min, most | 409 | 429 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for name, workers, jobs, cut in cases:
        result = simulate(name, workers, jobs=jobs, cut=cut)
        results.append(result)
        print(
            f"| {name} | {workers:,} | {result.most_per_hour} | {result.units_per_commit:.1f} | {result.median_seconds:.0f} s "
            f"| {result.p99_seconds:.0f} s | {result.most_calls:,} | {result.busy} | {result.limited} |",
            flush=True,
        )
        if result.late:
            print(f"{result.late} chunks were finished an hour before the end and never landed")
            sys.exit(1)
    if plot_path:
        plot(results, plot_path)


if __name__ == "__main__":
    main()
