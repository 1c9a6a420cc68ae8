"""Tokens that lie in spans of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from builders.template import Span

Array = np.ndarray[Any, Any]


def mask_tokens(text: str, offsets: Array | Sequence[tuple[int, int]], spans: Sequence[Span]) -> tuple[Array, int]:
    """Mark the tokens whose characters lie in spans (bool [n]), and count those that lie across a border.

    `offsets` (int [n, 2]) are the characters of each token, `spans` are in order. Tokens of one character share its
    offsets. A token of white space alone, whose offsets a tokenizer has trimmed to nothing, lies between its neighbours.
    A token that reaches over the end of a span by white space alone is inside, since the model generated its text; so is
    the ` Two` of `Assistant: Two`, though the prompt has that space. A token with the newline of a header in it is not.
    Spans that touch are one: a template may mark each part of an answer. Only tokens at a border are looked at one by one.
    """
    if not len(offsets) or not spans:
        return np.zeros(len(offsets), bool), 0
    spans, offsets = joined(spans), np.asarray(offsets)
    low, high = _widened(offsets, len(text))
    starts, stops = (np.array(edges) for edges in ([s.start for s in spans], [s.stop for s in spans]))
    at = np.maximum.accumulate(np.searchsorted(stops, low, side="right"))
    near = np.minimum(at, len(spans) - 1)
    touches = (at < len(spans)) & (low < stops[near]) & (high > starts[near])
    mask = touches & (low >= starts[near]) & (high <= stops[near])
    border = np.flatnonzero(touches & ~mask)
    for k in border.tolist():
        mask[k] = _is_own(text, int(low[k]), int(high[k]), spans[near[k]])
    return mask, int((~mask[border]).sum())


def _widened(offsets: Array, end: int) -> tuple[Array, Array]:
    """Where tokens begin and end; one without characters reaches from the end before it to the next beginning."""
    low, high = offsets[:, 0], offsets[:, 1]
    is_empty = low == high
    if not is_empty.any():
        return low, high
    following = np.where(is_empty, len(low), np.arange(len(low)))
    following = np.minimum.accumulate(following[::-1])[::-1]  # the token with characters that is next
    high = np.where(is_empty, np.append(low, end)[following], high)
    reached = np.concatenate([[0], np.maximum.accumulate(high)[:-1]])
    return np.where(is_empty, reached, low), high


def joined(spans: Sequence[Span]) -> list[Span]:
    """Join spans, given in order, that touch or overlap."""
    found: list[Span] = []
    for span in spans:
        if found and span.start <= found[-1].stop:
            found[-1] = Span(found[-1].start, max(found[-1].stop, span.stop))
        else:
            found.append(span)
    return found


def _is_own(text: str, begin: int, end: int, span: Span) -> bool:
    if text[span.stop : end].strip():
        return False
    return begin >= span.start or not (text[begin : span.start].strip(" ") or text[span.start : end].isspace())
