"""Teacher logits in half of the default's bytes, or a quarter with one threshold: the same meaning, for temperature 1.

The T tokens' *exact* entries (the nucleus, and those of its samples that are certain) keep their probability; the other
*samples* keep their id alone, as all samples of a token weigh the same: their share of the mass r that the exact entries
leave (or `sample_weight`, where the whole dataset has one threshold). Columns are bytes; Parquet's zstd does the rest, and
does it best on one kind of byte per column: column `_0` of a number holds its lowest byte, `_1` the next.

    num_tokens                    T
    exact_counts                  one byte per token; where the dataset has one threshold, exact_counts_1 is a second byte
    exact_ranks_0, _1(, _2)       ids as ranks (`RankTable`: 0 is the dataset's most frequent id), rising in each token; the
                                  first, then differences; `_2` in vocabularies over 65,536 ids
    exact_values_0, _1            83 + k: k = round(308 sqrt p) from 8 up, steps of 1/4 nat below. p = (k^2 - 1/4) / 308^2, or
                                  log p = 2 log(8 / 308) - (8 - k) / 4. A token's p are then scaled to sum to 1 - r
    sampled_counts                as exact_counts
    sampled_ranks_0, _1(, _2)     like exact_ranks; an id drawn twice stands twice
    rest                          r = (b / 255)^2, one byte b per token; with one threshold, p are scaled where b < 221 alone
    logsumexp_0, _1, _2           round(64 logsumexp), two's complement: only raw logits need it
    sample_weight                 one float, where there is one threshold
    input_ids, positions          as in the default encoding

Values in equal steps of sqrt p: an error of d in log p costs p d^2 / 2 nats, so at a given entropy the best step is in
proportion to 1 / sqrt p. A code stands for the geometric mean of what rounds to it (hence the 1/4): small p outnumber large
ones, and with the middle of each step they would come out too large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from builders.block import Array, check_block
from builders.packing import Logits, count_samples, group_reduce, to_array
from builders.rank_table import RankTable
from builders.tail import tail_thresholds

SCALE = 308  # steps of sqrt p from 0 to 1
KNEE = 8  # below KNEE / SCALE steps are of 1/4 nat, which is what they have become there
ZERO = 83  # code of sqrt p = 0; code 0 is p = 1e-13, and whatever is less
KNEE_LOGPROB = 2 * np.log(KNEE / SCALE)
REST_STEPS = 255
SCALED = (
    221  # of these steps: from r = 3/4 on, half a step of r is a larger part of 1 - r than what the steps of p leave
)
LOGSUMEXP_STEPS = 64


def _logprob_table() -> Array:
    k = np.arange(-ZERO, SCALE + 1)
    root = np.log((np.maximum(k, KNEE) ** 2 - 1 / 4) / SCALE**2)
    return np.where(k >= KNEE, root, KNEE_LOGPROB - (KNEE - k) / 4).astype(np.float32)


LOGPROBS = _logprob_table()


def pack_compact(
    nucleus_ids: Array,
    nucleus_logits: Array,
    counts: Array,
    logsumexp: Array,
    sampled_ids: Array,
    sampled_logits: Array,
    *,
    ranks: RankTable,
    sampled_counts: Array | None = None,
    sample_weight: float | None = None,
    input_ids: Array | None = None,
    positions: Array | None = None,
) -> dict[str, Any]:
    """Pack what `builders.packing.pack` takes into the columns of a compact record.

    Samples are by the threshold rule, unless `sampled_counts` [T] says how many of each token's slots hold draws; those weigh
    `sample_weight` each, or else the same share of r, and repeats count. Then a token may have no exact entry.
    """
    counts = np.asarray(counts).astype(np.int64)
    limits = {} if sampled_counts is None else {"least": 0, "most": (1 << 16) - 1}
    vocab_size = len(ranks.ids)
    check_block(nucleus_ids, nucleus_logits, counts, logsumexp, sampled_ids, sampled_logits, vocab_size, **limits)
    sampled = (sampled_ids, sampled_logits - logsumexp[:, None], sampled_counts)
    logprobs = nucleus_logits - np.repeat(logsumexp, counts)
    tokens, nucleus_ids, logprobs, drawn = _exact_and_drawn(nucleus_ids, logprobs, counts, *sampled)
    exact_ranks, exact_counts, order = _gaps(ranks.ranks[nucleus_ids], tokens, len(counts))
    drawn_ranks, drawn_counts, _ = _gaps(ranks.ranks[sampled_ids[drawn]], np.nonzero(drawn)[0], len(counts))
    mass = np.bincount(tokens, np.exp(logprobs), minlength=len(counts))
    record = {
        "num_tokens": len(counts),
        **_counts("exact_counts", exact_counts, wide=sample_weight is not None),
        **_planes("exact_ranks", exact_ranks, ranks.num_bytes),
        **_planes("exact_values", encode_logprobs(logprobs[order]), 2),
        **_counts("sampled_counts", drawn_counts, wide=sample_weight is not None),
        **_planes("sampled_ranks", drawn_ranks, ranks.num_bytes),
        "rest": _encode_rest(1 - mass, exact_counts).tobytes(),
        **_planes("logsumexp", np.rint(logsumexp * LOGSUMEXP_STEPS).astype(np.int64), 3),
    }
    if sample_weight is not None:
        record["sample_weight"] = float(sample_weight)
    if input_ids is not None and positions is not None:
        record |= {"input_ids": np.asarray(input_ids, np.int32), "positions": np.asarray(positions, np.int32)}
    return record


def unpack_compact(record: Mapping[str, Any], ranks: RankTable | None) -> Logits:
    """Return the distributions of a compact record; exact entries in order of rank. ValueError: no rank table given."""
    if ranks is None:
        raise ValueError(
            "a compact record has ranks in place of ids: give the dataset's RankTable, from builders.stored_logits"
        )
    counts, num_drawn = (join_counts(record, f"{name}_counts") for name in ("exact", "sampled"))
    num_exact, total_drawn = int(counts.sum()), int(num_drawn.sum())
    # clip: unchecked, 2.5 times as fast
    logits = LOGPROBS.take(join_planes(record, "exact_values", 2, num_exact), mode="clip")
    mass = group_reduce(np.add, np.exp(logits), counts)
    steps = to_array(record["rest"], np.float64, len(counts))
    is_scaled = (mass > 0) & ((steps < SCALED) | (record.get("sample_weight") is None))
    scale = np.log(np.divide(1 - (steps / REST_STEPS) ** 2, mass, out=np.ones_like(steps), where=is_scaled))
    code = join_planes(record, "logsumexp", 3, len(counts)).astype(np.int32)
    logsumexp = ((code ^ 1 << 23) - (1 << 23)) / LOGSUMEXP_STEPS
    logits += np.repeat((logsumexp + scale).astype(np.float32), counts)
    is_drawn = np.arange(num_drawn.max(initial=0)) < num_drawn[:, None]
    sampled_ids = np.zeros(is_drawn.shape, np.int32)
    sampled_ids[is_drawn] = ranks.ids.take(
        _undo_gaps(join_planes(record, "sampled_ranks", ranks.num_bytes, total_drawn), num_drawn), mode="clip"
    )
    weight = record.get("sample_weight")
    return Logits(
        ranks.ids.take(
            _undo_gaps(join_planes(record, "exact_ranks", ranks.num_bytes, num_exact), counts), mode="clip"
        ),
        counts,
        logits,
        logsumexp,
        sampled_ids,
        num_drawn,
        sample_weight=None if weight is None else float(weight),
        input_ids=to_array(record["input_ids"], np.int32) if "input_ids" in record else None,
        positions=to_array(record["positions"], np.int32) if "positions" in record else None,
    )


def encode_logprobs(logprobs: Array) -> Array:
    """Return the codes of log probabilities, int64: an error of at most half a step."""
    root = SCALE * np.exp(logprobs / 2)
    low = KNEE - np.rint((KNEE_LOGPROB - logprobs) * 4)
    return np.clip(np.where(root >= KNEE, np.rint(root), low) + ZERO, 0, SCALE + ZERO).astype(np.int64)


def _exact_and_drawn(
    ids: Array, logprobs: Array, counts: Array, sampled_ids: Array, sampled: Array, sampled_counts: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Tokens, ids and log probabilities of exact entries, certain samples among them; and which slots [T, N] hold draws."""
    tokens = np.repeat(np.arange(len(counts)), counts)
    if sampled_counts is not None:
        return tokens, ids, logprobs, np.arange(sampled_ids.shape[1]) < np.asarray(sampled_counts)[:, None]
    certain, drawn = _sort_out(tokens, ids, logprobs, counts, sampled_ids, sampled)
    tokens = np.concatenate([tokens, np.nonzero(certain)[0]])
    return tokens, np.concatenate([ids, sampled_ids[certain]]), np.concatenate([logprobs, sampled[certain]]), drawn


