"""How many tokens of a conversation are whose: the assistant's by the mask, the others' by what printed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from builders.encoded import RenderedChat
from builders.overlap import Array, mask_tokens
from builders.template import Rendering, Span

ROLES = ("system", "user", "tool")  # beside the assistant's tokens and the template's own
SAME_ROLES = {"developer": "system", "function": "tool", "ipython": "tool", "tool_response": "tool"}
OTHER = len(ROLES)


@dataclass(frozen=True, slots=True)
class ChatLengths:
    """Counts of one conversation, whole: nothing is cut.

    `runs` are the tokens that a logits build captures, as start, stop, start, stop, … The counts of `roles` are those of
    ROLES, None where the template prints such a message outside of its own pass. Counts that are known sum to `num_tokens`,
    with `markup` as the rest. Where the assistant's turns are not certain, `no_mask` has the reason, and only totals stand.
    """

    num_tokens: int
    num_turns: int
    runs: list[int]
    roles: list[int | None]
    markup: int | None
    no_mask: str | None = None


def count_chat(chat: RenderedChat, messages: Sequence[Mapping[str, Any]], offsets: Array) -> ChatLengths:
    """Count the tokens of a rendered conversation; `offsets` (int [n, 2]) are the characters of each.

    A token that the assistant did not generate is counted for the message whose pass of the template's loop printed its
    first character, with the headers and ends that the pass printed; one of an answer's pass, or of none, is markup.
    """
    if chat.refusal is not None or chat.rendering is None:
        reason = "" if chat.refusal is None else chat.refusal.reason
        return ChatLengths(len(offsets), len(messages), [], [None] * OTHER, None, reason)
    mask, _ = mask_tokens(chat.text, offsets, chat.spans)
    mask[:1] = False  # nothing predicts the first token
    runs = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    roles = [SAME_ROLES.get(str(m.get("role")), str(m.get("role"))) for m in messages]
    owner = _owners(chat.rendering, roles, offsets)
    found = np.bincount(owner[~mask], minlength=OTHER + 1).tolist()
    unknown = {
        role for i, role in enumerate(roles) if not chat.rendering.regions.get(i) and messages[i].get("content")
    }
    counts = [None if role in unknown else found[number] for number, role in enumerate(ROLES)]
    markup = len(offsets) - int(mask.sum()) - sum(filter(None, counts))
    return ChatLengths(len(offsets), len(messages), runs.tolist(), counts, markup)


def _owners(rendering: Rendering, roles: Sequence[str], offsets: Array) -> Array:
    """Which of ROLES printed each token (int [n]), OTHER for none of them."""
    owner = np.full(len(offsets), OTHER)
    spans = [(span, i) for i, own in rendering.regions.items() for span in own]
    spans.sort(key=lambda found: found[0].start - found[0].stop)  # passes within a pass come last, and win
    begins = np.maximum.accumulate(offsets[:, 0]) if len(offsets) else offsets[:0].ravel()
    edges = np.searchsorted(begins, [edge for span, _ in spans for edge in _edges(span)]).reshape(-1, 2)
    for (_, i), (start, stop) in zip(spans, edges, strict=True):
        owner[start:stop] = ROLES.index(roles[i]) if roles[i] in ROLES else OTHER
    return owner


def _edges(span: Span) -> tuple[int, int]:
    return span.start, span.stop


def captured_tokens(runs: Array, borders: Array, max_length: int) -> Array:
    """How many tokens of `runs` lie within `max_length`, for each of N conversations (int64 [N]).

    `runs` (int [R]) has those of all conversations, one after the other; conversation n has runs[borders[n]:borders[n + 1]].
    """
    starts, stops = np.minimum(runs.reshape(-1, 2), max_length).T.astype(np.int64)
    total = np.concatenate([[0], np.cumsum(stops - starts)])
    return np.diff(total[np.asarray(borders) // 2])
