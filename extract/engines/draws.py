"""Exact draws from what a nucleus leaves, with one uniform per token and no array of random numbers over the vocabulary.

Threshold sampling (VarOpt: Cohen, Duffield, Kaplan, Lund, Thorup 2009). Of a tail with probabilities p and mass r, N
ids are to stand for all. tau solves sum min(1, p / tau) = N. Ids with p >= tau are certain and weigh p; each of the
others is drawn with probability p / tau and weighs tau. So E w = p for every id, and the weights sum to r. It is the
best there is: an unbiased w that is 0 with probability 1 - pi has a variance of at least p² (1 / pi - 1); the sum of
these under sum pi <= N and pi <= 1 is least for pi = min(1, p / tau), and that is sum p (tau - p)+, which these draws
have.

A reader finds tau in the record: with the stored tail probabilities in falling order, the first j are certain, where j
is the least with p[j] < (r - p[0] - … - p[j-1]) / (N - j), which is tau; the others weigh tau. Where the tail has fewer
than N ids, all are stored and certain.

The drawn ones are systematic: points (k + U) / m through the cumulated sums of the tail in the order of ids, one U
for all. Ids follow token frequency, so log probabilities of a student are smooth along this order, and the variance
of a loss falls to a half or a third of that of independent points.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # ids per block of the two-level sums

# Axes: R tokens, K listed ids, S slots for sampled ids, B blocks of 64 ids


def uniforms(seed: int, row: int, positions: np.ndarray) -> np.ndarray:
    """Return one number in (0, 1) for each position, float64 [R]; it depends on seed, row and position alone.

    Philox is a counter: its n-th number is that of position n. 32 bits, so that (k + U) / m stays under 1 in float64, and the
    middle of each step: at 0 an id without mass worth naming would be drawn.
    """
    if not len(positions):
        return np.empty(0)
    stream = np.random.Philox(key=(row % 2**64) << 64 | seed % 2**64).random_raw(int(positions.max()) + 1)
    return ((stream[positions] >> np.uint64(32)) + 0.5) * 2.0**-32


def certain_of_tail(listed_RK: Tensor, suffix_RK: Tensor, start_R: Tensor, num_sampled: int) -> tuple[Tensor, Tensor]:
    """Return how many ids of the tail are stored for certain, int64 [R], and the mass of the others, float64 [R].

    listed_RK: probabilities in falling order, padded with zeros; suffix_RK: mass of the list from there on and of all that is
    not listed; start_R: where the tail begins in the list.
    """
    slots = torch.arange(num_sampled, device=start_R.device)
    places = start_R[:, None] + slots
    p, left = listed_RK.gather(1, places), suffix_RK.gather(1, places)
    is_certain = (p > 0) & (p >= left / (num_sampled - slots))
    certain = is_certain.long().cumprod(1).sum(1)
    return certain, suffix_RK.gather(1, (start_R + certain)[:, None])[:, 0]


def systematic(weights: Tensor, sums_RB: Tensor, points_RS: Tensor) -> Tensor:
    """Return int64 [R, S]: the ids under points, float64, of the tail's cumulated sums. An empty tail gives any id.

    weights: float32 [R, 64 B], zero outside the tail; sums_RB: float64 sums of its blocks of 64, up to a factor of each row.
    """
    rows, blocks = sums_RB.shape
    cumulated = sums_RB.cumsum(1)
    block = _under(cumulated, points_RS)
    before = torch.nn.functional.pad(cumulated, (1, 0)).gather(1, block)
    share = ((points_RS - before) / sums_RB.gather(1, block)).clamp(0, 1)
    places = (torch.arange(rows, device=block.device)[:, None] * blocks + block).flatten()
    inside = weights.view(-1, BLOCK).index_select(0, places).view(rows, -1, BLOCK).double().cumsum(-1)
    return block * BLOCK + _under(inside, share[..., None] * inside[..., -1:])[..., 0]


def _under(cumulated: Tensor, points: Tensor) -> Tensor:
    """The entry whose share of the sum holds each point; never one without mass, however the sums were rounded."""
    last = torch.searchsorted(cumulated, cumulated[..., -1:].contiguous())
    last = last.clamp(max=cumulated.shape[-1] - 1)  # a row that holds what is not a number
    return torch.minimum(torch.searchsorted(cumulated, points, right=True), last)
