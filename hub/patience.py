"""How faults are borne: how long to wait after each, how they are counted, and when to give up."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from hub.faults import Fault, diagnose
from hub.repo import CommitError

logger = logging.getLogger(__name__)

PATIENCE = 6 * 3600.0  # seconds of faults and no success before the run gives up: a limit or an outage passes sooner
FATAL_TRIES = 3  # a 401, 403 or 404 in the middle of a run is tried again: such answers have been seen to pass
FATAL_SECONDS = 10.0  # between two of these tries; several uploads that fail together are one
BUSY_GROWTH = 1.6  # of the wait after each refusal by the commit lock: a hundred writers must not keep asking
BUSY_MAX = 15.0  # times the first wait: a minute


class Patience:
    """Counts the faults of one machine's thread and says how long each makes it wait."""

    def __init__(
        self, name: str, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random
    ) -> None:
        self.name, self.clock, self.draw = name, clock, draw
        self.faults: Counter[str] = Counter()  # by kind
        self._ill_since: float | None = None  # time of the first fault after the last success
        self._busy = 0  # refusals by the commit lock in a row
        self._fatal_tries, self._fatal_from = 0, 0.0

    def suffer(self, error: BaseException, doing: str) -> Fault:
        """Return the diagnosis, with the seconds to wait before the next try.

        With full jitter, so that writers refused together do not come back together.

        Raises:
            CommitError: waiting cannot help, or has not for hours.
        """
        if isinstance(error, CommitError) or not isinstance(error, Exception):
            raise error
        fault = diagnose(error)
        self.faults[fault.kind] += 1
        now = self.clock()
        self._ill_since = now if self._ill_since is None else self._ill_since
        if fault.is_fatal and now >= self._fatal_from:
            self._fatal_tries, self._fatal_from = self._fatal_tries + 1, now + FATAL_SECONDS
        if self._fatal_tries >= FATAL_TRIES or now - self._ill_since > PATIENCE:
            raise CommitError(
                f"{self.name}: {doing} failed: {fault.text}. Finished chunks stay in the cache"
            ) from error
        fault = replace(fault, seconds=self._seconds(fault))
        logger.info("%s: %s: %s (%s); again in %.1f s", self.name, doing, fault.text, fault.kind, fault.seconds)
        return fault

    def recover(self) -> None:
        """Note a success: what went wrong before it is over."""
        self._ill_since, self._fatal_tries, self._busy = None, 0, 0

    def _seconds(self, fault: Fault) -> float:
        if fault.kind == "hourly":
            return fault.seconds
        seconds = fault.seconds or FATAL_SECONDS
        if fault.kind == "busy":
            seconds *= min(BUSY_MAX, BUSY_GROWTH**self._busy)
            self._busy += 1
        return seconds * (0.25 + 0.75 * self.draw())
