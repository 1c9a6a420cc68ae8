"""How large requests should be, and how many at once: found by measuring, for as long as a run goes.

The settings are a grid of powers of two: tokens per request, requests at once. From the best cell so far the climb tries each
neighbour once, stays where most tokens per second came back, and looks round again now and then, as servers change. Tokens and
not texts make the size of a request, so that its cost is the same for long texts and short ones, and figures compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Cell = tuple[int, int]  # padded tokens per request, requests at once

START: Cell = (2048, 4)
MIN_TOKENS, MAX_TOKENS, MAX_REQUESTS = 256, 2**17, 256
REVIEW = 32  # measures of the best cell between two looks round
BUSY_SECONDS = 60.0  # that fewer requests are sent after a server said it is busy
# A measure takes at least so long, so many requests, and three rounds of them all
EPOCH_SECONDS, EPOCH_REQUESTS = 0.5, 8
ROUNDS = 3


class Climb:
    """The best of the neighbours, by tokens per second."""

    def __init__(self, start: Cell = START) -> None:
        self.cell = self.best = start
        self.speeds: dict[Cell, float] = {}
        self.max_tokens, self.max_requests = MAX_TOKENS, MAX_REQUESTS
        self._since_review = 0

    def measured(self, speed: float) -> None:
        """Learn the speed of the cell in use, and choose the next one."""
        known = self.speeds.get(self.cell)
        self.speeds[self.cell] = speed if known is None else (known + speed) / 2  # the last figures count most
        self.best = max((cell for cell in self.speeds if self._is_open(cell)), key=self.speeds.__getitem__)
        self._since_review += self.cell == self.best
        if self._since_review >= REVIEW:
            self.speeds = {self.best: self.speeds[self.best]}
            self._since_review = 0
        self.cell = next((cell for cell in self._neighbours() if cell not in self.speeds), self.best)

    def limit(self, max_tokens: int = MAX_TOKENS, max_requests: int = MAX_REQUESTS) -> None:
        """Stay at or under a limit from now on."""
        self.max_tokens, self.max_requests = max(1, max_tokens), max(1, max_requests)
        self.cell = self.best = min(self.cell[0], self.max_tokens), min(self.cell[1], self.max_requests)

    def _neighbours(self) -> list[Cell]:
        tokens, requests = self.best
        around = [(tokens, 2 * requests), (2 * tokens, requests), (tokens, requests // 2), (tokens // 2, requests)]
        return [cell for cell in around if cell[0] >= min(MIN_TOKENS, tokens) and cell[1] >= 1 and self._is_open(cell)]

    def _is_open(self, cell: Cell) -> bool:
        return cell == self.cell or (cell[0] <= self.max_tokens and cell[1] <= self.max_requests)


class Pace:
    """Measures the cell in use, request by request. Not thread-safe: its owner holds a lock."""

    def __init__(self, climb: Climb, clock: Callable[[], float] = time.monotonic) -> None:
        self.climb, self.clock = climb, clock
        self.flying: dict[int, int] = {}  # epoch: requests of it under way
        self.epoch = 0
        self.busy_until = 0.0
        self.is_starved = False
        self._since: float | None = None  # first answer of the measure
        self._tokens = self._count = 0

    @property
    def num_flying(self) -> int:
        """Requests under way."""
        return sum(self.flying.values())

    def sent(self) -> int:
        """Note a request, and return what `returned` wants to know of it."""
        self.flying[self.epoch] = self.flying.get(self.epoch, 0) + 1
        return self.epoch

    def returned(self, epoch: int, tokens: int) -> None:
        """Note an answer of so many tokens; 0 for a request that failed. Ends the measure when it has enough."""
        self.flying[epoch] -= 1
        if not self.flying[epoch] and epoch != self.epoch:
            del self.flying[epoch]
        if epoch != self.epoch or set(self.flying) != {epoch}:  # requests of another cell were under way, too
            self._since = self.clock()
            return
        if self._since is None:
            self._since = self.clock()
            return
        self._tokens, self._count = self._tokens + tokens, self._count + 1
        seconds = self.clock() - self._since
        if seconds >= EPOCH_SECONDS and self._count >= max(EPOCH_REQUESTS, ROUNDS * self.climb.cell[1]):
            before = self.climb.cell
            if self._tokens and not self.is_starved:
                self._reopen()
                self.climb.measured(self._tokens / seconds)
            now = self._since + seconds
            self._begin()
            if self.climb.cell == before:
                self._since = now
            else:
                self.epoch += 1

    def starve(self) -> None:
        """Note that a request could have gone out, and there was nothing to send: the measure says nothing."""
        self.is_starved = True

    def busy(self) -> None:
        """Note that the server wants fewer requests: half of those under way, for a minute."""
        self.busy_until = self.clock() + BUSY_SECONDS
        self.climb.limit(self.climb.max_tokens, max(1, self.num_flying // 2))
        self._begin()
        self.epoch += 1

    def _reopen(self) -> None:
        if self.busy_until and self.clock() > self.busy_until:
            self.busy_until = 0.0
            self.climb.max_requests = MAX_REQUESTS

    def _begin(self) -> None:
        self._since, self._tokens, self._count, self.is_starved = None, 0, 0, False
