"""The way from a machine's uploads to the run's one committer, and back.

Bytes go out from every machine in parallel; the tiny commit is made by the main machine for all of them, so that a run of
any size spends one writer's part of the repository's hourly commits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Protocol

from hub.committer import Committer, Outcome
from hub.pending import Receipt

OFFERED, SETTLED = "offered", "settled"


class Channel(Protocol):
    """Lists of text that every machine of a run may append to and read, in one order for all."""

    def append(self, topic: str, text: str) -> None:
        """Add an entry at the end of a topic's list."""

    def read(self, topic: str, start: int) -> list[str]:
        """Return the entries from number `start` (0-based) on."""


class Outbox(Protocol):
    """Where a machine's upload thread leaves units whose bytes are out, and learns what became of them."""

    def offer(self, receipts: Sequence[Receipt]) -> None:
        """Hand over; may be repeated."""

    def step(self) -> Outcome:
        """Let the committer work, if it is here, and return what became of this machine's units since the last call."""

    def close(self) -> None:
        """Say that every unit of this machine has been offered, and none will follow; may be repeated."""

    @property
    def is_done(self) -> bool:
        """Whether the thread may end, once its own pending is empty."""

    def status(self) -> dict[str, float]:
        """What the progress display says of commits."""


class LocalOutbox:
    """The committer's own machine: it takes in what the others offer as well."""

    def __init__(self, committer: Committer, channel: Channel | None = None, num_machines: int = 1) -> None:
        self.committer, self.channel = committer, channel
        self.num_open = num_machines
        self._is_closed = False
        self._read = 0  # entries of the channel
        self._others: set[int] = set()  # starts of units of other machines that have not landed

    def offer(self, receipts: Sequence[Receipt]) -> None:
        """See Outbox."""
        self.committer.offer(receipts)

    def step(self) -> Outcome:
        """See Outbox."""
        self._receive()
        return self._settle(self.committer.step(is_last=not self.num_open))

    def close(self) -> None:
        """See Outbox."""
        if not self._is_closed:
            self._is_closed = True
            self.num_open -= 1

    @property
    def is_done(self) -> bool:
        """See Outbox: the units of all machines have landed."""
        return not self.num_open and not self.committer.waiting and not self._others

    def status(self) -> dict[str, float]:
        """See Outbox."""
        left = self.committer.budget.num_left
        return {"commits": self.committer.num_commits} | ({} if left == math.inf else {"commits_left": max(0.0, left)})

    def _receive(self) -> None:
        for text in self.channel.read(OFFERED, self._read) if self.channel else ():
            self._read += 1
            receipts = [Receipt.from_json(line) for line in json.loads(text)]
            self._others.update(receipt.start for receipt in receipts)
            self.committer.offer(receipts)
            self.num_open -= not receipts  # an empty list is a machine's last word

    def _settle(self, outcome: Outcome) -> Outcome:
        """Tell the other machines what became of their units, and return what became of this one's."""
        mine, theirs = list[list[Receipt]](), list[list[int]]()
        for receipts in (outcome.landed, outcome.again):
            mine.append([receipt for receipt in receipts if receipt.start not in self._others])
            theirs.append([receipt.start for receipt in receipts if receipt.start in self._others])
        self._others.difference_update(theirs[0])
        if self.channel and any(theirs):
            self.channel.append(SETTLED, json.dumps(theirs))
        return Outcome(mine[0], mine[1], outcome.seconds)


class RemoteOutbox:
    """Any other machine: the committer is reached through the channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._is_closed = False
        self._read = 0
        self._offered: dict[int, Receipt] = {}  # not settled, by start

    def offer(self, receipts: Sequence[Receipt]) -> None:
        """See Outbox."""
        new = [receipt for receipt in receipts if receipt.start not in self._offered]
        if new:
            self._offered |= {receipt.start: receipt for receipt in new}
            self.channel.append(OFFERED, json.dumps([receipt.to_json() for receipt in new]))

    def step(self) -> Outcome:
        """See Outbox."""
        landed, again = list[Receipt](), list[Receipt]()
        for text in self.channel.read(SETTLED, self._read) if self._offered else ():
            self._read += 1
            for found, starts in zip((landed, again), json.loads(text), strict=True):
                found += [self._offered.pop(start) for start in starts if start in self._offered]
        return Outcome(landed, again)

    def close(self) -> None:
        """See Outbox."""
        if not self._is_closed:
            self._is_closed = True
            self.channel.append(OFFERED, "[]")

    @property
    def is_done(self) -> bool:
        """See Outbox: the committer's machine knows that nothing more will come; the rest is its own."""
        return self._is_closed

    def status(self) -> dict[str, float]:
        """See Outbox: the committer tells."""
        return {}
