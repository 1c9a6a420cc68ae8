"""A lengths build: the stage that counts tokens of rows, and the unit in hand. No model is loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from builders.encoded import ChatEncoder, RenderedChat
from builders.lengths import ROLES, ChatLengths, count_chat
from builders.lengths_schema import to_metadata
from builders.row import Row, RowError
from builders.schema import Column
from extract.batching import TokenBudget
from extract.chats import conversations
from extract.read_ahead import read_ahead
from extract.sample import Batch, Sample
from extract.stages import TOKENIZE_ROWS, Texts
from extract.tokens import TextTokenizer
from extract.work import Work

# the card tells how many rows are longer, and what a cut there leaves
LADDER = [1 << power for power in range(10, 18)]
Counts = ChatLengths | None  # None of a text: it has its number of tokens, and nothing else


@dataclass(slots=True)
class CountedSample(Sample):
    """A row or text whose tokens are counted: `input_ids` tells their number alone."""

    counts: Counts = None


class NoEngine:
    """Stands where the engine stands: what the samples hold is the result."""

    dimension = 0
    max_batch_tokens = 1 << 17  # what a kill can lose is 64 of these, some seconds of work

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, list[Counts], int], None, None]:
        """See Engine."""
        for batch in batches:
            yield batch, [s.counts for s in batch.samples if isinstance(s, CountedSample)], batch.num_tokens


@dataclass
class LengthsWork(Work):
    """N rows with F texts, or one conversation each; results of a batch are one Counts for each sample."""

    facts: Mapping[str, str] = field(default_factory=dict)  # what decides the counts
    chats: dict[int, ChatLengths] = field(default_factory=dict)  # position: counts

    nothing: ClassVar[RowError] = RowError("no_token", "the tokenizer finds no token in the row")

    def keep(self, samples: Sequence[Sample], results: Sequence[Counts]) -> None:
        """See Work."""
        self.chats.update({s.position: r for s, r in zip(samples, results, strict=True) if r is not None})

    def dump(self, results: Sequence[Counts]) -> bytes:
        """See Work."""
        return json.dumps([None if result is None else asdict(result) for result in results]).encode()

    def load(self, num_samples: int, content: memoryview) -> list[Counts]:
        """See Work."""
        return [None if found is None else ChatLengths(**found) for found in json.loads(bytes(content))]

    def counts(self) -> dict[str, Any]:
        """See Work; and sums by part, conversations without a mask by reason, and rows longer than each of LADDER."""
        found = [self.chats[position] for position in self.rows if position in self.chats]
        totals = self.num_tokens.sum(axis=0)[list(self.rows)]
        return super().counts() | {
            "captured": sum(sum(chat.runs[1::2]) - sum(chat.runs[::2]) for chat in found),
            **{name: sum(chat.roles[n] or 0 for chat in found) for n, name in enumerate(ROLES)},
            "markup": sum(chat.markup or 0 for chat in found),
            **{f"no_mask_{name}": n for name, n in Counter(c.no_mask for c in found if c.no_mask is not None).items()},
            **{f"longer_{limit}": int((totals > limit).sum()) for limit in LADDER},
            **{f"kept_{limit}": int(np.minimum(totals, limit).sum()) for limit in LADDER},
        }

    def records(self, columns: Sequence[Column]) -> pa.Table:
        """See Work; the schema says what was counted."""
        table = super().records(columns)
        return table.replace_schema_metadata({**table.schema.metadata, **to_metadata(self.facts)})

    def results(self, positions: Sequence[int], types: Mapping[str, pa.DataType]) -> dict[str, object]:
        """See Work."""
        if self.job.count == "text":
            return {f"{name}_tokens": self.num_tokens[n, positions] for n, name in enumerate(self.job.fields)}
        chats = [self.chats[position] for position in positions]
        return {
            "num_turns": [chat.num_turns for chat in chats],
            "assistant_tokens": [
                sum(chat.runs[1::2]) - sum(chat.runs[::2]) if chat.no_mask is None else None for chat in chats
            ],
            **{f"{name}_tokens": [chat.roles[n] for chat in chats] for n, name in enumerate(ROLES)},
            "markup_tokens": [chat.markup for chat in chats],
            "assistant_runs": [chat.runs for chat in chats],
            "no_mask": [chat.no_mask for chat in chats],
        }


def chat_lengths(rows: Iterable[Row], encoder: ChatEncoder, work: LengthsWork) -> Iterator[Sample]:
    """Count each conversation; one that cannot be read or rendered is skipped and listed.

    The template runs in Python in one thread, the tokenizer outside of it in all others.
    """
    backend = encoder.tokenizer.backend_tokenizer
    encoder.tokenizer("", add_special_tokens=False, truncation=False)  # sets the backend to cut and pad nothing
    with closing(read_ahead(_rendered(rows, encoder, work), 2 * TOKENIZE_ROWS)) as rendered:
        while window := list(islice(rendered, TOKENIZE_ROWS)):
            encodings = backend.encode_batch([chat.text for _, _, chat in window], add_special_tokens=False)
            for (position, messages, chat), encoding in zip(window, encodings, strict=True):
                if num_tokens := len(encoding):
                    offsets = (
                        np.array(encoding.offsets).reshape(-1, 2) if chat.refusal is None else _unread(num_tokens)
                    )
                    counts = count_chat(chat, messages, offsets)
                    yield CountedSample(position, 0, [0] * num_tokens, counts=counts)


def _unread(num_tokens: int) -> np.ndarray:
    return np.zeros((num_tokens, 2), np.int64)


def _rendered(
    rows: Iterable[Row], encoder: ChatEncoder, work: LengthsWork
) -> Iterator[tuple[int, list[dict[str, Any]], RenderedChat]]:
    def read(position: int, messages: list[dict[str, Any]], tools: Any) -> tuple[Any, RenderedChat | None]:
        return messages, None if work.is_done[0, position] else encoder.render(messages, tools)

    for position, row, (messages, chat) in conversations(rows, work, read):
        work.add_row(position, row, "")
        if chat is not None:
            yield position, messages, chat


def text_lengths(rendered: Iterable[Texts], tokenizer: TextTokenizer, work: LengthsWork) -> Iterator[Sample]:
    """Count the texts that no earlier run has counted."""
    rendered = iter(rendered)
    while rows := list(islice(rendered, TOKENIZE_ROWS)):
        wanted = [(position, n, text) for position, texts in rows for n, text in enumerate(texts) if text.text]
        wanted = [(position, n, text) for position, n, text in wanted if not work.is_done[n, position]]
        for (position, n, _), count in zip(wanted, tokenizer.counts([t for _, _, t in wanted]), strict=True):
            if count:
                yield CountedSample(position, n, [0] * count)
