"""Estimates of teacher expectations from nucleus and tail draws: the right weights, and the wrong ones people use.

Each takes a `Teacher` and what was chosen or drawn for its T tokens, and gives (ids, weights) [T, n] of the sampled part, or
of all where it has no nucleus. A cross-entropy is then -sum w log s over these, and exactly over the nucleus.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from extract.engines.nucleus import Rule, Selector


@dataclass
class Teacher:
    """Logits [T, V], float32, and students' log probabilities [T, V] by name."""

    logits: torch.Tensor
    students: dict

    @cached_property
    def p(self):
        """float64 [T, V]."""
        return torch.softmax(self.logits.double(), -1).numpy()

    @cached_property
    def cumulated(self):
        return torch.from_numpy(self.p.cumsum(1))

    @cached_property
    def order(self):
        """The 128 likeliest ids."""
        return self.logits.topk(min(128, self.logits.shape[1])).indices.numpy()

    @cached_property
    def tail(self):
        """Probabilities outside the nucleus, float64 [T, V], cumulated."""
        chosen, p = self.choose(np.full(len(self.p), 0.5)), self.p.copy()
        held = np.arange(chosen.nucleus_ids.shape[1]) < chosen.counts[:, None]
        np.put_along_axis(p, np.where(held, chosen.nucleus_ids, chosen.nucleus_ids[:, :1]), 0, 1)
        return torch.from_numpy(p.cumsum(1))

    def cross_entropy(self, name):
        """Exact, [T]."""
        return -(self.p * self.students[name].double().numpy()).sum(1)

    def estimate(self, name, ids, weights):
        """Cross-entropy from weighted ids, [T]."""
        log_s = torch.gather(self.students[name], 1, torch.from_numpy(ids.astype(np.int64))).double().numpy()
        return -(weights * log_s).sum(1)

    def choose(self, u, rule=None):
        """What the code under test keeps of each token, as numpy arrays."""
        chosen = Selector(rule or Rule(), self.logits.shape[1])(self.logits, torch.from_numpy(u))
        return chosen._replace(**{key: value.numpy() for key, value in chosen._asdict().items()})


def parts(chosen):
    """(ids, p) of the nucleus with p 0 behind it, p of the samples, mass of the tail: from what is stored alone."""
    held = np.arange(chosen.nucleus_ids.shape[1]) < chosen.counts[:, None]
    lse = chosen.logsumexp[:, None]
    p = np.where(held, np.exp(chosen.nucleus_logits - lse), 0)
    return chosen.nucleus_ids, p, np.exp(chosen.sampled_logits - lse), np.maximum(1 - p.sum(1), 0)


def threshold_weights(p, rest, counts):
    """What the samples of each token weigh, from its definition: one token at a time."""
    weights = np.zeros_like(p)
    for w, row, left, n in zip(weights, p, rest, counts, strict=True):
        falling = np.argsort(-row[:n], kind="stable")
        for done, i in enumerate(falling):
            if row[i] < left / (n - done) and not n < len(row):  # tau; a tail that did not fill the slots is whole
                w[falling[done:]] = left / (n - done)
                break
            w[i] = row[i]
            left = max(left - row[i], 0)
    return weights


def with_nucleus(chosen, weigh):
    """The nucleus at its probabilities and the samples at `weigh(p of samples, mass of the tail, counts)`."""
    ids, p, p_sampled, rest = parts(chosen)
    return np.hstack([ids, chosen.sampled_ids]), np.hstack([p, weigh(p_sampled, rest, chosen.sampled_counts)])


def right(chosen):
    return with_nucleus(chosen, threshold_weights)


def of_tau(chosen, tau):
    """Global threshold: each sample weighs tau."""
    slots = np.arange(chosen.sampled_ids.shape[1])
    return with_nucleus(chosen, lambda p, rest, counts: np.where(slots < counts[:, None], tau, 0.0))


def equal(chosen):
    """Wrong: r / N each, as for draws with replacement."""
    return with_nucleus(chosen, lambda p, rest, counts: np.repeat(rest[:, None] / p.shape[1], p.shape[1], 1))


def scaled(chosen):
    """Wrong: own probability, scaled to the mass of the tail; the likeliest shortcut."""
    return with_nucleus(chosen, lambda p, rest, counts: p * (rest / p.sum(1))[:, None])


def renormalised(chosen):
    """Wrong: everything kept, at its probability, scaled to 1."""
    ids, weights = with_nucleus(chosen, lambda p, rest, counts: p)
    return ids, weights / weights.sum(1, keepdims=True)


