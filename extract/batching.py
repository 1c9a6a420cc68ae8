"""Batches under a token budget: a bounded window of samples, sorted by length, is cut where padding would exceed it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from extract.sample import Sample

logger = logging.getLogger(__name__)

# A window; half of another is looked at before it goes. Sorted, ragged chats then pad well under 2 %
WINDOW_SAMPLES = 8192
WINDOW_BATCHES = 64  # and at most so many budgets of tokens, so that long texts do not fill memory
WINDOW_BYTES = 2**28  # and so many of encoded images


class TokenBudget:
    """Tokens per batch, padding counted. An out-of-memory error halves it for the rest of the run."""

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens

    def halve(self, failed_tokens: int) -> None:
        """Halve after a batch of `failed_tokens` (padded) did not fit, and say so."""
        self.max_batch_tokens = max(1, min(self.max_batch_tokens, failed_tokens) // 2)
        logger.warning(
            "out of memory at %d tokens per batch: going on with %d; --max-batch-tokens %d starts there",
            failed_tokens,
            self.max_batch_tokens,
            self.max_batch_tokens,
        )


def token_batches(samples: Iterable[Sample], budget: TokenBudget) -> Iterator[list[Sample]]:
    """Cut samples into batches of at most `budget` padded tokens, or of one sample. Order is kept within a window only.

    Longest first: the batch that needs most memory comes first, and an out-of-memory error early.
    """
    for window in _windows(samples, budget):
        window.sort(key=lambda sample: -sample.num_tokens)
        start = 0
        while start < len(window):
            rows = max(1, budget.max_batch_tokens // window[start].num_tokens)
            yield window[start : start + rows]
            start += rows


def _windows(samples: Iterable[Sample], budget: TokenBudget) -> Iterator[list[Sample]]:
    """Full windows; the last takes what would not fill half of another, as few samples by themselves pad most."""
    held: list[Sample] = []
    window: list[Sample] = []
    tokens = num_bytes = 0
    for sample in samples:
        window.append(sample)
        tokens += sample.num_tokens
        num_bytes += sample.num_image_bytes
        most_tokens = WINDOW_BATCHES * budget.max_batch_tokens
        share = max(len(window) / WINDOW_SAMPLES, num_bytes / WINDOW_BYTES, tokens / most_tokens)
        if held and share >= 0.5:
            yield held
            held = []
        if share >= 1:
            held, window, tokens, num_bytes = window, [], 0, 0
    if held or window:
        yield held + window
