"""Units to work on: each worker takes the next one when it has room, as long as there is time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from builders.job import Job
from builders.selection import Selection
from builders.source import Source
from builders.units import Unit, Units
from extract.batching import TokenBudget
from extract.builds import Build
from extract.partial import Partial
from extract.sample import Batch
from extract.stages import batches
from extract.stop import Stop
from extract.token_plan import TokenPlan
from extract.world import World


@dataclass(frozen=True)
class Plan:
    """What a run has to do: the settled job, its rows, and the numbers of the units that are still to do."""

    job: Job
    source: Source
    selection: Selection
    units: Units
    todo: Sequence[int]
    tokens: TokenPlan | None = None  # on the main worker, with --lengths

    @property
    def num_done(self) -> int:
        """Units that are done before the run begins."""
        return len(self.units) - len(self.todo)

    @property
    def num_tokens(self) -> int | None:
        """Tokens of the units that are to do; None where nobody knows."""
        return None if self.tokens is None else self.tokens.left(self.todo)


def claim(plan: Plan, world: World, stop: Stop) -> Iterator[Unit]:
    """Yield units that no other worker has."""
    while stop.may_begin() and (number := world.claim()) < len(plan.todo):
        yield plan.units[plan.todo[number]]


def read_batches(
    units: Iterator[Unit], plan: Plan, build: Build, budget: TokenBudget, partial: Partial
) -> Iterator[Batch]:
    """Source -> rows -> samples -> batches, unit after unit, in one endless stream."""
    for unit in units:
        work = build.work(unit)
        partial.restore(work)
        rows = plan.source.read(plan.selection.indices(unit.start, unit.stop), build.needed_columns)
        yield from batches(build.samples(rows, work), budget, work)
