"""What goes into the capture of teacher logits, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids of one row, and the places of those whose distribution is wanted, each at least 1."""

    row: int  # index in the source: draws depend on it
    input_ids: list[int]
    positions: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens that the model sees."""
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class TokenLogits:
    """What is stored of the T wanted tokens of a conversation; the nucleus of token t has counts[t] entries.

    Logits are the model's own, so p = exp(logit - logsumexp). extract/engines/draws.py says what sampled ids weigh.
    """

    nucleus_ids: np.ndarray  # int32 [sum of counts], token after token, likeliest first
    nucleus_logits: np.ndarray  # float32 [sum of counts]
    counts: np.ndarray  # uint8 [T]; uint16 with a global threshold under 1/255
    logsumexp: np.ndarray  # float64 [T]
    # int32 [T, N], rising; with a global threshold N is what the token with most of them needs
    sampled_ids: np.ndarray
    sampled_logits: np.ndarray  # float32 [T, N]
    sampled_counts: np.ndarray  # uint16 [T]; from there on padding: the id before it, or the first of the nucleus
    # float64 [T, temperatures but 1], logsumexp(logits / temperature); [T, 0] where all is for 1
    logsumexp_at: np.ndarray
    tail_mass_at: np.ndarray  # float32 [T, temperatures], mass outside the nucleus at each; [T, 0] where all is for 1


def nucleus_mass(one: TokenLogits) -> float:
    """Sum over the tokens of the mass of their nuclei: T where nothing is left out."""
    return float(np.exp(one.nucleus_logits - np.repeat(one.logsumexp, one.counts)).sum())
