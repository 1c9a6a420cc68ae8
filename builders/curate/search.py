"""Exact nearest rows of a query, over vectors that may be memory-mapped, and filters on the columns beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BLOCK_ROWS = 1 << 16  # of vectors per product: 100 MB at 384 dimensions
FILTER = re.compile(r"^\s*([\w.-]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*$", re.DOTALL)
COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def top_k(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    keep: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (int64 [Q, K]) and inner products (float32 [Q, K]) of the `k` greatest, best first.

    `vectors` [N, D] are read once, in blocks. K is `k`, or all rows where there are fewer. `keep` (bool [N]) leaves rows
    out; `lengths` [N] of the vectors make cosines of the products with queries of length 1, 0 for a vector of zeros. Of equal
    products, the lower position comes first.
    """
    queries = np.atleast_2d(np.asarray(queries, np.float32))
    positions: np.ndarray = np.empty((len(queries), 0), np.int64)
    scores: np.ndarray = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        there = np.arange(start, min(start + BLOCK_ROWS, len(vectors)))
        block = vectors[start : start + BLOCK_ROWS]
        if keep is not None:
            chosen = keep[there]
            if not chosen.any():
                continue
            there, block = there[chosen], block[chosen]
        found = queries @ np.asarray(block, np.float32).T
        if lengths is not None:
            found /= np.maximum(lengths[there], 1e-12)
        positions = np.concatenate([positions, np.broadcast_to(there, found.shape)], axis=1)
        positions, scores = _best(positions, np.concatenate([scores, found], axis=1), k)
    return positions, scores


def _best(positions: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if scores.shape[1] > 4 * k:  # a partition first: of many columns only few are sorted
        cut = np.partition(scores, -k, axis=1)[:, [-k]]
        # with all that equal the last one, of which the lowest position stays
        width = int((scores >= cut).sum(1).max())
        first = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        positions, scores = np.take_along_axis(positions, first, 1), np.take_along_axis(scores, first, 1)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)


@dataclass(frozen=True)
class Filter:
    """One condition on a column: `dataset_source=math`, `num_tokens>100`, `text~prime` (has these letters, in any case)."""

    column: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read `COLUMN OP VALUE`.

        Raises:
            ValueError: it has another form.
        """
        match = FILTER.match(text)
        if match is None:
            raise ValueError(f"--where {text!r}: write COLUMN=VALUE, with one of = != < <= > >= ~ (has these letters)")
        return cls(*match.groups())

    def mask(self, rows: pa.Table) -> np.ndarray:
        """Which rows fulfil it, bool [N]; a null never does.

        Raises:
            ValueError: no such column, or its values cannot be compared with this one.
        """
        if self.column not in rows.column_names:
            raise ValueError(f"--where {self.column}: no such column; there are {', '.join(rows.column_names)}")
        column = rows[self.column]
        try:
            if self.operator == "~":
                found = pc.match_substring(pc.cast(column, pa.string()), self.value, ignore_case=True)
            else:
                found = COMPARE[self.operator](column, pa.scalar(self.value).cast(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise ValueError(
                f"--where {self.column}{self.operator}{self.value}: {self.column} is {column.type}, and {self.value!r} is none"
            ) from None
        mask: np.ndarray = pc.fill_null(found, False).to_numpy()
        return mask


def kept_rows(rows: pa.Table, filters: Sequence[Filter]) -> np.ndarray | None:
    """Which rows fulfil all filters, bool [N]; None without a filter. Raises as `Filter.mask`."""
    if not filters:
        return None
    return np.logical_and.reduce([one.mask(rows) for one in filters])
