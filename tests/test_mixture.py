"""Draws for several temperatures, from the selector to the weights: python -m pytest tests/test_mixture.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.packing import pack, unpack
from extract.engines.nucleus import Rule, Selector

torch.set_num_threads(1)
TOKENS, V, GRID = 60, 300, 512
RULE = Rule(0.98, 100, 16, temperatures=(1.0, 2.0))


def peaked(seed=0):
    """Logits [TOKENS, V] with one id above all others: tails from 1e-8 to 0.3."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((TOKENS, V)) * rng.uniform(1, 4, (TOKENS, 1))
    logits[np.arange(TOKENS), rng.integers(0, V, TOKENS)] += rng.uniform(0, 30, TOKENS)
    return torch.tensor(logits, dtype=torch.float32)


def decoded(logits, u, rule=RULE):
    """What a reader has of the tokens, whose draws are at u [T]."""
    chosen = Selector(rule, logits.shape[1])(logits, torch.as_tensor(u))
    c = {name: column.numpy() for name, column in chosen._asdict().items()}
    kept = np.arange(c["nucleus_ids"].shape[1]) < c["counts"][:, None]
    others = [t for t in rule.temperatures if t != 1]
    record = pack(
        c["nucleus_ids"][kept], c["nucleus_logits"][kept], c["counts"], c["logsumexp"], c["sampled_ids"],
        c["sampled_logits"], vocab_size=logits.shape[1],
        logsumexp_at=dict(zip(others, c["logsumexp_at"].T, strict=True)),
        tail_mass_at=dict(zip(rule.temperatures if others else (), c["tail_mass_at"].T, strict=True)),
    )  # fmt: skip
    return unpack(record)


def cross_entropy(found, temperature, log_s):
    """-sum w log s of each token."""
    entries, samples = found.weights(temperature)
    rows = np.repeat(np.arange(len(found.counts)), found.counts)
    exact = np.bincount(rows, entries * log_s[rows, found.ids], minlength=len(found.counts))
    return -exact - (samples * np.take_along_axis(log_s, found.sampled_ids.astype(np.int64), 1)).sum(1)


def test_cross_entropy_is_unbiased_at_each_temperature():
    """Random draws, three standard errors: by chance one of 370 limits is passed. Seeds are fixed, so it is so or never."""
    logits, rng = peaked(), np.random.default_rng(1)
    student = torch.log_softmax(0.3 * logits + torch.tensor(rng.standard_normal(logits.shape)), -1).numpy()
    errors = {key: [] for key in ((1.0, "right"), (2.0, "right"), (2.0, "tail mass from the nucleus"))}
    for _ in range(300):
        found = decoded(logits, rng.random(TOKENS))
        for t, way in errors:
            p = torch.softmax(logits.double() / t, -1).numpy()
            used = found if way == "right" else replace(found, tail_mass_at={})
            errors[t, way].append(cross_entropy(used, t, student) + (p * student).sum(1))
    tiny = found.tail_mass_at[1.0] < 1e-5
    assert 5 < tiny.sum() < TOKENS
    for (t, way), found_errors in errors.items():
        for tokens in (tiny, ~tiny):
            means = np.array(found_errors)[:, tokens].mean(1)
            limit = 3 * means.std() / len(means) ** 0.5
            if way == "right":
                assert abs(means.mean()) <= limit < 0.02, (t, way)
            elif tokens is tiny:  # 1 - p(nucleus) says nothing there
                assert abs(means.mean()) > 2 * limit, (t, way)


def test_each_id_is_drawn_as_often_as_the_mixture_says():
    """Over a grid of uniforms an id has N m draws on average; no chance, and none that is not in the tail."""
    logits = peaked(3)[5]
    chosen = Selector(RULE, V)(logits.expand(GRID, V), (torch.arange(GRID).double() + 0.5) / GRID)
    kept = chosen.nucleus_ids[0, : int(chosen.counts[0])].long()
    mixture = torch.zeros(V).double()
    for column, t in enumerate(RULE.temperatures):
        p = torch.softmax(logits.double() / t, -1)
        p[kept] = 0
        assert chosen.tail_mass_at[0, column].item() == pytest.approx(p.sum().item(), rel=1e-5)
        mixture += p / p.sum() / len(RULE.temperatures)
    drawn = np.bincount(chosen.sampled_ids.numpy().ravel(), minlength=V) / GRID
    np.testing.assert_allclose(drawn, 16 * mixture.numpy(), atol=2 / GRID)


@pytest.mark.parametrize("temperatures", [(1.0, 2.0), (0.5, 1.0, 3.0)])
def test_logsumexp_is_exact_and_draws_depend_on_their_uniform_alone(temperatures):
    logits, rule = peaked(2), replace(RULE, temperatures=temperatures)
    u = np.random.default_rng(0).random(TOKENS)
    whole, one = decoded(logits, u, rule), decoded(logits[7:8], u[7:8], rule)
    for t in temperatures:
        np.testing.assert_allclose(whole.logsumexp_for(t), torch.logsumexp(logits.double() / t, -1), atol=1e-6)
    assert whole.sampled_ids[7].tolist() == one.sampled_ids[0].tolist()
    plain = Selector(Rule(), V)(logits, torch.as_tensor(u))
    assert whole.counts.tolist() == plain.counts.tolist()  # the nucleus is that of T = 1


def test_a_nucleus_that_is_all_leaves_nothing_to_draw():
    found = decoded(peaked()[:, :9], np.full(TOKENS, 0.5), Rule(1.0, 9, 4, temperatures=(1.0, 2.0)))
    assert found.sampled_counts.max() in (0, 4) and (found.sampled_counts == 0).sum() > 0
    none = found.sampled_counts == 0
    assert (found.tail_mass_at[2.0][none] == 0).all() and (found.weights(2.0)[1][none] == 0).all()


def test_plain_draws_are_refused_at_another_temperature():
    found = decoded(peaked(), np.full(TOKENS, 0.5), Rule())
    with pytest.raises(ValueError, match="temperature 2: this record serves 1 alone; build one with --temperatures"):
        found.weights(2.0)
    several = decoded(peaked(), np.full(TOKENS, 0.5))
    with pytest.raises(ValueError, match=r"temperature 1.5: this record serves 1,2 alone"):
        several.weights(1.5)
