"""From token vectors to one vector per text: python -m pytest tests/test_pooling.py."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extract.engines.pooling import finish, pool

BY_HAND = {
    "mean": lambda tokens: tokens.mean(0),
    "logits-mean": lambda tokens: tokens.mean(0),
    "max": lambda tokens: tokens.max(0),
    "cls": lambda tokens: tokens[0],
    "last": lambda tokens: tokens[-1],
    "mean-sqrt-len": lambda tokens: tokens.sum(0) / np.sqrt(len(tokens)),
    "weighted-mean": lambda tokens: np.average(tokens, axis=0, weights=np.arange(1, len(tokens) + 1)),
}


def split(hidden_ND, lengths):
    return np.split(hidden_ND, np.cumsum(lengths)[:-1])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.sampled_from(sorted(BY_HAND)), st.integers(0, 99))
def test_pooling_is_what_numpy_gives_text_by_text(lengths, how, seed):
    hidden = np.random.default_rng(seed).standard_normal((sum(lengths), 6)).astype(np.float32)
    expected = np.stack([BY_HAND[how](tokens) for tokens in split(hidden, lengths)])
    got = pool(torch.from_numpy(hidden), lengths, how)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.sampled_from(sorted(BY_HAND)), st.integers(1, 5))
def test_tokens_of_a_prompt_are_left_out_but_never_the_last_token(lengths, how, skip):
    hidden = np.random.default_rng(0).standard_normal((sum(lengths), 3)).astype(np.float32)
    weights = [np.arange(1, n + 1)[min(skip, n - 1) :] for n in lengths]  # places in the whole text
    rests = [tokens[min(skip, len(tokens) - 1) :] for tokens in split(hidden, lengths)]
    by_place = [np.average(rest, axis=0, weights=weight) for rest, weight in zip(rests, weights, strict=True)]
    expected = by_place if how == "weighted-mean" else [BY_HAND[how](rest) for rest in rests]
    got = pool(torch.from_numpy(hidden), lengths, how, skip)
    np.testing.assert_allclose(got.numpy(), np.stack(expected), atol=1e-6)


def test_several_ways_are_concatenated():
    hidden = torch.randn(7, 3)
    parts = [pool(hidden, [4, 3], how) for how in ("last", "mean", "max")]
    assert torch.equal(pool(hidden, [4, 3], "last+mean+max"), torch.cat(parts, 1))


@pytest.mark.parametrize("how", sorted(BY_HAND))
def test_sums_are_taken_in_float32(how):
    hidden = torch.full((4000, 2), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum stops at 256
    got = pool(hidden, [3000, 1000], how)
    assert got.dtype == torch.float32
    expected = [[length**0.5] * 2 if how == "mean-sqrt-len" else [1.0, 1.0] for length in (3000, 1000)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def test_first_dimensions_then_length_one():
    vectors = torch.tensor([[3.0, 4.0, 12.0], [0.0, 0.0, 5.0]])
    np.testing.assert_allclose(finish(vectors, 2, True), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(finish(vectors, 2, False), [[3, 4], [0, 0]])
    np.testing.assert_allclose(finish(vectors, None, True).norm(dim=1), [1, 1], atol=1e-6)
    assert finish(vectors, None, False) is not None
    assert torch.equal(finish(vectors, None, False), vectors)