def _sort_out(
    tokens: Array, ids: Array, logprobs: Array, counts: Array, sampled_ids: Array, sampled_logprobs: Array
) -> tuple[Array, Array]:
    """Which samples are certain, and which stand for others too; padding is neither. Both bool [T, N]."""
    num = count_samples(sampled_ids, ids, counts)
    held = np.arange(sampled_ids.shape[1]) < num[:, None]
    p = np.exp(sampled_logprobs)
    rest = np.clip(1 - np.bincount(tokens, np.exp(logprobs), minlength=len(counts)), 0, None)
    certain = held & (p >= tail_thresholds(p, rest, num)[:, None])
    return certain, held & ~certain


def _gaps(ranks: Array, tokens: Array, num_tokens: int) -> tuple[Array, Array, Array]:
    """Sort ranks within tokens and take differences; return them, how many each token has, and the order."""
    order = np.lexsort((ranks, tokens))
    counts = np.bincount(tokens, minlength=num_tokens)
    ranks = ranks[order]
    gaps = np.diff(ranks, prepend=0)
    starts = (np.cumsum(counts) - counts)[counts > 0]
    gaps[starts] = ranks[starts]
    return gaps, counts, order


def _undo_gaps(gaps: Array, counts: Array) -> Array:
    """Ranks from their differences: one running sum, which may wrap around, less what it was before the token."""
    sums = np.cumsum(gaps, dtype=gaps.dtype)
    ends = np.cumsum(counts)
    before = np.where(ends > counts, sums[ends - counts - 1], 0) if len(sums) else ends
    return sums - np.repeat(before.astype(gaps.dtype), counts)


