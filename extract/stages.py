"""The stages between a unit and its batches: each takes an iterator and gives one, and accounts for every row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from builders.images import ImageView
from builders.row import Row, RowError
from builders.text import Text, TextView
from extract.batching import TokenBudget, token_batches
from extract.processor import VisionProcessor
from extract.sample import Batch, Sample
from extract.tokens import TextTokenizer
from extract.work import Work

TOKENIZE_ROWS = 256  # rows per call of the tokenizer: enough for its threads, little to wait for

Texts = tuple[int, tuple[Text, ...]]  # (position of the row in its unit, its texts)


def texts(rows: Iterable[Row], view: TextView | ImageView, work: Work) -> Iterator[Texts]:
    """Render each row; one that cannot be rendered is skipped and listed."""
    for position, row in enumerate(rows):
        try:
            if row.error is not None:
                raise row.error
            rendered = view.render(row.data)
        except RowError as error:
            work.skip(row.index, error)
        else:
            work.add_texts(position, row, rendered)
            yield position, rendered


def samples(rendered: Iterable[Texts], tokenizer: TextTokenizer, work: Work) -> Iterator[Sample]:
    """Tokenise the texts that no earlier run has left a vector of. An empty text of several gives no sample."""
    rendered = iter(rendered)
    while rows := list(islice(rendered, TOKENIZE_ROWS)):
        wanted = [
            (position, number, text)
            for position, row_texts in rows
            for number, text in enumerate(row_texts)
            if text.text and not work.is_done[number, position]
        ]
        encoded = tokenizer.encode([text for _, _, text in wanted])
        for (position, number, _), (ids, truncated) in zip(wanted, encoded, strict=True):
            if ids:  # else the tokenizer drops every character of the text: Work.finish lists its row
                yield Sample(position, number, ids, truncated)


def scenes(rendered: Iterable[Texts], processor: VisionProcessor, work: Work) -> Iterator[Sample]:
    """Make the prompt of each text with its images; a row with an image that is none is skipped and listed."""
    for position, (text,) in rendered:
        if work.is_done[0, position]:
            continue
        try:
            yield processor.sample(position, text)
        except RowError as error:
            work.fail(position, error)


def batches(ready: Iterable[Sample], budget: TokenBudget, work: Work) -> Iterator[Batch]:
    """Batch under the token budget; the empty batch at the end says that the whole unit was sent."""
    for batch in token_batches(ready, budget):
        yield Batch(work, batch)
    yield Batch(work, is_last=True)
