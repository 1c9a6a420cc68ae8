"""What can be wrong with the records of a logits dataset, told from the records alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from builders.packing import Logits, group_reduce, unpack

SLACK = 1e-4  # of a mass: logits are stored in steps, probabilities summed in float32


def wrong_logits(batch: pa.RecordBatch, *, top_p: float, max_elements: int) -> Iterator[str]:
    """Say what no teacher can have given, of the first record that has it."""
    for record in batch.to_pylist():
        where = f"row {record['index']}"
        try:
            logits = unpack(record)
        except (ValueError, IndexError, TypeError) as error:
            yield f"{where}: cannot be unpacked: {error}"
            return
        if what := _wrong(logits, record["num_tokens"], top_p, max_elements):
            yield f"{where}: {what}"
            return


def _wrong(logits: Logits, num_tokens: int, top_p: float, max_elements: int) -> str | None:
    positions, ids = logits.positions, logits.input_ids
    if positions is None or ids is None or not len(positions) == num_tokens == len(logits.counts):
        return f"{num_tokens} tokens, and as many positions and counts are due"
    if len(positions) and not (positions.min() >= 1 and positions.max() < len(ids) and (np.diff(positions) > 0).all()):
        return "positions do not name tokens of the conversation, in their order"
    if not (np.isfinite(logits.logits).all() and np.isfinite(logits.logsumexp).all()):
        return "values that are not finite"
    mass = group_reduce(np.add, np.exp(logits.logprobs()), logits.counts)
    if (mass > 1 + SLACK).any():
        return f"a nucleus of mass {mass.max():.4f}"
    short = (mass < top_p - SLACK) & (logits.counts < max_elements)
    if short.any():
        return f"a nucleus of {logits.counts[short][0]} ids with a mass of {mass[short][0]:.4f} only"
    return None