def _encode_rest(rest: Array, exact_counts: Array) -> Array:
    """A token that has exact entries keeps some mass for them."""
    code = np.rint(np.sqrt(np.clip(rest, 0, 1)) * REST_STEPS)
    return np.minimum(code, np.where(exact_counts > 0, REST_STEPS - 1, REST_STEPS)).astype(np.uint8)


def _counts(name: str, counts: Array, *, wide: bool) -> dict[str, bytes]:
    limit = (1 << 16 if wide else 1 << 8) - 1
    if counts.max(initial=0) > limit:
        raise ValueError(
            f"{name} of token {counts.argmax()} is {counts.max()}; a compact record holds at most {limit}"
        )
    high = {f"{name}_1": (counts >> 8).astype(np.uint8).tobytes()} if wide else {}
    return {name: (counts & 255).astype(np.uint8).tobytes(), **high}


def join_counts(record: Mapping[str, Any], name: str) -> Array:
    """Counts of a record's tokens, int64 [T], of one byte each or two."""
    num_tokens = int(to_array(record["num_tokens"], np.int64).sum())  # of one record, or of several end to end
    counts = to_array(record[name], np.int64, num_tokens)
    return counts + (to_array(record[f"{name}_1"], np.int64, num_tokens) << 8) if f"{name}_1" in record else counts


def compact_bytes(num_entries: float, num_samples: float, num_tokens: float) -> float:
    """Bytes of a compact record in a Parquet chunk, without input_ids and positions.

    Measured with SmolLM2 on 12,733 tokens of real chats: 91.8 for 48 entries, 21.6 for 15 samples, 3.3 for the rest.
    """
    return 1.9 * num_entries + 1.45 * num_samples + 4 * num_tokens


def _planes(name: str, values: Array, num_bytes: int) -> dict[str, bytes]:
    return {f"{name}_{i}": (values >> 8 * i & 255).astype(np.uint8).tobytes() for i in range(num_bytes)}


def join_planes(record: Mapping[str, Any], name: str, num_bytes: int, length: int) -> Array:
    """Numbers of which each byte has a column, [length]: uint16, or uint32 for three bytes."""
    dtype = np.uint16 if num_bytes == 2 else np.uint32
    out = to_array(record[f"{name}_{num_bytes - 1}"], dtype, length)
    for i in reversed(range(num_bytes - 1)):
        out = out << dtype(8) | to_array(record[f"{name}_{i}"], np.uint8, length)
    return out
