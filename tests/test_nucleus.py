"""Nucleus, logsumexp and tail draws, against a full sort in float64: python -m pytest tests/test_nucleus.py.

Draws are checked without chance: their one uniform number is swept over a fine grid, so an inclusion probability is a share of
the grid, known to 2 / grid.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders.options import ConfigError
from extract.engines import nucleus
from extract.engines.draws import uniforms
from extract.engines.nucleus import Rule, Selector, top_ids

GRID = 4096
torch.set_num_threads(1)


def choose(logits, rule=None, u=None):
    """What the selector chooses, as numpy arrays; u defaults to 0.5 for every token."""
    logits = torch.as_tensor(logits)
    u = torch.full((len(logits),), 0.5, dtype=torch.float64) if u is None else torch.as_tensor(u)
    chosen = Selector(rule or Rule(), logits.shape[1])(logits, u)
    return chosen._replace(**{name: part.numpy() for name, part in chosen._asdict().items()})


def sweep(logits, rule=None):
    """What is chosen for one token [V] at each uniform number of the grid."""
    return choose(np.tile(logits, (GRID, 1)), rule, (np.arange(GRID) + 0.5) / GRID)


def truth(logits):
    """Ids by a full sort (logit falling, id rising), probabilities float64 [V] by id, logsumexp."""
    logits = np.asarray(logits, np.float64)
    lse = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    return np.lexsort((np.arange(len(logits)), -logits)), np.exp(logits - lse), lse


def threshold(tail, num):
    """tau with sum min(1, tail / tau) = num, by bisection; 0 where the tail has at most num ids."""
    if (tail > 0).sum() <= num:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, tail / middle).sum() > num else (low, middle)
    return high


def spread_logits(V, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(V) * scale).astype(np.float32)


def check_nucleus(logits, got, row, rule):
    order, p, lse = truth(logits)
    n = got.counts[row]
    assert got.logsumexp[row] == pytest.approx(lse, abs=1e-6)
    assert got.nucleus_ids[row, :n].tolist() == order[:n].tolist()
    assert got.nucleus_logits[row, :n].tolist() == np.asarray(logits)[order[:n]].tolist()
    mass = p[order].cumsum()
    assert n == rule.max_elements or mass[n - 1] >= rule.top_p - 1e-7 or p[order[n]] < 1e-30 * p.max()
    assert n == 1 or mass[n - 2] < rule.top_p + 1e-7
    return order, p, int(n)


def check_tail(logits, got, row, rule):
    """Sampled ids are distinct, rising, and hold all that are certain; where the tail runs out, the last one repeats."""
    order, p, n = check_nucleus(logits, got, row, rule)
    sampled, tail = got.sampled_ids[row], order[n:][p[order[n:]] >= nucleus.LEAST * p.max()]
    assert got.sampled_logits[row].tolist() == np.asarray(logits)[sampled].tolist()
    if len(tail) <= rule.num_sampled:
        last = max(tail) if len(tail) else order[0]
        assert sampled.tolist() == [*sorted(tail), *[last] * (rule.num_sampled - len(tail))]
        assert got.sampled_counts[row] == len(tail)
        return
    assert got.sampled_counts[row] == rule.num_sampled
    assert len(set(sampled)) == rule.num_sampled and set(sampled) <= set(tail)
    tau = threshold(p[tail], rule.num_sampled)
    certain = [i for i in tail if p[i] > tau * (1 + 1e-4)]
    assert set(certain) <= set(sampled)
    assert sampled.tolist() == sorted(sampled)


logit_rows = st.builds(
    lambda kind, V, seed: (kind, V, seed),
    st.sampled_from(["spread", "flat", "ties", "one", "masked", "steep", "bf16", "zeros"]),
    st.sampled_from([1, 2, 17, 63, 64, 65, 90, 116, 117, 128, 200, 1000, 1003]),
    st.integers(0, 10**6),
)


def row_of(kind, V, seed):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(V)
    if kind == "bf16":
        return torch.tensor(normal * 3).bfloat16().float().numpy()
    if kind == "masked":  # ids that a vocabulary does not use
        masked = np.where(rng.random(V) < 0.9, -np.inf, normal)
        masked[rng.integers(V)] = 1.0
        return masked.astype(np.float32)
    values = {
        "spread": normal * 3,
        "flat": np.zeros(V),
        "ties": rng.integers(-2, 2, V),
        "one": np.where(np.arange(V) == rng.integers(V), 200, 0),
        "steep": normal * 60,
        "zeros": rng.choice([-0.0, 0.0], V),
    }
    return values[kind].astype(np.float32)


@given(
    logit_rows,
    st.sampled_from([Rule(), Rule(0.5, 7, 3), Rule(1.0, 100, 16), Rule(0.98, 100, 1)]),
    st.floats(1e-9, 0.999999),
)
def test_choice_equals_that_of_a_full_sort(made, rule, u):
    logits = row_of(*made)
    check_tail(logits, choose(logits[None], rule, [u]), 0, rule)


@pytest.mark.parametrize("V", [64, 130, 5000])
def test_top_ids_break_ties_by_id(V):
    values = np.random.default_rng(0).integers(0, 3, (20, V)).astype(np.float32)
    padded = np.full((20, -(-V // 64) * 64), -np.inf, np.float32)
    padded[:, :V] = values
    got = top_ids(torch.tensor(padded), min(V, 116)).numpy()
    for row, ids in zip(values, got, strict=True):
        assert ids.tolist() == truth(row)[0][:116].tolist()


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
def test_each_tail_id_is_drawn_as_often_as_the_threshold_says(scale):
    """Inclusion is min(1, p / tau), so that weight p or tau has p for its mean: threshold sampling."""
    logits, rule = spread_logits(1000, scale=scale), Rule(0.9, 30, 8)
    got = sweep(logits, rule)
    _, p, n = check_nucleus(logits, got, 0, rule)
    tail = p.copy()
    tail[got.nucleus_ids[0, :n]] = 0
    tau = threshold(tail, rule.num_sampled)
    drawn = np.bincount(got.sampled_ids.ravel(), minlength=1000) / GRID
    assert abs(drawn - np.minimum(1, tail / tau)).max() < 2 / GRID


@pytest.mark.parametrize("tau", [1 / 64, 1 / 256])
def test_global_keeps_what_exceeds_tau_and_draws_the_rest_evenly(tau):
    logits, rule = spread_logits(3000, scale=2.0), Rule(select="global", tau=tau)
    got = sweep(logits, rule)
    order, p, _ = truth(logits)
    kept = int(got.counts[0])
    assert got.nucleus_ids[0, :kept].tolist() == [i for i in order if p[i] >= tau]
    rest = p.copy()
    rest[order[:kept]] = 0
    m = rest.sum() / tau
    assert set(got.sampled_counts) == {int(m), int(m) + 1} and got.sampled_counts.mean() == pytest.approx(
        m, abs=2 / GRID
    )
    is_held = np.arange(got.sampled_ids.shape[1]) < got.sampled_counts[:, None]
    drawn = np.bincount(got.sampled_ids[is_held], minlength=3000) / GRID
    assert abs(drawn - rest / tau).max() < 2 / GRID  # so each weighs tau
    assert ((np.diff(got.sampled_ids, axis=1) > 0) == is_held[:, 1:]).all()


def test_global_on_a_flat_and_on_a_certain_distribution():
    flat, certain = np.zeros(3000, np.float32), np.where(np.arange(3000) == 7, 300, 0).astype(np.float32)
    got = choose(np.stack([flat, certain]), Rule(select="global", tau=1 / 64))
    assert got.counts.tolist() == [1, 1] and got.nucleus_ids[:, 0].tolist() == [0, 7]
    assert got.sampled_counts.tolist() == [64, 0]


def test_choice_depends_on_the_token_alone(monkeypatch):
    """Neither on the rows beside it nor on where passes begin."""
    logits = np.stack([row_of(kind, 1003, 5) for kind in ("spread", "ties", "one", "flat", "masked", "steep")] * 4)
    u = np.random.default_rng(0).random(len(logits))
    whole = choose(logits, None, u)
    single = [choose(logits[i : i + 1], None, u[i : i + 1]) for i in range(len(logits))]
    monkeypatch.setattr(nucleus, "CPU_PASS_BYTES", 4 * 1024 * 5)
    few = choose(logits, None, u)
    for name in whole._fields:
        assert (getattr(few, name) == getattr(whole, name)).all()
        assert (np.concatenate([getattr(one, name) for one in single]) == getattr(whole, name)).all()


def test_bfloat16_logits_are_taken_at_their_value():
    logits = torch.tensor(spread_logits(500)).bfloat16()[None].repeat(3, 1)
    for a, b in zip(choose(logits), choose(logits.float()), strict=True):
        assert (a == b).all()


def test_no_tokens_and_no_samples():
    assert choose(np.empty((0, 200), np.float32)).sampled_ids.shape == (0, 16)
    got = choose(spread_logits(200)[None], Rule(num_sampled=0))
    assert got.sampled_ids.shape == (1, 0)
    check_nucleus(spread_logits(200), got, 0, Rule())


def test_not_a_number_shows_in_logsumexp():
    logits = np.stack([spread_logits(200)] * 2)
    logits[0, 3] = np.nan
    assert np.isfinite(choose(logits).logsumexp).tolist() == [False, True]


def test_uniform_numbers_depend_on_seed_row_and_position_alone():
    positions = np.array([3, 900, 4, 17])
    some = uniforms(1, 2, positions)
    assert (uniforms(1, 2, np.arange(1000))[positions] == some).all()
    assert not np.isin(some, uniforms(2, 1, np.arange(1000))).any()
    assert not np.isin(some, uniforms(1, 3, np.arange(1000))).any()
    assert uniforms(-1, 2**40, np.array([], int)).shape == (0,)


def test_uniform_numbers_are_even_and_apart():
    """Chi-square in 100 cells over 40 rows, and of pairs of neighbours; each limit is passed by chance once in 10^5 seeds."""
    u = np.stack([uniforms(7, row, np.arange(5000)) for row in range(40)])
    of_pairs = [(u[:, ::2], u[:, 1::2]), (u[::2], u[1::2])]  # the next position, the next row
    cells = [np.histogram(u, 100)[0], *(np.histogram2d(a.ravel(), b.ravel(), 10)[0] for a, b in of_pairs)]
    for observed in cells:
        expected = observed.sum() / 100
        observed = observed.ravel()
        assert ((observed - expected) ** 2 / expected).sum() < 170.8  # p = 1e-5 with 99 degrees of freedom


@pytest.mark.parametrize(
    "wrong", [{"top_p": 0}, {"max_elements": 256}, {"num_sampled": -1}, {"select": "all"}, {"tau": 0.0}], ids=str
)
def test_rule_refuses_what_the_format_cannot_hold(wrong):
    with pytest.raises(ConfigError, match=r"it must be|counts are stored"):
        Rule(**wrong)


def test_large_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="262,145"):
        Selector(Rule(), 2**18 + 1)
