"""Vectors that come from outside torch: the last steps on them, as pooling.finish does them."""

from __future__ import annotations

import numpy as np


def finish(
    vectors_BD: np.ndarray, dimensions: int | None, normalize: bool | None
) -> np.ndarray:  # axes: B texts, D dimensions
    """Keep the first dimensions (Matryoshka), then scale to length 1. Returns float32 [B, D], contiguous."""
    vectors = np.ascontiguousarray(vectors_BD[:, :dimensions], np.float32)
    if normalize is False:
        return vectors
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
