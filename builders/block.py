"""What the model side hands to packing for T tokens, and what is wrong with it where something is."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MAX_VOCAB = 1 << 18  # a record has 16 + 2 bits for an id
MAX_COUNT = 255  # and one byte for a count


def check_block(
    ids: Array,
    logits: Array,
    counts: Array,
    logsumexp: Array,
    sampled_ids: Array,
    sampled_logits: Array,
    vocab_size: int,
    *,
    least: int = 1,
    most: int = MAX_COUNT,
) -> None:
    """Raise ValueError, in one line, for a block that no record can hold: `least` to `most` nucleus ids per token."""
    if not 0 < vocab_size <= MAX_VOCAB:
        raise ValueError(f"a vocabulary of {vocab_size:,} ids does not fit: ids have 18 bits, at most {MAX_VOCAB:,}")
    if len(counts) and not (least <= counts.min() and counts.max() <= most):
        raise ValueError(f"tokens have {counts.min()} to {counts.max()} nucleus ids; a record holds {least} to {most}")
    if not counts.sum() == len(ids) == len(logits):
        raise ValueError(f"{len(ids)} nucleus ids and {len(logits)} logits, where counts ask for {counts.sum()}")
    if sampled_ids.shape != sampled_logits.shape or sampled_ids.ndim != 2 or len(sampled_ids) != len(counts):
        raise ValueError(f"samples {sampled_ids.shape} with logits {sampled_logits.shape} for {len(counts)} tokens")
    tokens = np.arange(len(counts))
    for name, some in (("nucleus", ids), ("sampled", sampled_ids.ravel())):
        if len(some) and not (some.min() >= 0 and some.max() < vocab_size):
            raise ValueError(f"{name} ids from {some.min()} to {some.max()}, in a vocabulary of {vocab_size:,}")
    check_finite(logits, "nucleus logit", np.repeat(tokens, counts))
    check_finite(sampled_logits.ravel(), "sampled logit", np.repeat(tokens, sampled_ids.shape[1]))
    check_finite(logsumexp, "logsumexp", tokens)


def check_finite(values: Array, name: str, tokens: Array) -> None:
    """Raise ValueError with the first token whose value is not finite, or where values and tokens differ in number."""
    if np.shape(values) != tokens.shape:
        raise ValueError(f"{np.shape(values)} values of {name}, where {tokens.shape} are due")
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise ValueError(
            f"{name} of token {tokens[wrong.argmax()]} is {values[wrong.argmax()]}: the model gave no distribution"
        )
