"""Single tokens of a record, as people look at them: what stands there, how likely it was, and what else was likely."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from builders.logits_stats import token_values
from builders.packing import Array, Logits

LEVELS = (0.5, 0.1, 0.01)  # probabilities that part likely, less likely, unlikely and surprising tokens


@dataclass(frozen=True)
class TokenView:
    """One token that the assistant generated."""

    number: int  # among those of the record, from 0
    position: int  # in the conversation
    id: int
    p: float  # under the teacher; where it is not stored, the most that it can be
    is_stored: bool
    entropy: float  # nats
    size: int  # exact entries
    rest: float  # mass outside them
    candidates: tuple[tuple[int, float], ...]  # id and probability, the likeliest first

    @property
    def level(self) -> int:
        """Which of the four kinds it is: 0 for p >= 0.5, 3 for p < 0.01."""
        return sum(self.p < level for level in LEVELS)


def token_views(logits: Logits, top: int) -> list[TokenView]:
    """Return all tokens of a record, with their `top` likeliest ids. ValueError: it has no input_ids and positions."""
    if logits.input_ids is None or logits.positions is None:
        raise ValueError("a record has no input_ids and positions: they say which tokens the entries predict")
    targets = logits.input_ids[logits.positions]
    values = token_values(logits, targets)
    p = np.exp(-values.surprise)
    return [
        TokenView(
            number,
            int(logits.positions[number]),
            int(targets[number]),
            float(p[number]),
            not np.isnan(values.logprob[number]),
            float(values.entropy[number]),
            int(values.size[number]),
            float(1 - values.mass[number]),
            tuple((int(i), float(q)) for i, q in candidates),
        )
        for number, candidates in enumerate(_likeliest(logits, top))
    ]


def _likeliest(logits: Logits, top: int) -> list[list[tuple[Array, Array]]]:
    p, ends = logits.probabilities, np.cumsum(logits.counts)
    out = []
    for start, stop in zip(ends - logits.counts, ends, strict=True):
        order = start + np.argsort(-p[start:stop], kind="stable")[:top]
        out.append(list(zip(logits.ids[order], p[order], strict=True)))
    return out
