"""How often a writer may commit: the repository's hourly limit, spent evenly, shared with whoever else is seen to write."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

HOUR = 3600.0
SHARE_OF_LIMIT = 0.75  # of a limit that the server named
SHARE_OF_STRANGERS = 0.75  # of the budget, at most, goes to commits that are not stillroom's
SHARED_RESERVE = 3  # places left free beside other writers: two may take the last one in the same second
LOOK_SECONDS = 300.0  # between two looks at what others commit, alone
LOOK_SECONDS_SHARED = 5.0  # beside other writers: just before each commit, so that two seldom take the same place
SPREAD_SECONDS, MAX_SPREAD = 2.0, 30.0  # per writer, in all: last commits of runs that end together are spread so far
COUNTED = HOUR + 15.0  # seconds that a commit counts: it lands up to so much later than it was sent


@dataclass(frozen=True, slots=True)
class PastCommit:
    """A commit that the repository has: its sha, its age in seconds, and which stillroom writer made it (None: another)."""

    sha: str
    age: float
    writer: str | None
    title: str = ""


class CommitBudget:
    """The commits of a rolling hour. None as limit: a plain folder takes any number.

    Writers know of each other by what they see in the repository's history: with W of them active in the last hour, each
    spaces its commits by W times the even interval, and none goes while the hour is full. `writer` is this one's name, the
    same after a restart. `draw` gives uniform numbers in [0, 1).
    """

    def __init__(
        self,
        per_hour: float | None,
        writer: str = "",
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.per_hour, self.writer = per_hour, writer
        self.clock, self.draw = clock, draw
        self.blocked_until = 0.0
        self.num_writers = 1
        self._began = clock()
        self._looked_at: float | None = None
        self._mine: list[float] = []  # times of commits by this process, landed or not
        self._seen: list[float] = []  # of other stillroom writers, and of this one before a restart
        self._strange: list[float] = []  # of people and other tools
        self._last = -math.inf  # time of this writer's last commit
        self._lot = draw()
        self._full_since: float | None = None  # when this writer first found the hour full

    def observe(self, commits: Iterable[PastCommit]) -> None:
        """Take in what the repository's history says of the last hour."""
        now = self._looked_at = self.clock()
        recent = [(now - commit.age, commit.writer) for commit in commits if commit.age < COUNTED]
        self._strange = sorted(t for t, writer in recent if writer is None)
        self._seen = sorted(
            t for t, writer in recent if writer is not None and (writer != self.writer or t < self._began)
        )
        self._last = max((t for t, writer in recent if writer == self.writer), default=self._last)
        self.num_writers = len({writer for _, writer in recent if writer is not None} | {self.writer})

    @property
    def needs_look(self) -> bool:
        """Whether the history should be looked at before the next commit."""
        if self.per_hour is None:
            return False
        every = LOOK_SECONDS_SHARED if self.num_writers > 1 else LOOK_SECONDS
        return self._looked_at is None or self.clock() - self._looked_at > every

    def looked(self) -> None:
        """Note a look that failed: the next one waits as long as after one that did not."""
        self._looked_at = self.clock()

    @property
    def interval(self) -> float:
        """Seconds between two commits of this writer when the hour is spent evenly."""
        if self.per_hour is None:
            return 0.0
        self._forget()
        ours = max(self.per_hour - len(self._strange), (1 - SHARE_OF_STRANGERS) * self.per_hour)
        return HOUR * self.num_writers / ours

    @property
    def num_left(self) -> float:
        """Commits that the rolling hour still takes, of any writer."""
        if self.per_hour is None:
            return math.inf
        self._forget()
        strange = min(len(self._strange), int(SHARE_OF_STRANGERS * self.per_hour))
        reserve = SHARED_RESERVE if self.num_writers > 1 and self.per_hour > 2 * SHARED_RESERVE else 0
        return max(1.0, self.per_hour - reserve) - strange - len(self._seen) - len(self._mine)

    def wait_seconds(self, *, is_urgent: bool = False) -> float:
        """Seconds until the next commit may go. One that is urgent does not wait its turn, only for room in the hour.

        Urgent are the last of a run, and one that is tried again.
        """
        now = self.clock()
        waits = [self.blocked_until - now]
        if not is_urgent:
            waits.append(self._last + self.interval - now)
        if self.num_left < 1:
            waits.append(self._opens(is_urgent=is_urgent) - now)
        return max(0.0, *waits)

    def _opens(self, *, is_urgent: bool) -> float:
        """When the hour has room again. Beside other writers a drawn time later, as all of them wait for the same place.

        The time that this one has waited already is taken off, so that none is passed over for ever.
        """
        now = self.clock()
        times = sorted([*self._mine, *self._seen, *self._strange])
        opens = times[min(len(times), math.ceil(1 - self.num_left)) - 1] + COUNTED
        if self.num_writers == 1 or self.per_hour is None:
            return opens
        self._full_since = now if self._full_since is None else self._full_since
        spread = MAX_SPREAD if is_urgent else self.num_writers * HOUR / self.per_hour
        return opens + max(0.0, self._lot * spread - (now - self._full_since))

    @property
    def spread_seconds(self) -> float:
        """A drawn time to wait before the last commit, so that runs that end together do not all ask at once."""
        return self.draw() * min(MAX_SPREAD, SPREAD_SECONDS * (self.num_writers - 1))

    def spend(self) -> None:
        """Count one commit, landed or not: the server counts as it likes, so count the more."""
        self._last = self.clock()
        self._mine.append(self._last)
        self._lot, self._full_since = self.draw(), None

    def refund(self) -> None:
        """Take the last one back: the server refused it before it began."""
        self._mine.pop()
        self._last = self._mine[-1] if self._mine else -math.inf

    def block(self, seconds: float, per_hour: int | None = None) -> None:
        """Hold back for `seconds`, and learn the limit that the server named."""
        self.blocked_until = max(self.blocked_until, self.clock() + seconds)
        if per_hour is not None and self.per_hour is not None:
            self.per_hour = min(self.per_hour, per_hour * SHARE_OF_LIMIT)

    def _forget(self) -> None:
        oldest = self.clock() - COUNTED
        for times in (self._mine, self._seen, self._strange):
            while times and times[0] <= oldest:
                del times[0]
