"""Draws from what a nucleus leaves that serve several temperatures at once.

At temperature T an id has p_T, in proportion to p^(1/T), and within the tail q_T = p_T / r_T, where r_T is the tail's mass at
T. N ids are drawn from the mixture m = mean over T of q_T, systematically in the order of ids: the points (k + U) / N through
its cumulated sums, one U for all. An id covers N m of them on average, and may cover several: repeats count. So the sum of
w_T f over the draws, with w_T = p_T / (N m), has the mean sum of N m w_T f = sum of p_T f over the tail: unbiased for any f
at every T. With K temperatures m is at least q_T / K, so w_T is at most K r_T / N: no weight explodes, as they do where draws
for T = 1 are weighed for T = 2 (p^(-1/2), without bound). That is importance sampling with the balance heuristic: Veach,
Guibas, "Optimally combining sampling techniques for Monte Carlo rendering", SIGGRAPH 1995.

A reader needs r_T to the same relative precision as w_T. Of the nucleus it knows p_T to 1e-5, which says nothing of a tail of
1e-6: so r_T is stored for each T. Where r_T is 0 in float32, T has no part in the mixture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from extract.engines.draws import BLOCK, systematic

# Axes: R tokens, P ids padded to blocks, K listed ids, S slots for sampled ids, B blocks of 64 ids


class Mixture(NamedTuple):
    """What is drawn for R tokens, and what weighs it."""

    ids: Tensor  # int64 [R, S], rising, with repeats; where no temperature has a tail, any id
    logsumexp_at: Tensor  # float64 [R, temperatures but 1], of logits / temperature
    tail_mass_at: Tensor  # float32 [R, temperatures]


def draw_mixture(
    x_RP: Tensor, ids_RK: Tensor, counts_R: Tensor, u_R: Tensor, temperatures: tuple[float, ...], slots: int
) -> Mixture:
    """Draw `slots` ids outside the first `counts_R` of the listed ones. x_RP: float32 logits; u_R: float64 in (0, 1)."""
    rows = len(x_RP)
    logits_RK = x_RP.gather(1, ids_RK)
    top_R1 = logits_RK[:, :1]
    is_kept = torch.arange(ids_RK.shape[1], device=x_RP.device) < counts_R[:, None]
    mixture_RP, sums_RB = torch.zeros_like(x_RP), u_R.new_zeros(rows, x_RP.shape[1] // BLOCK)
    logsumexps, masses = [], []
    for t in temperatures:
        p_RP = (x_RP - top_R1).div_(t).exp_()  # the likeliest id weighs 1
        p_RP.scatter_(1, ids_RK, torch.where(is_kept, 0, p_RP.gather(1, ids_RK)))
        tail_RB = p_RP.view(rows, -1, BLOCK).sum(-1).double()
        tail_R1 = tail_RB.sum(1, keepdim=True)
        kept_R1 = torch.where(is_kept, ((logits_RK.double() - top_R1) / t).exp(), 0).sum(1, keepdim=True)
        mass_R1 = (tail_R1 / (tail_R1 + kept_R1)).float()
        share_R1 = torch.where(mass_R1 > 0, 1 / tail_R1, 0)
        mixture_RP.addcmul_(p_RP, share_R1.float())
        sums_RB += tail_RB * share_R1
        masses.append(mass_R1)
        if t != 1:
            logsumexps.append(top_R1.double() / t + (tail_R1 + kept_R1).log())
    points_RS = (torch.arange(slots, device=x_RP.device) + u_R[:, None]) / max(1, slots)
    ids_RS = systematic(mixture_RP, sums_RB, points_RS * sums_RB.sum(1, keepdim=True))
    return Mixture(ids_RS, torch.cat(logsumexps, 1), torch.cat(masses, 1))
