"""The best k of what each row was compared with, kept while blocks of comparisons come in."""

from __future__ import annotations

import numpy as np


class TopK:
    """Of N rows the k most similar others so far: `positions` int32 [N, k] (-1: none yet), `similarities` float32 [N, k].

    Best first. A row is never its own neighbour; of equal similarities, which ones are kept is not said.
    """

    def __init__(self, num_rows: int, k: int) -> None:
        self.k = k
        self.positions = np.full((num_rows, k), -1, np.int32)
        self.similarities = np.full((num_rows, k), -np.inf, np.float32)

    def offer(self, rows: np.ndarray, positions: np.ndarray, similarities: np.ndarray) -> None:
        """Take in candidates [B, C] of the given rows (int [B]); none of them may have been offered to its row before."""
        similarities = np.where(positions == rows[:, None], np.float32(-np.inf), similarities)
        worst = self.similarities[rows, -1]
        better = np.flatnonzero(similarities.max(axis=1, initial=-np.inf) > worst)  # late blocks change few rows
        rows = rows[better]
        all_similarities = np.hstack([self.similarities[rows], similarities[better]])
        all_positions = np.hstack([self.positions[rows], positions[better].astype(np.int32)])
        order = np.argsort(-all_similarities, axis=1, kind="stable")[:, : self.k]
        self.similarities[rows] = np.take_along_axis(all_similarities, order, axis=1)
        self.positions[rows] = np.take_along_axis(all_positions, order, axis=1)