def nucleus_alone(chosen):
    """Wrong: the nucleus, scaled to 1."""
    ids, p, _, _ = parts(chosen)
    return ids, p / p.sum(1, keepdims=True)


def top(teacher, k):
    """Wrong: the k likeliest, scaled to 1."""
    ids = teacher.order[:, :k]
    p = np.take_along_axis(teacher.p, ids, 1)
    return ids, p / p.sum(1, keepdims=True)


def with_replacement(teacher, draws, rng):
    """RS-KD: draws from p, each of weight 1 / draws; unbiased, with a variance."""
    points = torch.from_numpy(rng.random((len(teacher.p), draws))) * teacher.cumulated[:, -1:]
    ids = torch.searchsorted(teacher.cumulated, points, right=True).numpy()
    return ids, np.full(ids.shape, 1 / draws)


def repeats_dropped(teacher, draws, rng):
    """Wrong: the distinct ones of these draws, each of weight 1 / their number."""
    ids = np.sort(with_replacement(teacher, draws, rng)[0], axis=1)
    is_new = np.diff(ids, axis=1, prepend=-1) > 0
    return ids, is_new / is_new.sum(1, keepdims=True)


def tail_repeats_dropped(teacher, chosen, rng, draws=16):
    """Wrong: the distinct ones of 16 draws from the tail, each an equal share of its mass."""
    ids, is_new = _distinct(teacher.tail, draws, rng)
    return _beside_nucleus(chosen, ids, lambda p, rest: is_new * (rest / is_new.sum(1))[:, None], teacher)


def gumbel_equal(teacher, chosen, rng, draws=16):
    """Wrong: Gumbel top-16 of the tail (drawn without replacement), each an equal share of its mass."""
    ids, is_held = _gumbel(teacher, draws, rng)
    return _beside_nucleus(chosen, ids, lambda p, rest: is_held * (rest / is_held.sum(1))[:, None], teacher)


def gumbel_scaled(teacher, chosen, rng, draws=16):
    """Wrong: Gumbel top-16 of the tail at their own probability, scaled to its mass."""
    ids, is_held = _gumbel(teacher, draws, rng)

    def weigh(p, rest):
        p = p * is_held
        return p * (rest / np.maximum(p.sum(1), 1e-300))[:, None]

    return _beside_nucleus(chosen, ids, weigh, teacher)


def _beside_nucleus(chosen, ids, weigh, teacher):
    nucleus, p, _, rest = parts(chosen)
    return np.hstack([nucleus, ids]), np.hstack([p, weigh(np.take_along_axis(teacher.p, ids, 1), rest)])


def _distinct(cumulated, draws, rng):
    """Draws with replacement [T, draws], and which of them are the first of their id."""
    points = torch.from_numpy(rng.random((len(cumulated), draws))) * cumulated[:, -1:]
    ids = torch.searchsorted(cumulated, points, right=True).clamp(max=cumulated.shape[1] - 1).numpy()
    order = np.argsort(ids, axis=1, kind="stable")
    is_new = np.empty(ids.shape, bool)
    np.put_along_axis(is_new, order, np.diff(np.take_along_axis(ids, order, 1), axis=1, prepend=-1) > 0, 1)
    return ids, is_new


def _gumbel(teacher, draws, rng, tries=64):
    """The first 16 distinct ids of a run of draws with replacement: the law of Gumbel top-16 (Plackett and Luce)."""
    ids, is_new = _distinct(teacher.tail, tries, rng)
    first = np.argsort(~is_new, axis=1, kind="stable")[:, :draws]
    return np.take_along_axis(ids, first, 1), np.take_along_axis(is_new, first, 1)


def least_variance(teacher, chosen):
    """The least sum of variances of unbiased weights with N ids of the tail, sum p (tau - p)+, [T]; and sum p², [T]."""
    tail = teacher.p.copy()
    ids, p, _, _ = parts(chosen)
    np.put_along_axis(tail, np.where(p > 0, ids, ids[:, :1]), 0, 1)
    tau = np.zeros(len(tail))
    for i, (row, n) in enumerate(zip(tail, chosen.sampled_counts, strict=True)):
        falling = -np.sort(-row)[: n + 1]
        left = row.sum() - np.concatenate([[0], falling[:n].cumsum()])
        taus = left[:n] / (n - np.arange(n))
        first = np.flatnonzero(falling[:n] < taus)
        tau[i] = taus[first[0]] if len(first) else 0
    return (tail * np.maximum(tau[:, None] - tail, 0)).sum(1), (tail**2).sum(1)
