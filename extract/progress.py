"""One progress display for a whole run: a bar in a terminal, plain lines in a log, and `status.json` for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from extract.prepare import Session
from extract.sample import Batch
from extract.settings import Settings
from extract.stop import Stop
from extract.summary import describe
from extract.tracking import Tracker
from extract.work import Work
from extract.world import World

logger = logging.getLogger(__name__)

POST_SECONDS = 1.0
LINE_SECONDS = 30.0  # between lines where there is no terminal


@dataclass
class Counts:
    """What one worker has done in this run."""

    rows: int = 0
    units: int = 0
    tokens: int = 0
    padding: int = 0
    skipped: int = 0
    stall_seconds: float = 0.0  # waited for the output to take pending chunks


@dataclass
class Progress:
    """Counts of all workers, shown by the main one. `upload` gives what the uploader has to say."""

    world: World
    num_units: int
    num_done: int
    status_file: Path
    upload: Callable[[], Mapping[str, Any]] | None = None
    num_tokens: int | None = None  # of the units that were to do when the run began, where they are known
    has_bar: bool = True  # in a terminal
    tracker: Tracker | None = None
    cost: Callable[[], float | None] = lambda: None  # of the run so far, all workers, USD
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._posted = self._lined = 0.0
        show = self.has_bar and self.world.is_main and sys.stderr.isatty()
        self._bar = tqdm(total=self.num_units, initial=self.num_done, unit="unit", disable=not show, leave=False)

    def add_batch(self, batch: Batch, padded: int) -> None:
        """Count a batch for which the model ran `padded` tokens."""
        self.counts.tokens += batch.num_tokens
        self.counts.padding += padded - batch.num_tokens

    def add_unit(self, work: Work) -> None:
        """Count a finished unit."""
        self.counts.units += 1
        self.counts.rows += work.unit.num_rows
        self.counts.skipped += len(work.skipped)

    def tick(self) -> None:
        """Post, and on the main worker show, at most once a second."""
        now = time.monotonic()
        if now - self._posted < POST_SECONDS:
            return
        self._posted = now
        self.world.post("progress", vars(self.counts))
        if not self.world.is_main:
            return
        status = self.status()
        self.write(status)
        self._bar.n = status["units_done"]
        self._bar.set_postfix_str(describe(status), refresh=True)
        if now - self._lined >= LINE_SECONDS:
            self._lined = now
            self._tell(status)

    def _tell(self, status: Mapping[str, Any]) -> None:
        if self.tracker is not None:
            self.tracker.log(status)
        if self._bar.disable:
            text = describe(status)
            logger.info("%d of %d units, %s", status["units_done"], self.num_units, text, extra={"status": status})

    def status(self, state: str = "running") -> dict[str, Any]:
        """Return the sums over all workers, with rates and the time left."""
        parts = self.world.posted("progress") or [vars(self.counts)]
        total = {name: sum(part[name] for part in parts) for name in vars(self.counts)}
        seconds = max(time.monotonic() - self._started, 1e-9)
        done = self.num_done + total["units"]
        return {
            "state": state,
            "units": self.num_units,
            "units_done": done,
            "rows": total["rows"],
            "tokens": total["tokens"],
            "skipped": total["skipped"],
            "padding": round(total["padding"] / max(1, total["tokens"] + total["padding"]), 5),
            "tokens_per_second": round(total["tokens"] / seconds, 1),
            "seconds": round(seconds, 1),
            "seconds_left": self._seconds_left(total, seconds),
            "stall_seconds": round(total["stall_seconds"], 2),
            **({} if (cost := self.cost()) is None else {"cost_usd": round(cost, 4)}),
            **(self.upload() if self.upload else {}),
        }

    def _seconds_left(self, total: Mapping[str, float], seconds: float) -> float | None:
        """By tokens where their number is known, else by units; None before there is a rate."""
        if self.num_tokens is not None:
            left, did = max(0, self.num_tokens - total["tokens"]), total["tokens"]
        else:
            left, did = self.num_units - self.num_done - total["units"], total["units"]
        return round(left * seconds / did, 1) if did else None

    def write(self, status: Mapping[str, Any]) -> None:
        """Write `status.json`, whole; a disk without room for it must not end the run."""
        partial = self.status_file.with_suffix(".tmp")
        try:
            partial.write_text(json.dumps(status, indent=1))
            partial.replace(self.status_file)
        except OSError as error:
            logger.debug("%s: %s", self.status_file, error)

    def close(self, state: str) -> dict[str, Any]:
        """Take the bar away and return the last status."""
        self._bar.close()
        self.world.post("progress", vars(self.counts))
        status = self.status(state)
        if self.world.is_main:
            self.write(status)
        if self.tracker is not None:
            self.tracker.log(status)
            self.tracker.close()
        return status


def open_progress(
    session: Session, settings: Settings, world: World, stop: Stop, upload: Callable[[], Mapping[str, Any]] | None
) -> Progress:
    """Return what shows how far the run is; the main worker's tells a tracker, too."""
    plan, has_bar = session.plan, settings.log_format == "text" and not settings.quiet
    is_told = settings.tracker is not None and world.is_main
    tracker = Tracker(str(settings.tracker), plan.job, settings.cache / "trackers") if is_told else None
    cost = lambda: settings.cost(world.world_size * stop.seconds)  # noqa: E731  # so far
    known = (len(plan.units), plan.num_done, session.status_file, upload, plan.num_tokens)
    return Progress(world, *known, has_bar, tracker, cost)
