"""A row made ready for a model, and a batch of them. Position travels with the item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extract.work import Work


@dataclass(slots=True)
class Sample:
    """One text or conversation for the model, as token ids with its special tokens.

    `position` is the row's place in its unit (0-based), `field` which of the row's vectors this becomes. For a logits build,
    `index` is the row's place in the source, and `targets` are the places of the tokens to predict, each at least 1.
    """

    position: int
    field: int
    input_ids: list[int]
    truncated: bool = False
    index: int = -1
    targets: Sequence[int] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the model sees, special tokens included."""
        return len(self.input_ids)


@dataclass(slots=True)
class Batch:
    """Samples of one unit that run together. A unit ends with an empty batch, `is_last`: all before it were sent."""

    work: Work
    samples: list[Sample] = field(default_factory=list)
    is_last: bool = False

    @property
    def weight(self) -> int:
        """MB of records that wait with the end of a unit to be written, at least 1."""
        return 1 + (self.work.num_waiting_bytes // 10**6 if self.is_last else 0)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return sum(sample.num_tokens for sample in self.samples)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sample."""
        return max((sample.num_tokens for sample in self.samples), default=0)

    @property
    def num_padded_tokens(self) -> int:
        """Tokens with every sample padded to the longest."""
        return self.max_length * len(self.samples)
