"""How well a subset stands for the whole: how far a row is from it, and how much new its members tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from builders.curate.neighbors import search, unit

RADIUS_QUANTILE = 0.99
ROWS = 4096  # compared at a time
MAX_ROWS = 20_000  # of the whole that are asked how far the subset is; of it, whose mutual distances are summed: 2,000
MAX_MEMBERS = 2_000
DENSITY_K, DENSITY_POWER = 10, 0.5  # of NovelSum, as in its paper
MIN_DISTANCE = 1e-3  # duplicates would have an infinite density


@dataclass(frozen=True)
class Coverage:
    """Figures of a subset: the distance (1 - cosine) of rows to it, and its NovelSum.

    `radius` is the greatest distance of any row to its nearest member, `radius_99` the 99 % quantile, `mean` the mean.
    `spread` is NovelSum without its factor of density.
    """

    radius: float
    radius_99: float
    mean: float
    novelsum: float
    spread: float

    def __str__(self) -> str:
        return (
            f"coverage radius {self.radius:.3f}, 99 % of rows within {self.radius_99:.3f}, mean {self.mean:.3f}; "
            f"NovelSum {self.novelsum:.3f}, without density {self.spread:.3f}"
        )


def coverage(vectors: np.ndarray, taken: np.ndarray, *, seed: int = 0) -> Coverage:
    """Measure a subset (positions) of vectors [N, D]; beyond 20,000 rows and 2,000 members, by seeded samples of them."""
    draw = np.random.default_rng(seed)
    rows = np.arange(len(vectors))
    if len(rows) > MAX_ROWS:
        rows = np.sort(draw.choice(rows, MAX_ROWS, replace=False))
    members = vectors[taken]
    parts = [search(unit(vectors[rows[i : i + ROWS]]), members, 1)[0][:, 0] for i in range(0, len(rows), ROWS)]
    distances = np.clip(1 - np.concatenate(parts), 0, 2)
    novelties, densities = _novelties(vectors, taken, seed)
    return Coverage(
        radius=float(distances.max()),
        radius_99=float(np.quantile(distances, RADIUS_QUANTILE)),
        mean=float(distances.mean()),
        novelsum=float((novelties * densities).mean()),
        spread=float(novelties.mean()),
    )


def _novelties(vectors: np.ndarray, taken: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of each member in NovelSum (Yang et al., 2025, arXiv:2502.17184), as its authors' code averages it.

    The first is the mean of a member's distances (1 - cosine) to all members, itself included, weighted by 1 / rank, nearest
    first; the second the root of its density in the whole: 1 / the mean squared distance of unit vectors to its 10 nearest.
    Higher is more diverse; figures of other data, models or budgets do not compare.
    """
    draw = np.random.default_rng(seed)
    if len(taken) > MAX_MEMBERS:
        taken = np.sort(draw.choice(taken, MAX_MEMBERS, replace=False))
    members = unit(vectors[taken])
    cosines, _ = search(members, vectors, min(DENSITY_K + 1, len(vectors)))
    near = 2 * np.clip(1 - cosines[:, 1:], 0, 2).mean(axis=1)  # the first is the member itself
    densities = np.maximum(near, MIN_DISTANCE) ** -DENSITY_POWER
    distances = np.sort(np.clip(1 - members @ members.T, 0, 2), axis=1)
    ranks = 1 / np.arange(1, len(taken) + 1)
    return distances @ ranks / ranks.sum(), densities
