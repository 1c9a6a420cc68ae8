"""How two teachers differ on the same tokens: two logits datasets over the same rows."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from builders.histogram import QUANTILES, Histogram, quantile_name
from builders.logits_stats import token_values
from builders.packing import Array, Logits, group_reduce

FLOOR = 1e-6  # of the mass that two nuclei do not share: what quantised logits leave of 1 is off by as much
ID_BITS = 18
LEAST_LOG_KL = -9
KEPT = 100  # rows and tokens that differ most, from which a few are shown
FORMULA = "over the ids that are exact in both, and all others as one id; never more than the true KL"

Record = tuple[int, Logits]  # index and distributions


@dataclass(frozen=True)
class TokenPair:
    """M tokens that both teachers predicted from the same text; each array [M]."""

    positions: Array
    kl: Array  # nats, float64
    same_top: Array  # bool: the likeliest id is the same
    size: tuple[Array, Array]  # exact entries
    entropy: tuple[Array, Array]  # nats
    num_unmatched: int  # captured by one alone, or after other text


def compare(a: Logits, b: Logits) -> TokenPair:
    """Compare two records of one row, token by token. ValueError: one has no input_ids and positions.

    Tokens match at the same position after the same ids, their own with them. KL(A || B) of a token is
    sum over I of p log(p / q) + (1 - P) log((1 - P) / (1 - Q)), where I are the ids that are exact in both, and P and Q
    their mass. By the log-sum inequality it is at most KL of the whole distributions, as it sees all other ids as one.
    """
    tokens = [tokens_of(record) for record in (a, b)]
    places = [record_positions(record)[t] for record, t in zip((a, b), tokens, strict=True)]
    keys = [place.astype(np.int64) << ID_BITS | r.ids for place, r in zip(places, (a, b), strict=True)]
    _, in_a, in_b = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    rows_a, rows_b = matched(a, b)
    p, q = a.probabilities[in_a].astype(np.float64), b.probabilities[in_b].astype(np.float64)
    shared = np.bincount(tokens[0][in_a], p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-30)), len(a.counts))[
        rows_a
    ]
    rest_a = np.maximum(1 - np.bincount(tokens[0][in_a], p, len(a.counts)), FLOOR)[rows_a]
    rest_b = np.maximum(1 - np.bincount(tokens[1][in_b], q, len(b.counts)), FLOOR)[rows_b]
    values = token_values(a, None), token_values(b, None)
    return TokenPair(
        record_positions(a)[rows_a],
        np.maximum(shared + rest_a * np.log(rest_a / rest_b), 0),
        top_ids(a)[rows_a] == top_ids(b)[rows_b],
        (a.counts[rows_a], b.counts[rows_b]),
        (values[0].entropy[rows_a], values[1].entropy[rows_b]),
        len(a.counts) + len(b.counts) - 2 * len(rows_a),
    )


def matched(a: Logits, b: Logits) -> tuple[Array, Array]:
    """Which tokens of two records are at the same position after the same ids: their numbers in each."""
    assert a.input_ids is not None and b.input_ids is not None
    length = min(len(a.input_ids), len(b.input_ids))
    differs = a.input_ids[:length] != b.input_ids[:length]
    same = int(differs.argmax()) if differs.any() else length
    positions, rows_a, rows_b = np.intersect1d(
        record_positions(a), record_positions(b), assume_unique=True, return_indices=True
    )
    return rows_a[positions < same], rows_b[positions < same]


def record_positions(record: Logits) -> Array:
    """Return the positions. ValueError: the record has none."""
    if record.positions is None or record.input_ids is None:
        raise ValueError("a record has no input_ids and positions: they say which tokens two datasets share")
    return record.positions


def tokens_of(record: Logits) -> Array:
    """The token of each exact entry, int64 [total]."""
    return np.repeat(np.arange(len(record.counts)), record.counts)


def top_ids(record: Logits) -> Array:
    """The likeliest id of each token, int64 [T]; -1 where none is exact, the first of several."""
    tokens = tokens_of(record)
    hits = np.flatnonzero(record.logits == group_reduce(np.maximum, record.logits, record.counts)[tokens])
    tokens, first = np.unique(tokens[hits], return_index=True)
    out = np.full(len(record.counts), -1, np.int64)
    out[tokens] = record.ids[hits[first]]
    return out


def joined(a: Iterator[Record], b: Iterator[Record]) -> Iterator[tuple[int, Logits | None, Logits | None]]:
    """Pair records of the same index; both come in its order. None where one has no such row."""
    one, two = next(a, None), next(b, None)
    while one is not None or two is not None:
        if two is None or (one is not None and one[0] < two[0]):
            assert one is not None
            yield one[0], one[1], None
            one = next(a, None)
        elif one is None or two[0] < one[0]:
            yield two[0], None, two[1]
            two = next(b, None)
        else:
            yield one[0], one[1], two[1]
            one, two = next(a, None), next(b, None)


class Comparison:
    """Figures of two datasets, gathered row by row."""

    def __init__(self) -> None:
        self.num_rows, self.num_only = 0, [0, 0]
        self.num_unmatched = self.num_same_top = 0
        self.total_kl = 0.0
        self.log_kl = Histogram("log10 KL(A‖B)", "", LEAST_LOG_KL, 2, 1_100)
        self.sizes, self.entropies = np.zeros(3), np.zeros(3)  # sums of A, B, |A - B|
        self.rows: list[tuple[float, int]] = []  # heaps: mean KL and index
        self.tokens: list[tuple[float, int, int]] = []  # KL, index, position

    def add(self, index: int, a: Logits | None, b: Logits | None) -> None:
        """Count a row of one or both."""
        if a is None or b is None:
            self.num_only[0 if b is None else 1] += 1
            return
        pair = compare(a, b)
        self.num_rows += 1
        self.num_unmatched += pair.num_unmatched
        if not len(pair.kl):
            return
        self.total_kl += float(pair.kl.sum())
        self.log_kl.add(np.log10(np.maximum(pair.kl, 10.0**LEAST_LOG_KL)))
        self.num_same_top += int(pair.same_top.sum())
        for sums, (one, two) in ((self.sizes, pair.size), (self.entropies, pair.entropy)):
            sums += one.sum(), two.sum(), np.abs(one - two).sum()
        if pair.kl.any():
            push(self.rows, (float(pair.kl.mean()), index))
        for place in np.argsort(-pair.kl)[: min(KEPT, np.count_nonzero(pair.kl))]:
            push(self.tokens, (float(pair.kl[place]), index, int(pair.positions[place])))

    @property
    def kl_quantiles(self) -> dict[str, float]:
        """Quantiles of KL, to 2 %; 1e-9 stands for all that is less."""
        return {quantile_name(q): float(10 ** self.log_kl.quantile(q)) for q in QUANTILES}

    def facts(self) -> dict[str, Any]:
        """All figures."""
        tokens = max(1, self.log_kl.num_values)
        names = ("a", "b", "absolute_difference")
        return {
            "rows": self.num_rows,
            "rows_only_in_a": self.num_only[0],
            "rows_only_in_b": self.num_only[1],
            "tokens": self.log_kl.num_values,
            "tokens_unmatched": self.num_unmatched,
            "same_top": self.num_same_top / tokens,
            "nucleus_size": dict(zip(names, (self.sizes / tokens).tolist(), strict=True)),
            "entropy": dict(zip(names, (self.entropies / tokens).tolist(), strict=True)),
            "kl": {"mean": self.total_kl / tokens, **self.kl_quantiles, "formula": FORMULA},
            "rows_that_differ_most": [{"index": index, "kl": kl} for kl, index in sorted(self.rows, reverse=True)],
            "tokens_that_differ_most": [
                {"index": index, "position": position, "kl": kl}
                for kl, index, position in sorted(self.tokens, reverse=True)
            ],
        }


def push(heap: list[Any], item: Any) -> None:
    """Keep the greatest KEPT items."""
    if len(heap) < KEPT:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)
