"""A row of the source split, and the one error a row may raise without ending the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class RowError(ValueError):
    """A row that cannot be used. It is counted and listed in the `skipped` config; the run goes on.

    `reason` is a short stable word (`empty_text`, `messages_missing`, …), the key of the card's table;
    `detail` is one line for a person. Both are arguments of the exception, so it pickles.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Row:
    """One example of the source. `index` is its position in the split at the pinned revision, 0-based.

    `error` is set where the bytes of the row could not be read (a broken JSON line): `data` is then empty.
    """

    index: int
    data: Mapping[str, Any] = field(default_factory=dict)
    error: RowError | None = None
