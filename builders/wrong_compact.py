"""What can be wrong with a compact record, whose decoder checks nothing for the sake of speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from builders.compact import REST_STEPS, SCALE, ZERO, join_counts, join_planes, unpack_compact
from builders.logits_schema import LogitsFormat
from builders.packing import Array, to_array
from builders.rank_table import RankTable, rank_bytes

MASS_SLACK = 1e-4
ROOT_SLACK = 0.51 / REST_STEPS  # of the root of a mass that was rounded to a step
MOST_REST = (1 - 1 / REST_STEPS) ** 2
LEAST_SHARE = 0.8  # of the threshold: an exact probability near 1/256 is stored to 5 %, one near 1/1024 to 12 %


def wrong_compact(record: Mapping[str, Any], form: LogitsFormat) -> str | None:
    """Say what no teacher can have given, or None. Lengths first: all else is read by them."""
    if what := next(_wrong_lengths(record, form), None):
        return what
    counts, drawn = join_counts(record, "exact_counts"), join_counts(record, "sampled_counts")
    if (join_planes(record, "exact_values", 2, 0) > SCALE + ZERO).any():
        return "a probability over 1"
    for name, per_token in (("exact_ranks", counts), ("sampled_ranks", drawn)):
        if what := _wrong_ranks(
            join_planes(record, name, rank_bytes(form.vocab_size), 0).astype(np.int64), per_token, form
        ):
            return f"{name}: {what}"
    rest = (to_array(record["rest"], np.float64) / REST_STEPS) ** 2
    if form.threshold is not None:
        return _wrong_threshold(record, form, counts, drawn, rest)
    if len(counts) and (counts.min() < 1 or counts.max() > form.top_p_max_elements + form.num_sampled):
        return f"tokens of {counts.min()} to {counts.max()} exact entries"
    if drawn.max(initial=0) > form.num_sampled:
        return f"a token of {drawn.max()} samples, where {form.num_sampled} are drawn"
    short = (np.sqrt(rest) > np.sqrt(1 - form.top_p + MASS_SLACK) + ROOT_SLACK) & (counts < form.top_p_max_elements)
    if short.any():
        return f"a nucleus of {counts[short][0]} ids with a mass of {1 - rest[short][0]:.4f} only"
    return None


def _wrong_lengths(record: Mapping[str, Any], form: LogitsFormat) -> Iterator[str]:
    num_tokens = record["num_tokens"]
    names = [name for name in record if name.startswith(("exact_counts", "sampled_counts", "rest", "logsumexp"))]
    yield from _other_lengths(record, names, num_tokens)
    for name in ("exact", "sampled"):
        total = int(join_counts(record, f"{name}_counts").sum())
        parts = [part for part in record if part.startswith((f"{name}_ranks", f"{name}_values"))]
        yield from _other_lengths(record, parts, total)


def _other_lengths(record: Mapping[str, Any], names: list[str], due: int) -> Iterator[str]:
    for name in names:
        if len(record[name]) != due:
            yield f"{name} has {len(record[name])} bytes, and {due} are due"


def _wrong_ranks(gaps: Array, counts: Array, form: LogitsFormat) -> str | None:
    """Ranks rise within a token, and are those of a vocabulary."""
    ends = np.cumsum(counts)
    starts = (ends - counts)[counts > 0]
    is_first = np.zeros(len(gaps), bool)
    is_first[starts] = True
    if (gaps[~is_first] == 0).any():
        return "an id that stands twice"
    sums = np.cumsum(gaps)
    last = ends[counts > 0] - 1
    largest = sums[last] - sums[starts] + gaps[starts]
    if (largest >= form.vocab_size).any():
        return f"rank {largest.max()} in a vocabulary of {form.vocab_size:,}"
    return None


def _wrong_threshold(
    record: Mapping[str, Any], form: LogitsFormat, counts: Array, drawn: Array, rest: Array
) -> str | None:
    """Of the mass r outside the exact entries, r / threshold ids are drawn, rounded up or down."""
    threshold = form.threshold or 1.0
    if abs(record["sample_weight"] - threshold) > 1e-6:
        return f"samples that weigh {record['sample_weight']:g}, where the dataset's threshold is {threshold:g}"
    error = (2 * np.sqrt(rest) * ROOT_SLACK + ROOT_SLACK**2 + MASS_SLACK) / threshold
    most = np.where(rest >= MOST_REST, 1, rest)  # a token that has exact entries keeps at least one step for them
    wrong = (drawn < rest / threshold - 1 - error) | (drawn > most / threshold + 1 + error)
    if wrong.any():
        return f"{drawn[wrong][0]} samples of weight {threshold:g} for a mass of {rest[wrong][0]:.4f}"
    p = unpack_compact(record, RankTable.of_ids(form.vocab_size)).probabilities
    if (p[np.repeat(counts > 1, counts)] < LEAST_SHARE * threshold).any():
        return "an exact entry under the threshold"
    return None
