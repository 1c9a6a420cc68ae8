"""The committer: units whose bytes the repository has become visible in few commits, whichever machine made them.

It has no thread and takes its clock from outside, so that benchmarks/commits.py can run it through 24 hours in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hub.budget import CommitBudget
from hub.faults import Fault
from hub.patience import Patience
from hub.pending import Entry, Receipt
from hub.repo import Change, Repo

MAX_UNITS_PER_COMMIT = 500  # at most 1,000 files, which the Hub commits in about 10 s; its own limit is 60 s
CARD_PAUSE = 60.0  # seconds without a card after somebody else's commit came between: data does not wait for it

# small files that belong into the same commit as some units
Notes = Callable[[Sequence[Receipt]], Mapping[str, bytes]]
Cards = Callable[[Sequence[Receipt]], Change | None]  # the card to go with some units, where one is due


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did: units that the repository is known to hold, and units whose bytes must be sent again."""

    landed: Sequence[Receipt] = ()
    again: Sequence[Receipt] = ()
    seconds: float = 0.0  # that the step took


@dataclass
class Committer:
    """Commits as early as the budget allows. After each attempt it asks the repository what it holds, whatever it answered."""

    repo: Repo
    budget: CommitBudget
    patience: Patience
    notes: Notes = lambda receipts: {}
    cards: Cards = lambda receipts: None
    clock: Callable[[], float] = time.monotonic
    waiting: dict[int, Receipt] = field(default_factory=dict)  # by start of the unit, in the order of arrival
    num_commits: int = 0
    _failed: bool = False  # the last attempt landed nothing
    _card_from: float = 0.0  # time before which no card is sent
    _last_from: float | None = None  # time before which the last commit is not sent

    def offer(self, receipts: Iterable[Receipt]) -> None:
        """Take in units whose bytes are out; those that wait already are passed over."""
        for receipt in receipts:
            self.waiting.setdefault(receipt.start, receipt)

    def step(self, *, is_last: bool = False) -> Outcome:
        """Commit one group if it is time; `is_last`: nothing else will come, so do not wait for more.

        Raises:
            CommitError: the repository refuses for good.
        """
        if is_last and self._last_from is None:
            self._last_from = self.clock() + self.budget.spread_seconds
        if not self.waiting or self._wait(is_last) > 0:
            return Outcome()
        if self.budget.needs_look:
            self._look()
            if self._wait(is_last) > 0:
                return Outcome()
        return self._commit(list(self.waiting.values())[:MAX_UNITS_PER_COMMIT])

    def _wait(self, is_last: bool) -> float:
        wait = self.budget.wait_seconds(is_urgent=is_last or self._failed)
        return wait if self._last_from is None else max(wait, self._last_from - self.clock())

    def _look(self) -> None:
        """See who else commits. Not worth a wait: if the repository is ill, the commit will say so."""
        try:
            self.budget.observe(self.repo.recent_commits())
        except Exception:
            self.budget.looked()

    def _commit(self, receipts: Sequence[Receipt]) -> Outcome:
        entries = [entry for receipt in receipts for entry in receipt.files]
        files: dict[str, Entry | bytes] = {entry.path: entry for entry in entries}
        started, fault = self.clock(), None
        self.budget.spend()
        try:
            card = (self.cards(receipts) if started >= self._card_from else None) or Change()
            files |= {**self.notes(receipts), **card.files}
            self.repo.commit(files, card.deletes, _message(receipts), parent=card.parent, writer=self.budget.writer)
        except Exception as error:
            fault = self._suffer(error)
        landed = self._landed(receipts, entries)
        self._failed = not landed
        again = receipts if fault is not None and fault.is_fatal and not landed else ()
        for receipt in (*landed, *again):
            del self.waiting[receipt.start]
        return Outcome(landed, again, self.clock() - started)

    def _landed(self, receipts: Sequence[Receipt], entries: Sequence[Entry]) -> list[Receipt]:
        """Ask what the repository holds: an error may come after the commit landed, and the reverse."""
        try:
            missing = set(self.repo.missing(entries))
        except Exception as error:
            self._suffer(error)
            return []
        landed = [receipt for receipt in receipts if not missing.intersection(receipt.files)]
        if landed:
            self.patience.recover()
            self.num_commits += 1
        return landed

    def _suffer(self, error: Exception) -> Fault:
        fault = self.patience.suffer(error, "commit")
        self.budget.block(fault.seconds, fault.per_hour)
        if fault.kind in ("busy", "conflict"):
            self.budget.refund()
        if fault.kind == "conflict":
            self._card_from = self.clock() + CARD_PAUSE
        return fault


def _message(receipts: Sequence[Receipt]) -> str:
    records = sum(receipt.counts.get("records", 0) for receipt in receipts)
    first, last = min(r.start for r in receipts), max(r.stop for r in receipts)
    return f"Add {len(receipts)} chunk{'s'[: len(receipts) != 1]}, {records:,} records (rows {first:,}–{last:,})"
