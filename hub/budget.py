"""How often a writer may commit: the repository's hourly limit, shared by all writers, spent evenly."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

HOUR = 3600.0
SHARE_OF_LIMIT = 0.75  # of a limit that the server named; the rest is for other writers and people


class CommitBudget:
    """One writer's part of the commits of a rolling hour. None as limit: a plain folder takes any number."""

    def __init__(
        self, per_hour: float | None, num_writers: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_hour = per_hour
        self.num_writers = num_writers
        self.clock = clock
        self.blocked_until = 0.0
        self._times: deque[float] = deque()

    @property
    def interval(self) -> float:
        """Seconds between two commits of this writer when the hour is spent evenly."""
        return 0.0 if self.per_hour is None else HOUR * self.num_writers / self.per_hour

    @property
    def num_left(self) -> float:
        """Commits left to this writer in the rolling hour; at least one an hour, however many share it."""
        if self.per_hour is None:
            return float("inf")
        while self._times and self._times[0] <= self.clock() - HOUR:
            self._times.popleft()
        return max(1.0, self.per_hour / self.num_writers) - len(self._times)

    def wait_seconds(self, *, is_last: bool = False) -> float:
        """Seconds until the next commit may go; the last one of a run does not wait its turn, only for room."""
        now = self.clock()
        waits = [self.blocked_until - now]
        if self._times and not is_last:
            waits.append(self._times[-1] + self.interval - now)
        if self.num_left < 1:
            waits.append(self._times[0] + HOUR - now)
        return max(0.0, *waits)

    def spend(self) -> None:
        """Count one commit, landed or not: the server counts as it likes, so count the more."""
        self._times.append(self.clock())

    def refund(self) -> None:
        """Take the last one back: the server refused it before it began, and another try need not wait its turn."""
        self._times.pop()

    def block(self, seconds: float, per_hour: int | None = None) -> None:
        """Hold back for `seconds`, and learn the limit that the server named."""
        self.blocked_until = max(self.blocked_until, self.clock() + seconds)
        if per_hour is not None and self.per_hour is not None:
            self.per_hour = min(self.per_hour, per_hour * SHARE_OF_LIMIT)
