"""Which units are left: all of the plan, less what the output holds and what is pending on a machine of the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from builders.job import Job
from builders.layout import Layout
from builders.options import ConfigError
from builders.units import Units
from extract.partial import Partial
from extract.settings import Settings
from extract.token_plan import TokenPlan
from extract.world import World
from hub.ledger import Ledger, finished_units
from hub.pending import Pending, Receipt
from hub.repo import HUB_ID, HUB_NAME, Repo, is_folder, open_repo

logger = logging.getLogger(__name__)


def plan_units(
    job: Job,
    units: Units,
    repo: Repo | None,
    pending: Pending,
    partial: Partial,
    settings: Settings,
    world: World,
    tokens: TokenPlan | None = None,
) -> tuple[Sequence[int], bool]:
    """Return the units to do, and whether the output is complete with its card.

    Those begun on this disk come first, then, where their tokens are known, the longest, so that all workers end together.
    """
    receipts = fitting_receipts(pending, units) if world.is_leader else {}
    waiting = {number for part in world.gather("pending", list(receipts)) for number in part}

    def planned() -> list[object]:
        assert repo is not None
        layout = Layout.of(job)
        files = repo.list_files()
        data, skipped = layout.of_split(layout.data), layout.of_split(layout.skipped)
        done = finished_units(repo, files, data, skipped, lambda path: number_at(units, path))
        begun = {start // units.chunk_rows for start in partial.starts()}
        left = [n for n in range(len(units)) if n not in done and n not in waiting]
        mine = [n for n in left if n % settings.num_jobs == settings.job_index]
        todo = sorted(mine, key=lambda n: (n not in begun, 0 if tokens is None else -int(tokens.tokens[n])))
        landed = with_receipts(repo, job, files, units, done & waiting)
        is_whole = len(done) == len(units) and layout.ledger in files and layout.previous not in files
        return [todo, sorted(landed), is_whole and waiting == landed]

    todo, landed, is_complete = world.share("plan", planned)
    for number in landed:
        if number in receipts:  # its commit landed and the answer was lost, or another machine computed it
            pending.remove(receipts[number])
    return todo, is_complete


def fitting_receipts(pending: Pending, units: Units) -> dict[int, Receipt]:
    """Return what is pending by the number of its unit; what is of no unit of this plan is thrown away."""
    found = {}
    for receipt in pending.scan():
        numbers = {number_at(units, entry.path) for entry in receipt.files}
        unit = units.at(f"{receipt.start:012d}-{receipt.stop:012d}.parquet")
        if unit is not None and numbers == {unit.number}:
            found[unit.number] = receipt
        else:
            logger.warning(
                "rows %d-%d are pending, and no unit of this plan: thrown away", receipt.start, receipt.stop
            )
            pending.remove(receipt)
    return found


def with_receipts(repo: Repo, job: Job, files: Mapping[str, int], units: Units, numbers: set[int]) -> set[int]:
    """Return the units of `numbers`, whose chunks the output holds, whose receipts it holds too.

    A commit on the Hub shows both at once. A folder gets the receipt last: a kill may have left a unit without.
    """
    if not numbers or not is_folder(str(job.output)):
        return numbers
    ledger = Ledger(repo, Layout.of(job).receipts, Layout.of(job).ledger)
    ledger.load(files)
    return {number for number in numbers if units[number].start in ledger.by_start}


def number_at(units: Units, path: str) -> int | None:
    """Number of the unit whose file this path could be."""
    unit = units.at(path)
    return None if unit is None else unit.number


def open_existing(output: str) -> Repo:
    """Open an output to read it, without making it.

    Raises:
        ConfigError: there is no such folder, or the name is none.
    """
    if is_folder(output):
        if not Path(output).expanduser().is_dir():
            raise ConfigError(f"{output}: there is no such folder")
        return open_repo(output, private=True)
    if not (HUB_ID.match(output) or HUB_NAME.match(output)):
        raise ConfigError(f"{output!r} is neither a Hub dataset (user/name) nor a path (./name)")
    from hub.remote import HubRepo

    return HubRepo(output)
