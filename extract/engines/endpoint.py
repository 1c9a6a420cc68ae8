"""One server as the threads that send to it see it: how many may send, how much, and whether it is there."""

from __future__ import annotations

import logging
import random
import time

from extract.engines.climb import Climb, Pace
from extract.engines.wire import BusyFault, Client, Fault, TooBigFault

logger = logging.getLogger(__name__)

DOWN_FAILURES = 3  # in a row
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two tries at a server that is down
BUSY_WAIT = 1.0  # where a 429 does not say how long


class Endpoint:
    """A client with its pace. Whoever calls holds the desk's lock."""

    def __init__(self, client: Client) -> None:
        self.client, self.pace = client, Pace(Climb())
        self.max_texts = client.max_texts
        self.paused_until = 0.0
        self.answered = time.monotonic()  # last time that it gave vectors
        self.failures = 0  # in a row

    @property
    def tokens(self) -> int:
        """Padded tokens that a request should have."""
        return self.pace.climb.cell[0]

    @property
    def requests(self) -> int:
        """Requests that may be under way: one alone tries a server that is down."""
        return 1 if self.is_down else self.pace.climb.cell[1]

    @property
    def is_down(self) -> bool:
        """Whether it has failed too often in a row for an accident."""
        return self.failures >= DOWN_FAILURES

    @property
    def may_send(self) -> bool:
        """Whether another request may go out."""
        return self.pace.num_flying < self.requests and time.monotonic() >= self.paused_until

    def succeed(self, epoch: int, tokens: int) -> None:
        """Learn from an answer."""
        if self.is_down:
            logger.info("%s answers again", self.client.name)
        self.failures, self.answered = 0, time.monotonic()
        self.pace.returned(epoch, tokens)

    def suffer(self, epoch: int, fault: Fault, num_texts: int, tokens: int) -> None:
        """Learn from a fault of a request of `num_texts` texts and `tokens` padded tokens."""
        self.pace.returned(epoch, 0)
        if isinstance(fault, TooBigFault):
            if fault.is_of_texts:
                self.max_texts = max(1, min(self.max_texts, fault.max_texts or num_texts // 2))
            else:
                self.pace.climb.limit(tokens // 2, self.pace.climb.max_requests)
            logger.info("%s: smaller requests from here on", fault)
            return
        self.failures += not isinstance(fault, BusyFault)
        if time.monotonic() < self.paused_until:  # of several that were under way, one counts
            return
        if isinstance(fault, BusyFault):
            self.pace.busy()
            self.answered = time.monotonic()
            wait = (BUSY_WAIT if fault.seconds is None else fault.seconds) * random.uniform(1, 1.2)
        else:
            rounds = max(0, self.failures - DOWN_FAILURES)
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(rounds, 10)) * random.uniform(0.5, 1) * self.is_down
        self.paused_until = time.monotonic() + wait
        logger.log(logging.WARNING if self.is_down else logging.INFO, "%s; again in %.1f s", fault, wait)
