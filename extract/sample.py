"""A row made ready for a model, and a batch of them. Position travels with the item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from builders.row import RowError

if TYPE_CHECKING:
    from extract.work import Work


@dataclass(slots=True)
class Scene:
    """A prompt with one placeholder for each of its images, which are encoded as in the source.

    `inputs` is what an engine has made of both, ahead of the model; it may then let go of the images.
    """

    prompt: str
    images: tuple[bytes, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Sample:
    """One text or conversation for the model, as token ids with its special tokens.

    For a vision-language model there is a `scene`: `input_ids` are those of its prompt, `num_image_tokens` how many more the
    images take.

    `position` is the row's place in its unit (0-based), `field` which of the row's vectors this becomes. For a logits build,
    `index` is the row's place in the source, and `targets` are the places of the tokens to predict, each at least 1.
    """

    position: int
    field: int
    input_ids: list[int]
    truncated: bool = False
    index: int = -1
    targets: Sequence[int] = ()
    num_image_tokens: int = 0
    scene: Scene | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that the model sees, special tokens and those of images included."""
        return len(self.input_ids) + self.num_image_tokens

    @property
    def num_image_bytes(self) -> int:
        """Bytes of images that wait with the sample."""
        return sum(map(len, self.scene.images)) if self.scene else 0


@dataclass(slots=True)
class Batch:
    """Samples of one unit that run together. A unit ends with an empty batch, `is_last`: all before it were sent."""

    work: Work
    samples: list[Sample] = field(default_factory=list)
    is_last: bool = False

    @property
    def weight(self) -> int:
        """MB of images, and of records that wait with the end of a unit to be written, at least 1."""
        num_bytes = sum(sample.num_image_bytes for sample in self.samples)
        return 1 + (num_bytes + (self.work.num_waiting_bytes if self.is_last else 0)) // 10**6

    def drop(self, sample: Sample, error: RowError) -> None:
        """Take out a sample that turns out to be unusable; its row is skipped and listed."""
        self.samples = [kept for kept in self.samples if kept is not sample]
        self.work.fail(sample.position, error)

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
