"""The plain way to a teacher block: a sort of the whole vocabulary in float64, threshold draws from its definition.

The torch side of the build must give blocks like these; here they are slow and clear, and what packing is tested with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Block:
    """What one block of T tokens gives, as `builders.packing.pack` takes it."""

    nucleus_ids: Array  # int32 [total]
    nucleus_logits: Array  # float32 [total]
    counts: Array  # uint8 [T]
    logsumexp: Array  # float64 [T]
    sampled_ids: Array  # int32 [T, N]
    sampled_logits: Array  # float32 [T, N]

    @staticmethod
    def join(blocks: Sequence[Block]) -> Block:
        """The blocks one after the other."""
        return Block(*(np.concatenate([getattr(b, field.name) for b in blocks]) for field in fields(Block)))


def select_block(
    logits: Array, rng: np.random.Generator, *, top_p: float = 0.98, top_k: int = 100, num_sampled: int = 16
) -> Block:
    """Select from float32 logits [T, V]: the nucleus in falling order, then `num_sampled` draws by the threshold rule."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp(wide - peak).sum(axis=1)) + peak[:, 0]
    probabilities = np.exp(wide - logsumexp[:, None])
    order = _falling(logits, min(top_k + num_sampled, logits.shape[1]))
    mass = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    counts = np.minimum((mass < top_p).sum(axis=1) + 1, min(top_k, logits.shape[1]))
    sampled = np.stack(
        [
            draw_tail(p, ids[:n], ids[n : n + num_sampled], num_sampled, rng.random())
            for p, ids, n in zip(probabilities, order, counts, strict=True)
        ]
    )
    listed = np.arange(order.shape[1]) < counts[:, None]
    return Block(
        order[listed].astype(np.int32),
        np.take_along_axis(logits, order, axis=1)[listed],
        counts.astype(np.uint8),
        logsumexp,
        sampled,
        np.take_along_axis(logits, sampled, axis=1),
    )


def _falling(logits: Array, k: int) -> Array:
    """The ids of the k largest logits of each row, falling; equal ones by id."""
    part = np.sort(np.argpartition(-logits, k - 1, axis=1)[:, :k], axis=1)
    return np.take_along_axis(
        part, np.argsort(-np.take_along_axis(logits, part, axis=1), axis=1, kind="stable"), axis=1
    )


def draw_tail(probabilities: Array, nucleus: Array, following: Array, num_sampled: int, uniform: float) -> Array:
    """Draw `num_sampled` ids by the threshold rule from one token's tail, in order of id; padded as `pack` asks.

    `following`: the ids after the nucleus, falling. `uniform` in [0, 1) decides everything.
    """
    tail = probabilities.copy()
    tail[nucleus] = 0
    certain: list[int] = []
    for candidate in following:  # the largest of what is left is certain while it outweighs its share
        rest = tail.sum()
        if len(certain) == num_sampled - 1 or tail[candidate] * (num_sampled - len(certain)) < rest or rest <= 0:
            break
        certain.append(int(candidate))
        tail[candidate] = 0
    cumulated = np.cumsum(tail)
    m = min(num_sampled - len(certain), int((tail > 0).sum()))
    points = (uniform + np.arange(m)) / max(m, 1) * cumulated[-1]
    drawn = np.minimum(np.searchsorted(cumulated, points, side="right"), np.flatnonzero(tail)[-1]) if m else []
    ids = np.unique(np.array([*certain, *drawn], dtype=np.int32))
    pads = np.repeat(ids[-1] if len(ids) else nucleus[0], num_sampled - len(ids))
    return np.concatenate([ids, pads]).astype(np.int32)
