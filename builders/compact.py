"""Teacher logits in 0.4 of the default's bytes: the same meaning, for temperature 1.

The T tokens' *exact* entries (the nucleus, and those of its samples that are certain) keep their probability; the other
*samples* keep their id alone, as all samples of a token weigh the same: their share of the mass r that the exact entries
leave (or `sample_weight`, where the whole dataset has one threshold). Columns are bytes; Parquet's zstd does the rest, and
does it best on one kind of byte per column: column `_0` of a number holds its lowest byte, `_1` the next.

    num_tokens                    T
    exact_counts                  one byte per token
    exact_ranks_0, _1(, _2)       ids as ranks (`RankTable`: 0 is the dataset's most frequent id), rising in each token; the
                                  first, then differences; `_2` in vocabularies over 65,536 ids
    exact_values_0, _1            83 + k: k = round(308 sqrt p) from 8 up, steps of 1/4 nat below. p = (k^2 - 1/4) / 308^2, or
                                  log p = 2 log(8 / 308) - (8 - k) / 4. A token's p are then scaled to sum to 1 - r
    sampled_counts                one byte per token
    sampled_ranks_0, _1(, _2)     like exact_ranks; an id drawn twice stands twice
    rest                          r = (b / 255)^2, one byte b per token
    logsumexp_0, _1, _2           round(64 logsumexp), two's complement: only raw logits need it
    sample_weight                 one float, where there is one threshold
    input_ids, positions          as in the default encoding

Values in equal steps of sqrt p: an error of d in log p costs p d^2 / 2 nats, so at a given entropy the best step is in
proportion to 1 / sqrt p. A code stands for the geometric mean of what rounds to it (hence the 1/4): small p outnumber large
ones, and with the middle of each step they would come out too large.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from builders.block import Array, check_block
from builders.packing import Logits, count_samples, group_reduce, to_array
from builders.tail import tail_thresholds

SCALE = 308  # steps of sqrt p from 0 to 1
KNEE = 8  # below KNEE / SCALE steps are of 1/4 nat, which is what they have become there
ZERO = 83  # code of sqrt p = 0; code 0 is p = 1e-13, and whatever is less
KNEE_LOGPROB = 2 * np.log(KNEE / SCALE)
REST_STEPS = 255
LOGSUMEXP_STEPS = 64


def _logprob_table() -> Array:
    k = np.arange(-ZERO, SCALE + 1)
    root = np.log((np.maximum(k, KNEE) ** 2 - 1 / 4) / SCALE**2)
    return np.where(k >= KNEE, root, KNEE_LOGPROB - (KNEE - k) / 4).astype(np.float32)


LOGPROBS = _logprob_table()


@dataclass(frozen=True)
class RankTable:
    """Ids by falling frequency: `ids[rank]`, int32 [V]. One for a whole dataset, stored once beside it."""

    ids: Array

    @staticmethod
    def from_frequencies(frequencies: Array) -> RankTable:
        """Rank ids by how often they are exact entries, [V]; equal ones by id."""
        return RankTable(np.argsort(-np.asarray(frequencies, np.int64), kind="stable").astype(np.int32))

    @staticmethod
    def from_bytes(data: bytes) -> RankTable:
        """Read what `to_bytes` wrote. ValueError: it is no permutation of ids."""
        for dtype in ("<u2", "<u4"):
            ids = np.frombuffer(data, dtype).astype(np.int64) if len(data) % int(dtype[2]) == 0 else np.zeros(0)
            if len(ids) and ids.max() < len(ids) and (np.bincount(ids) == 1).all():
                return RankTable(ids.astype(np.int32))
        raise ValueError(f"{len(data)} bytes that are no rank table: each id of the vocabulary once, in 2 or 4 bytes")

    def to_bytes(self) -> bytes:
        """Little-endian ids in order of rank: 2 bytes each, or 4 in vocabularies over 65,536."""
        return self.ids.astype("<u2" if len(self.ids) <= 1 << 16 else "<u4").tobytes()

    @property
    def sha256(self) -> str:
        """Digest of the bytes, which the metadata of every file names."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @cached_property
    def ranks(self) -> Array:
        """The inverse: rank of each id, int64 [V]."""
        out = np.empty(len(self.ids), np.int64)
        out[self.ids] = np.arange(len(self.ids))
        return out

    @property
    def num_bytes(self) -> int:
        """Bytes of a rank, which is how many columns it takes."""
        return 2 if len(self.ids) <= 1 << 16 else 3


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
    least = 1 if sampled_counts is None else 0
    vocab_size = len(ranks.ids)
    check_block(nucleus_ids, nucleus_logits, counts, logsumexp, sampled_ids, sampled_logits, vocab_size, least=least)
    tokens = np.repeat(np.arange(len(counts)), counts)
    logprobs = nucleus_logits - logsumexp[tokens]
    if sampled_counts is None:
        sampled = sampled_logits - logsumexp[:, None]
        certain, drawn = _sort_out(tokens, nucleus_ids, logprobs, counts, sampled_ids, sampled)
        tokens = np.concatenate([tokens, np.nonzero(certain)[0]])
        nucleus_ids = np.concatenate([nucleus_ids, sampled_ids[certain]])
        logprobs = np.concatenate([logprobs, sampled[certain]])
    else:
        drawn = np.arange(sampled_ids.shape[1]) < np.asarray(sampled_counts)[:, None]
    exact_ranks, exact_counts, order = _gaps(ranks.ranks[nucleus_ids], tokens, len(counts))
    drawn_ranks, drawn_counts, _ = _gaps(ranks.ranks[sampled_ids[drawn]], np.nonzero(drawn)[0], len(counts))
    mass = np.bincount(tokens, np.exp(logprobs), minlength=len(counts))
    record = {
        "num_tokens": len(counts),
        "exact_counts": _bytes(exact_counts, "exact entries"),
        **_planes("exact_ranks", exact_ranks, ranks.num_bytes),
        **_planes("exact_values", encode_logprobs(logprobs[order]), 2),
        "sampled_counts": _bytes(drawn_counts, "samples"),
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
        raise ValueError("a compact record has ranks in place of ids: give the dataset's RankTable")
    size = int(np.sum(record["num_tokens"]))
    counts, num_drawn = (_whole(record[f"{name}_counts"], size, np.int64) for name in ("exact", "sampled"))
    codes = _join(record, "exact_values", 2, counts.sum())
    logits = LOGPROBS.take(codes, mode="clip")  # clip: unchecked, 2.5 times as fast
    mass = group_reduce(np.add, np.exp(logits), counts)
    rest = (_whole(record["rest"], size, np.float64) / REST_STEPS) ** 2
    scale = np.log(np.divide(1 - rest, mass, out=np.ones_like(rest), where=mass > 0))
    code = _join(record, "logsumexp", 3, size).astype(np.int32)
    logsumexp = ((code ^ 1 << 23) - (1 << 23)) / LOGSUMEXP_STEPS
    logits += np.repeat((logsumexp + scale).astype(np.float32), counts)
    is_drawn = np.arange(num_drawn.max(initial=0)) < num_drawn[:, None]
    sampled_ids = np.zeros(is_drawn.shape, np.int32)
    gaps = _join(record, "sampled_ranks", ranks.num_bytes, num_drawn.sum())
    sampled_ids[is_drawn] = ranks.ids.take(_undo_gaps(gaps, num_drawn), mode="clip")
    gaps = _join(record, "exact_ranks", ranks.num_bytes, counts.sum())
    weight = record.get("sample_weight")
    return Logits(
        ranks.ids.take(_undo_gaps(gaps, counts), mode="clip"),
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


def _bytes(counts: Array, name: str) -> bytes:
    if counts.max(initial=0) > 255:
        raise ValueError(f"token {counts.argmax()} has {counts.max()} {name}; a compact record holds at most 255")
    return counts.astype(np.uint8).tobytes()


def _planes(name: str, values: Array, num_bytes: int) -> dict[str, bytes]:
    return {f"{name}_{i}": (values >> 8 * i & 255).astype(np.uint8).tobytes() for i in range(num_bytes)}


def _join(record: Mapping[str, Any], name: str, num_bytes: int, size: int) -> Array:
    """Undo `_planes`: uint16, or uint32 for three bytes."""
    dtype = np.uint16 if num_bytes == 2 else np.uint32
    out = _whole(record[f"{name}_{num_bytes - 1}"], size, dtype)
    for i in reversed(range(num_bytes - 1)):
        out = out << dtype(8) | _whole(record[f"{name}_{i}"], size, np.uint8)
    return out


def _whole(column: Any, size: int, dtype: Any) -> Array:
    found = to_array(column, dtype)  # short: numpy, in the format of `datasets`, strips zeros off the end of bytes
    return found if len(found) == size else np.pad(found, (0, size - len(found)))
