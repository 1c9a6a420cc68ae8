"""Tokens that lie in spans of characters."""

from __future__ import annotations

from collections.abc import Sequence

from builders.template import Span


def mask_tokens(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> tuple[list[int], int]:
    """Mark the tokens whose characters lie in spans, and count those that lie across a border.

    Tokens of one character share its offsets. A token of white space alone, whose offsets a tokenizer has trimmed to
    nothing, lies between its neighbours. A token that reaches over the end of a span by white space alone is inside,
    since the model generated its text; so is the ` Two` of `Assistant: Two`, though the prompt has that space. A token
    with the newline of a header in it is not. Spans that touch are one: a template may mark each part of an answer.
    """
    spans = joined(spans)
    mask: list[int] = []
    crossing = reached = at = 0
    for k, (low, high) in enumerate(offsets):
        if low == high:
            low, high = reached, next((start for start, stop in offsets[k + 1 :] if start < stop), len(text))
        reached = max(reached, high)
        while at < len(spans) and spans[at].stop <= low:
            at += 1
        touches = at < len(spans) and low < spans[at].stop and high > spans[at].start
        own = touches and _is_own(text, low, high, spans[at])
        mask.append(int(own))
        crossing += touches and not own
    return mask, crossing


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
