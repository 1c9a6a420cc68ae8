"""When to stop: at the end of the time given, at a signal, or when the parent process is gone."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 10.0  # a last commit and the card
SIGNAL_DRAIN_SECONDS = 15.0  # a launcher kills 30 s after SIGTERM; what is not uploaded by then stays pending
LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_")  # what accelerate and torchrun put in front of their variables
DEADLINE = "--max-runtime-minutes"
REPEAT_SECONDS = 2.0  # a terminal and a launcher both pass on the same Ctrl-C: it is one signal
KILLED = 130  # exit code of a second signal: at once, with pending as it is


class LateError(Exception):
    """A wait ended because the run must leave. What it waited for is left to the next run."""


class Stop:
    """Says whether another unit may begin, and whether the one in hand must be left.

    Leaving a unit loses nothing while the disk is kept: its finished batches are in the partial file. So with `keeps_disk`
    units begin until only the drain fits: of 55-minute runs with units of two minutes, 1.4 % more is work. Else no unit begins
    that does not fit: what a run computes of it would go with the disk, and the machine is paid for.
    """

    def __init__(self, max_runtime_minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.started = clock, clock()
        self.end = None if max_runtime_minutes is None else clock() + 60 * max_runtime_minutes
        self.reason: str | None = None
        self.is_urgent = False  # leave the unit in hand; else only begin no other
        self.keeps_disk = False
        self.drain_seconds = COMMIT_SECONDS
        self._unit_seconds: deque[float] = deque(maxlen=20)
        self._signalled_at: float | None = None
        # without a launcher the parent may be a shell that goes away, as with nohup
        self._parent = os.getppid() if any(name.startswith(LAUNCHERS) for name in os.environ) else None

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return self.clock() - self.started

    def on_signals(self) -> None:
        """Drain at the first SIGTERM or SIGINT; leave at once at the second, with pending safe on the disk."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = self.clock()
        if self._signalled_at is None:
            self._signalled_at = now
        elif now - self._signalled_at > REPEAT_SECONDS:
            os._exit(KILLED)
        self.reason = None  # a signal counts for more than a deadline
        self.request(signal.Signals(number).name)

    @property
    def is_signalled(self) -> bool:
        """A signal came, here or at another worker: whoever sent it will not wait long."""
        return self.reason is not None and self.reason.startswith("SIG")

    def request(self, reason: str, *, is_urgent: bool = True) -> None:
        """Ask for a stop, at the next batch if it is urgent; the first reason stays."""
        self.reason = self.reason or reason
        self.is_urgent = self.is_urgent or is_urgent

    def finished_unit(self, seconds: float) -> None:
        """Learn how long a unit takes, from claim to chunk."""
        self._unit_seconds.append(seconds)

    def uploaded(self, seconds: float) -> None:
        """Learn how long an upload takes: one of the last chunk, and one of the commit, come after the last unit."""
        self.drain_seconds = 2 * seconds + COMMIT_SECONDS

    @property
    def unit_seconds(self) -> float:
        """The 95th percentile of the last 20 units; 0 before the first."""
        ordered = sorted(self._unit_seconds)
        return ordered[int(0.95 * (len(ordered) - 1))] if ordered else 0.0

    @property
    def now(self) -> bool:
        """The unit in hand must be left: a signal came, the launcher is gone, or only the drain fits into the time."""
        if not self.is_urgent and self._parent not in (None, os.getppid()):
            self.request("the launcher is gone")
        if not self.is_urgent and self.end is not None and self.clock() > self.end - self.drain_seconds:
            self.request(DEADLINE)
        return self.is_urgent

    def may_begin(self) -> bool:
        """Tell whether a whole unit and the drain after it still fit into the time, or some of a unit where that is kept."""
        needed = 0.0 if self.keeps_disk else self.unit_seconds
        if self.end is not None and self.end - self.clock() - self.drain_seconds < needed:
            self.request(DEADLINE, is_urgent=False)
        return not self.now and self.reason is None

    def check_late(self) -> None:
        """End a wait that could outlast the run: at a signal, and at the end of the time given.

        Raises:
            LateError: the run must leave.
        """
        if self.is_signalled or (self.end is not None and self.clock() > self.end):
            raise LateError(self.reason or DEADLINE)

    @property
    def seconds_to_drain(self) -> float | None:
        """Seconds that the last uploads may take; None: any number."""
        if self.is_signalled:
            return SIGNAL_DRAIN_SECONDS
        return None if self.end is None else max(self.end - self.clock(), self.drain_seconds)
