"""What can be wrong with the records of a logits dataset, told from the records alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from builders.columns import logits_format
from builders.job import Job
from builders.logits_schema import LogitsFormat
from builders.packing import Array, Logits, group_reduce, unpack
from builders.rank_table import RankTable
from builders.wrong_compact import wrong_compact

SLACK = 1e-4  # of a mass: logits are stored in steps, probabilities summed in float32


def wrong_logits(batch: pa.RecordBatch, *, job: Job) -> Iterator[str]:
    """Say what no teacher can have given, of the first record that has it, or that the records are not the job's."""
    try:
        form = LogitsFormat.from_metadata(batch.schema.metadata)
    except (ValueError, TypeError) as error:
        yield str(error)
        return
    if form != logits_format(job, form.vocab_size, form.tokenizer, form.ranks_sha256):
        yield "its metadata tells of records that this job does not make"
        return
    # ids do not matter here, so that any table tells whether ranks can be right
    ranks = RankTable.of_ids(form.vocab_size) if form.encoding == "compact" else None
    for record in batch.to_pylist():
        if what := _wrong(record, form, ranks):
            yield f"row {record['index']}: {what}"
            return


def _wrong(record: Mapping[str, Any], form: LogitsFormat, ranks: RankTable | None) -> str | None:
    try:
        if ranks is not None and (what := wrong_compact(record, form)):
            return what
        logits = unpack(record, ranks)
        wrong_places = _wrong_places(logits, record["num_tokens"])
        return wrong_places or (_wrong_masses(logits, form) if ranks is None else None)
    except (ValueError, IndexError, TypeError, KeyError) as error:
        return f"cannot be unpacked: {error}"


def _wrong_places(logits: Logits, num_tokens: int) -> str | None:
    positions, ids = logits.positions, logits.input_ids
    if positions is None or ids is None or not len(positions) == num_tokens == len(logits.counts):
        return f"{num_tokens} tokens, and as many positions and counts are due"
    if len(positions) and not (positions.min() >= 1 and positions.max() < len(ids) and (np.diff(positions) > 0).all()):
        return "positions do not name tokens of the conversation, in their order"
    if not (np.isfinite(logits.logits).all() and np.isfinite(logits.logsumexp).all()):
        return "values that are not finite"
    return None


def _wrong_masses(logits: Logits, form: LogitsFormat) -> str | None:
    mass = _mass(logits, 1.0)
    if (mass > 1 + SLACK).any():
        return f"a nucleus of mass {mass.max():.4f}"
    short = (mass < form.top_p - SLACK) & (logits.counts < form.top_p_max_elements)
    if short.any():
        return f"a nucleus of {logits.counts[short][0]} ids with a mass of {mass[short][0]:.4f} only"
    for t in form.temperatures if len(form.temperatures) > 1 else ():
        total = _mass(logits, t) + logits.rest(t)
        if not (np.abs(total - 1) <= SLACK).all():
            return f"nucleus and tail at temperature {t:g} do not have a mass of 1"
    return None


def _mass(logits: Logits, temperature: float) -> Array:
    return group_reduce(np.add, np.exp(logits.logprobs(temperature).astype(np.float64)), logits.counts)
