"""Teacher logits in few bytes: what one conversation's distributions look like in a record, and how to get them back.

numpy alone; this one file reads the default encoding, beside `compact.py` and `rank_table.py` both.

A record holds T tokens. Each entry of a token belongs to the distribution that predicts it. Two lists of entries: the
*nucleus* (the smallest set of ids with mass >= top_p, at least 1, at most 255), token after token, `top_counts` for each;
and N ids *sampled* from outside it. Logits are raw, so p = exp(logit - logsumexp).

Default encoding, in this order:

    num_tokens                    T
    top_indices_low               low 16 bits of the nucleus ids
    top_indices_high              bits 16 and 17, four ids per byte: h0 | h1 << 2 | h2 << 4 | h3 << 6; 0 for what is left
    top_logits_quantized          round((logit - min) / (max - min) * 65535), 0 where max = min
    top_counts, top_min, top_max  one per token
    sampled_...                   the same of the T * N samples, but no counts
    logsumexp                     one per token
    input_ids, positions          the conversation's tokens, and which of them the T entries predict

Samples of a token stand in order of id and are distinct. A tail of fewer than N ids with mass is given whole; what is left
of the N slots is *padding*: it repeats the slot before it, or, where the tail is empty, the token's first nucleus id. Padding
weighs nothing. Where the record serves other temperatures than 1 (`logsumexp_t2` for T = 2), samples come from a mixture,
with replacement: there a repeat counts, and only the first nucleus id is padding. `tail_mass_t1`, `tail_mass_t2` then hold the
mass outside the nucleus at each temperature, which the stored logits would give to 1e-5 only, however small it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
STEPS = 65_535
TEMPERATURE_COLUMN = "logsumexp_t"
TAIL_COLUMN = "tail_mass_t"
COLUMNS = (
    *("num_tokens", "top_indices_low", "top_indices_high", "top_logits_quantized", "top_counts", "top_min", "top_max"),
    *("sampled_indices_low", "sampled_indices_high", "sampled_logits_quantized", "sampled_min", "sampled_max"),
    *("logsumexp", "input_ids", "positions"),
)
HIGH_BITS = (np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3).astype(np.uint8)


@dataclass(frozen=True)
class Logits:
    """Teacher distributions of T tokens: entries that are exact, and samples that stand for all the others."""

    ids: Array  # int32 [total], exact entries, token after token
    counts: Array  # int64 [T], how many of them each token has
    logits: Array  # float32 [total]
    logsumexp: Array  # float64 [T]
    sampled_ids: Array  # int32 [T, N]
    sampled_counts: Array  # int64 [T]: slots from here on are padding
    sampled_logits: Array | None = None  # float32 [T, N]; a compact record keeps none
    logsumexp_at: Mapping[float, Array] = field(default_factory=dict)  # T != 1 -> float64 [T], logsumexp(logits / T)
    tail_mass_at: Mapping[float, Array] = field(default_factory=dict)  # T -> float32 [T], where there are several
    sample_weight: float | None = None  # of every sample, where one threshold holds for the whole dataset
    input_ids: Array | None = None  # int32, the whole conversation
    positions: Array | None = None  # int32 [T]

    def logprobs(self, temperature: float = 1.0) -> Array:
        """Return the log probabilities of the exact entries, float32 [total]."""
        lse = np.repeat(self.logsumexp_for(temperature).astype(np.float32), self.counts)
        return (self.logits if temperature == 1 else self.logits / np.float32(temperature)) - lse

    @cached_property
    def is_sample(self) -> Array:
        """Which slots hold a sample and not padding, bool [T, N]."""
        return np.arange(self.sampled_ids.shape[1]) < self.sampled_counts[:, None]

    @cached_property
    def probabilities(self) -> Array:
        """Probabilities of the exact entries, float32 [total]."""
        return np.exp(self.logprobs())

    def rest(self, temperature: float = 1.0) -> Array:
        """Return the mass r outside the exact entries, float64 [T], at least 0 (rounding can make it -1e-5)."""
        if temperature in self.tail_mass_at:
            return self.tail_mass_at[temperature].astype(np.float64)
        p = self.probabilities if temperature == 1 else np.exp(self.logprobs(temperature))
        return np.clip(1 - group_reduce(np.add, p.astype(np.float64), self.counts), 0, None)

    def weights(self, temperature: float = 1.0) -> tuple[Array, Array]:
        """Return the target weights of entries and samples, float32 [total] and [T, N].

        For any f over ids, sum(w * f(ids)) is an unbiased estimate of the teacher's expectation of f; exact entries weigh
        their own probability. ValueError: the record cannot serve this temperature.
        """
        from builders.tail import sample_weights  # here and in pack: a copy of this file decodes without them

        p = self.probabilities if temperature == 1 else np.exp(self.logprobs(temperature))
        return p, sample_weights(self, temperature)

    def logsumexp_for(self, temperature: float) -> Array:
        """Return logsumexp(logits / temperature), float64 [T]. ValueError: the record has none for this temperature."""
        if temperature == 1:
            return self.logsumexp
        if temperature in self.logsumexp_at:
            return self.logsumexp_at[temperature]
        served = ",".join(f"{t:g}" for t in sorted({1.0, *self.logsumexp_at}))
        raise ValueError(
            f"temperature {temperature:g}: this record serves {served} alone; build one with --temperatures"
        )


def pack(
    nucleus_ids: Array,
    nucleus_logits: Array,
    counts: Array,
    logsumexp: Array,
    sampled_ids: Array,
    sampled_logits: Array,
    *,
    vocab_size: int,
    input_ids: Array | None = None,
    positions: Array | None = None,
    logsumexp_at: Mapping[float, Array] | None = None,
    tail_mass_at: Mapping[float, Array] | None = None,
) -> dict[str, Any]:
    """Pack T tokens into the columns of a record, in their order: numpy arrays and bytes.

    Takes what `Logits` says of `ids`, `logits`, `counts`, `logsumexp` and the samples [T, N] with padding. ValueError: a
    vocabulary over 262,144 ids, an id outside it, a logit that is not finite, shapes that do not agree.
    """
    from builders.block import check_block, check_finite

    counts = np.asarray(counts).astype(np.int64)
    check_block(nucleus_ids, nucleus_logits, counts, logsumexp, sampled_ids, sampled_logits, vocab_size)
    num_sampled = np.full(len(counts), sampled_ids.shape[1])
    record: dict[str, Any] = {"num_tokens": len(counts), "top_counts": counts.astype(np.uint8)}
    record |= _pack_entries("top", nucleus_ids, nucleus_logits, counts)
    record |= _pack_entries("sampled", sampled_ids.ravel(), sampled_logits.ravel(), num_sampled)
    record["logsumexp"] = np.asarray(logsumexp, dtype=np.float64)
    if input_ids is not None and positions is not None:
        record |= {"input_ids": np.asarray(input_ids, np.int32), "positions": np.asarray(positions, np.int32)}
    record = {name: record[name] for name in COLUMNS if name in record}
    more = {f"{TEMPERATURE_COLUMN}{t:g}": np.asarray(v, np.float64) for t, v in (logsumexp_at or {}).items()}
    more |= {f"{TAIL_COLUMN}{t:g}": np.asarray(v, np.float32) for t, v in (tail_mass_at or {}).items()}
    for name, values in more.items():
        check_finite(values, name, np.arange(len(counts)))
    return record | more


def _by_temperature(record: Mapping[str, Any], prefix: str, dtype: Any) -> dict[float, Array]:
    return {
        float(name.removeprefix(prefix)): to_array(record[name], dtype) for name in record if name.startswith(prefix)
    }


def _pack_entries(name: str, ids: Array, logits: Array, counts: Array) -> dict[str, Any]:
    from builders.steps import quantize, split_ids

    parts = ("indices_low", "indices_high", "logits_quantized", "min", "max")
    values = zip(parts, split_ids(ids) + quantize(logits, counts), strict=True)
    return {f"{name}_{part}": value for part, value in values}


def unpack(record: Mapping[str, Any], ranks: Any = None) -> Logits:
    """Return the distributions of one record, of either encoding: a row of a table, of `datasets`, or what `pack` gave.

    `ranks`: the dataset's `RankTable`, which a compact record needs.
    """
    if "top_indices_low" not in record:
        from builders.compact import unpack_compact

        return unpack_compact(record, ranks)
    counts = to_array(record["top_counts"], np.int64)
    ids = _ids(record, "top")
    logits = _dequantize(record, "top", counts)
    shape = (len(counts), -1 if len(counts) else 0)
    sampled_ids = _ids(record, "sampled").reshape(shape)
    logsumexp_at = _by_temperature(record, TEMPERATURE_COLUMN, np.float64)
    return Logits(
        ids,
        counts,
        logits,
        to_array(record["logsumexp"], np.float64),
        sampled_ids,
        count_samples(sampled_ids, ids, counts, repeats_count=bool(logsumexp_at)),
        _dequantize(record, "sampled", np.full(*sampled_ids.shape)).reshape(shape),
        logsumexp_at,
        _by_temperature(record, TAIL_COLUMN, np.float32),
        input_ids=to_array(record["input_ids"], np.int32) if "input_ids" in record else None,
        positions=to_array(record["positions"], np.int32) if "positions" in record else None,
    )


def record_bytes(num_entries: float, num_tokens: float, num_sampled: int) -> float:
    """Bytes of a default record before compression: 4.25 an entry, and 25 a token; without input_ids and positions."""
    return 4.25 * (num_entries + num_tokens * num_sampled) + num_tokens * (1 + 8 + 8 + 8)


def _ids(record: Mapping[str, Any], name: str) -> Array:
    low = to_array(record[f"{name}_indices_low"], np.uint16)
    return join_ids(low, to_array(record[f"{name}_indices_high"], np.uint8, -(-len(low) // 4)))


def join_ids(low: Array, high: Array) -> Array:
    """Join the low 16 bits of ids and bits 16 and 17, four ids per byte: int32 [len(low)]."""
    ids = low.astype(np.int32)
    if high.any():  # never in a vocabulary of up to 65,536 ids
        ids |= HIGH_BITS[high].ravel()[: len(ids)].astype(np.int32) << 16
    return ids


def _dequantize(record: Mapping[str, Any], name: str, counts: Array) -> Array:
    low, high = (to_array(record[f"{name}_{end}"], np.float32) for end in ("min", "max"))
    scale = ((high.astype(np.float64) - low) / STEPS).astype(np.float32)
    values = to_array(record[f"{name}_logits_quantized"], np.uint16).astype(np.float32)
    values *= np.repeat(scale, counts)
    values += np.repeat(low, counts)
    return values


def group_reduce(ufunc: np.ufunc, values: Array, counts: Array) -> Array:
    """Reduce each group of values; 0 for an empty group."""
    out = np.zeros(len(counts), values.dtype)
    held = counts > 0
    if held.any():  # reduceat takes the value at the start of an empty group, which is another group's
        out[held] = ufunc.reduceat(values, (np.cumsum(counts) - counts)[held])
    return out


def count_samples(sampled_ids: Array, ids: Array, counts: Array, *, repeats_count: bool = False) -> Array:
    """How many slots of each token are no padding: those that differ from the slot before them."""
    if not sampled_ids.size:
        return np.zeros(len(sampled_ids), np.int64)
    some = sampled_ids[:, 0] != ids[np.cumsum(counts) - counts]
    if repeats_count:
        return some * np.int64(sampled_ids.shape[1])
    return some * (1 + (sampled_ids[:, 1:] != sampled_ids[:, :-1]).sum(axis=1))


def to_array(value: Any, dtype: Any, length: int = 0) -> Array:
    """Return what a record holds in a column (numpy, list, bytes, or a pyarrow scalar) as an array.

    Bytes are filled up with zeros to `length`: `datasets` in the format "numpy" takes those at their end away.
    """
    if hasattr(value, "as_buffer"):  # pyarrow's binary
        value = value.as_buffer()
    elif type(value).__name__ == "ListScalar":
        value = value.values.to_numpy()
    if isinstance(value, bytes | memoryview) or type(value).__name__ == "Buffer":
        found = np.frombuffer(value, np.uint8).astype(dtype, copy=False)
        return found if len(found) >= length else np.pad(found, (0, length - len(found)))
    return np.asarray(value).astype(dtype, copy=False)
