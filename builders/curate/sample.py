"""Which rows to take: by weight without replacement, at random, in quotas per source, or for coverage: sorted positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from builders.curate.neighbors import unit


def by_weight(weights: np.ndarray, budget: int, *, seed: int = 0) -> np.ndarray:
    """Draw rows one after the other with probabilities proportional to weights [N] among those left.

    In one pass: the largest log(weight) + Gumbel noise (Efraimidis & Spirakis, 2006, doi:10.1016/j.ipl.2005.11.003, as top-k).
    Rows of weight 0 are never drawn.

    Raises:
        ValueError: more rows are asked for than have a weight.
    """
    _check_budget(budget, int(np.count_nonzero(weights)))
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + np.random.default_rng(seed).gumbel(size=len(weights))
    return np.sort(np.argpartition(-keys, budget - 1)[:budget])


def uniform(num_rows: int, budget: int, *, seed: int = 0) -> np.ndarray:
    """Draw rows of which all are equally likely. ValueError: more than there are."""
    _check_budget(budget, num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, budget, replace=False))


def by_quota(sources: Sequence[str], weights: np.ndarray, budget: int, *, seed: int = 0) -> np.ndarray:
    """Draw as many rows of each source as of every other, or all that it has; by weight within a source.

    Raises:
        ValueError: more rows are asked for than there are.
    """
    _check_budget(budget, len(weights))
    names, which = np.unique(np.asarray(sources, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(which)
    quotas = np.zeros(len(names), np.int64)
    left = budget
    # what small sources lack goes to the larger ones
    for turn, source in enumerate(np.argsort(counts, kind="stable")):
        quotas[source] = min(counts[source], -(-left // (len(names) - turn)))
        left -= int(quotas[source])
    drawn = []
    for source, quota in enumerate(quotas):
        rows = np.flatnonzero(which == source)
        if quota:
            drawn.append(rows[by_weight(np.maximum(weights[rows], 1e-300), int(quota), seed=seed + source)])
    return np.sort(np.concatenate(drawn))


def k_center(vectors: np.ndarray, budget: int, *, seed: int = 0) -> np.ndarray:
    """Take, one after the other, the row that is farthest from all taken so far, the first at random.

    The coverage radius is at most twice the best one (Gonzalez, 1985, doi:10.1016/0304-3975(85)90224-5). It takes
    budget * N * D operations, and follows outliers: it is meant for small budgets and cleaned data.

    Raises:
        ValueError: more rows are asked for than there are.
    """
    num = len(vectors)
    _check_budget(budget, num)
    rows = unit(vectors)
    taken = np.empty(budget, np.int64)
    taken[0] = np.random.default_rng(seed).integers(num)
    nearest = np.full(num, -np.inf, np.float32)
    for number in range(budget):
        np.maximum(nearest, rows @ rows[taken[number]], out=nearest)
        nearest[taken[number]] = np.inf
        if number + 1 < budget:
            taken[number + 1] = int(nearest.argmin())
    return np.sort(taken)


def _check_budget(budget: int, num_rows: int) -> None:
    if not 0 < budget <= num_rows:
        raise ValueError(f"the budget is {budget:,}: there are {num_rows:,} rows to take from")
