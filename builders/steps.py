"""Ids and logits as the columns of a default record: what `builders.packing.unpack` undoes."""

from __future__ import annotations

import numpy as np

from builders.packing import STEPS, Array, group_reduce


def split_ids(ids: Array) -> tuple[Array, bytes]:
    """Split ids under 262,144 into their low 16 bits, and bits 16 and 17 of four ids per byte."""
    high = np.zeros(-(-len(ids) // 4) * 4, np.uint8)
    high[: len(ids)] = ids >> 16
    four = high.reshape(-1, 4)
    return ids.astype(np.uint16), (four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6).tobytes()


def quantize(values: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Return values [total] as uint16 between the least and the greatest of each group, and those, float32 [groups]."""
    values = np.asarray(values, dtype=np.float32)
    low, high = group_reduce(np.minimum, values, counts), group_reduce(np.maximum, values, counts)
    span = high.astype(np.float64) - low
    scale = np.divide(STEPS, span, out=np.zeros_like(span), where=span > 0)
    steps = (values.astype(np.float64) - np.repeat(low, counts)) * np.repeat(scale, counts)
    return np.rint(steps).astype(np.uint16), low, high
