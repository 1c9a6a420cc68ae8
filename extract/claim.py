"""Units to work on: each worker takes the next one when it has room, as long as there is time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from builders.job import Job
from builders.selection import Selection
from builders.source import Source
from builders.text import TextView
from builders.units import Unit, Units
from extract.batching import TokenBudget
from extract.carry import OldRecords, carry
from extract.partial import Partial
from extract.sample import Batch
from extract.stages import batches, samples, texts
from extract.stop import Stop
from extract.tokens import TextTokenizer
from extract.work import Work
from extract.world import World


@dataclass(frozen=True)
class Plan:
    """What a run has to do: the settled job, its rows, and the numbers of the units that are still to do."""

    job: Job
    source: Source
    selection: Selection
    units: Units
    todo: Sequence[int]

    @property
    def num_done(self) -> int:
        """Units that are done before the run begins."""
        return len(self.units) - len(self.todo)


def claim(plan: Plan, world: World, stop: Stop) -> Iterator[Unit]:
    """Yield units that no other worker has."""
    while stop.may_begin() and (number := world.claim()) < len(plan.todo):
        yield plan.units[plan.todo[number]]


def read_batches(
    units: Iterator[Unit],
    plan: Plan,
    tokenizer: TextTokenizer,
    budget: TokenBudget,
    partial: Partial,
    old: OldRecords | None = None,
) -> Iterator[Batch]:
    """Source -> rows -> texts -> samples -> batches, unit after unit, in one endless stream; an update carries texts over."""
    view = plan.job.view
    columns = needed_columns(plan.job, view, plan.source)
    for unit in units:
        work = Work(unit, plan.job)
        partial.restore(work)
        rows = plan.source.read(plan.selection.indices(unit.start, unit.stop), columns)
        new = carry(texts(rows, view, work), old, work)
        yield from batches(samples(new, tokenizer, work), budget, work)


def needed_columns(job: Job, view: TextView, source: Source) -> list[str]:
    """Columns that are read: those of the text, and the two that are carried."""
    carried = [name for name in (job.id_column, job.source_column) if name in source.columns]
    return list(dict.fromkeys([*view.columns(source.columns), *carried]))
