"""The card in the output: kept current while the dataset grows, completed when it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any

from builders.job import Job
from builders.layout import Layout
from builders.units import Units
from cards.card import Card
from cards.origin import carried_over
from hub.ledger import Ledger
from hub.opened import DamageError, Opened, receipt_of
from hub.pending import Entry, Receipt
from hub.repo import Change, Repo, is_folder

CARD_SECONDS = 600.0  # between cards of a growing dataset: each makes the viewer start again
MAX_PARTS = 64  # of one commit each; a day of 96 commits an hour would leave 2,304 to read, and leaves 36 and these


class CardWriter:
    """Makes README.md from the receipts that the output holds, over the one that it has: a person's own words stay.

    Every change names the revision that it was made from, so that an edit made meanwhile is never overwritten.
    """

    def __init__(
        self,
        repo: Repo,
        job: Job,
        source_columns: Sequence[str],
        num_rows: int,
        num_units: int,
        num_jobs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.repo, self.job, self.source_columns = repo, job, source_columns
        self.num_rows, self.num_units = num_rows, num_units
        self.clock = clock
        self.every = CARD_SECONDS * num_jobs
        layout = Layout.of(job)
        self.ledger = Ledger(repo, layout.receipts, layout.ledger)
        self._next = clock()
        self._with_card = set[int]()  # starts of the units of the last commit that had a card

    @property
    def load_name(self) -> str:
        """What `load_dataset` takes."""
        return str(self.job.output) if is_folder(str(self.job.output)) else self.repo.name

    def growing(self, receipts: Sequence[Receipt]) -> Change | None:
        """Return the card to go with some units, at most every ten minutes."""
        starts = {receipt.start for receipt in receipts}
        # a unit that comes again was not committed, nor was its card
        if self.clock() < self._next and not starts & self._with_card:
            return None
        parent = self.repo.head()
        self.ledger.load(self.repo.list_files())
        self.ledger.add(receipts)
        self._next, self._with_card = self.clock() + self.every, starts
        rolled = self.ledger.rolled() if len(self.ledger.loose) > MAX_PARTS else Change()
        return Change({**rolled.files, **self._growing(parent)}, rolled.deletes, parent)

    def final(self, parent: str | None) -> Change:
        """Return the change that completes the dataset: the card, then the ledger, which is the sign that it is complete."""
        there = self.repo.list_entries()
        self.ledger.load(there)
        self.ledger.add(self._lost_receipts(there))
        files = {**self._complete(parent), **self.ledger.whole()}
        return Change(files, [f"{self.ledger.folder}/", *Layout.of(self.job).outdated(there)], parent)

    def again(self, parent: str | None) -> Change:
        """Return the change that makes the card anew from what the output holds, complete or growing."""
        is_complete = self.load()
        return Change(self._complete(parent) if is_complete else self._growing(parent), parent=parent)

    def load(self) -> bool:
        """Read the receipts that the output has, and tell whether it is complete."""
        there = self.repo.list_entries()
        self.ledger.load(there)
        return self.ledger.path in there

    def _lost_receipts(self, there: Mapping[str, Entry]) -> Iterator[Receipt]:
        """Write the receipts that are missing from the chunks: a kill can leave a chunk in a folder without its receipt."""
        layout = Layout.of(self.job)
        for unit in Units(self.num_rows, self.job.chunk_rows or 1):
            if unit.start not in self.ledger.by_start:
                paths = [unit.path(folder, layout.split_folder) for folder in (layout.skipped, layout.data)]
                entries = [there[path] for path in paths if path in there]
                if entries:
                    yield receipt_of(self.repo, unit.start, unit.stop, entries)

    def card(self, *, is_complete: bool) -> Card:
        """Facts of the card, of the units that the ledger has loaded."""
        facts = (self.job, self.source_columns, self.num_rows, self.num_units, self.ledger.receipts)
        return Card(*facts, self.origin, self._versions() if is_complete else {})

    def render(self, card: Card, parent: str | None, *, is_complete: bool) -> str:
        """README.md, over the one that the output has at a revision."""
        existing = (self.repo.read("README.md", parent) or b"").decode()
        return card.render(existing, name=self.load_name, is_complete=is_complete)

    def _complete(self, parent: str | None) -> dict[str, bytes]:
        """The card of a complete dataset, and the plots that it shows."""
        card = self.card(is_complete=True)
        return {"README.md": self.render(card, parent, is_complete=True).encode(), **card.assets()}

    def _growing(self, parent: str | None) -> dict[str, bytes]:
        return {"README.md": self.render(self.card(is_complete=False), parent, is_complete=False).encode()}

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Licence and languages of the source, read once."""
        return carried_over(str(self.job.source), self.job.revision)

    def _versions(self) -> dict[str, str]:
        """What the first chunk says of the versions that made it: one request."""
        entry = next((entry for receipt in islice(self.ledger.receipts, 1) for entry in receipt.files), None)
        with suppress(DamageError, OSError, RuntimeError):  # a card is no proof
            return dict(Opened.open(self.repo, entry, deep=False).said.get("versions", {})) if entry else {}
        return {}
