"""The weights of samples are unbiased, by enumeration of every draw there is. python -m pytest tests/test_tail.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.packing import Logits, pack, unpack
from builders.tail import tail_thresholds, tail_weights
from tests.draws import draw_tail

UNIFORMS = 1000


def expected_weights(tail, num_sampled):
    """Mean over the uniform u in [0, 1) of the weight of each id: what estimates of expectations rest on."""
    p = np.concatenate([[1 - sum(tail)], tail])
    following = np.argsort(-p, kind="stable")[1:] if p[0] > max(tail) else None
    if following is None:
        p = np.concatenate([[2.0], tail])  # the nucleus comes first, whatever its mass
        following = np.argsort(-p, kind="stable")[1:]
    total = np.zeros(len(p))
    for uniform in (np.arange(UNIFORMS) + 0.5) / UNIFORMS:
        ids = draw_tail(p, np.array([0]), following[:num_sampled], num_sampled, uniform)
        count = len(np.unique(ids[ids > 0]))
        weights = tail_weights(p[ids][None], np.array([sum(tail)]), np.array([count]))[0]
        np.add.at(total, ids, weights)
        assert weights.sum() == pytest.approx(sum(tail), rel=1e-5)
    return total[1:] / UNIFORMS


@settings(max_examples=15)
@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=9), st.integers(1, 5), st.floats(0.01, 0.5))
def test_threshold_weights_are_unbiased(masses, num_sampled, rest):
    tail = np.array(masses) / sum(masses) * rest
    # the mean over a grid of u differs from the integral by at most one grid step of the largest weight
    np.testing.assert_allclose(expected_weights(tail, num_sampled), tail, atol=rest / UNIFORMS * 2)


def test_threshold_weights_have_the_least_variance_there_is():
    """sum Var w = sum p (tau - p) over p < tau; shares alike (samples by p, with replacement) cost more."""
    tail = np.array([0.05, 0.02, 0.01, 0.008, 0.006, 0.004, 0.002])
    p = np.concatenate([[0.9], tail])
    squares = np.zeros(len(p))
    for uniform in (np.arange(UNIFORMS) + 0.5) / UNIFORMS:
        ids = draw_tail(p, np.array([0]), np.arange(1, 5), 4, uniform)
        w = np.zeros(len(p))
        w[ids] = tail_weights(p[ids][None], np.array([tail.sum()]), np.array([4]))[0]
        squares += (w - p) ** 2
    tau = tail_thresholds(np.array([[0.05, 0.02, 0.01, 0.008]]), np.array([0.1]), np.array([4]))[0]
    assert tau == pytest.approx(0.015)  # 0.05 and 0.02 are certain; (0.1 - 0.07) / 2
    least = sum(q * (tau - q) for q in tail if q < tau)
    assert squares[1:].sum() / UNIFORMS == pytest.approx(least, rel=0.02)
    with_replacement = (tail.sum() ** 2 - (tail**2).sum()) / 4
    assert least < 0.3 * with_replacement


@pytest.mark.parametrize("wrong", [lambda p, r: np.full_like(p, r / len(p)), lambda p, r: p / p.sum() * r])
def test_the_likely_wrong_weights_would_be_seen(wrong):
    """r / N each, and own p scaled to r: both sum to r, both are biased."""
    tail = np.array([0.05, 0.02, 0.01, 0.008, 0.006, 0.004, 0.002])
    p = np.concatenate([[0.9], tail])
    total = np.zeros(len(p))
    for uniform in (np.arange(UNIFORMS) + 0.5) / UNIFORMS:
        ids = draw_tail(p, np.array([0]), np.arange(1, 5), 4, uniform)
        np.add.at(total, ids, wrong(p[ids], tail.sum()))
    assert np.abs(total[1:] / UNIFORMS - tail).max() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_mixture_samples_are_unbiased_at_every_served_temperature(temperature):
    rng = np.random.default_rng(1)
    logits = np.sort(rng.normal(size=12) * 2)[::-1].astype(np.float32)
    lse = {t: np.log(np.exp(logits / t).sum()) for t in (1.0, 2.0)}
    tails = {t: np.exp(logits / t - lse[t])[3:] for t in lse}
    mixture = sum(tail / tail.sum() for tail in tails.values()) / 2
    cumulated = np.cumsum(mixture)
    total = np.zeros(12)
    for uniform in (np.arange(UNIFORMS) + 0.5) / UNIFORMS:
        ids = 3 + np.minimum(np.searchsorted(cumulated, (uniform + np.arange(4)) / 4, side="right"), 8)
        record = pack(
            np.arange(3, dtype=np.int32), logits[:3], np.array([3]), np.array([lse[1.0]]), ids[None].astype(np.int32),
            logits[ids][None], vocab_size=12, logsumexp_at={2.0: np.array([lse[2.0]])},
        )  # fmt: skip
        exact, sampled = unpack(record).weights(temperature)
        total[:3] += exact
        np.add.at(total, ids, sampled[0])
    np.testing.assert_allclose(total / UNIFORMS, np.exp(logits / temperature - lse[temperature]), atol=1e-3)


def test_a_rest_that_rounding_makes_negative_is_zero():
    logits = Logits(
        np.array([0]), np.array([1]), np.array([5.00001], np.float32), np.array([5.0]), np.array([[1]]), np.array([1]),
        np.array([[-20.0]], np.float32),
    )  # fmt: skip
    assert logits.rest().tolist() == [0.0]
    assert 0 <= logits.weights()[1][0, 0] < 1e-10
