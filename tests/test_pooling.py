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
}


def split(hidden_ND, lengths):
    return np.split(hidden_ND, np.cumsum(lengths)[:-1])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.sampled_from(sorted(BY_HAND)), st.integers(0, 99))
def test_pooling_is_what_numpy_gives_text_by_text(lengths, how, seed):
    hidden = np.random.default_rng(seed).standard_normal((sum(lengths), 6)).astype(np.float32)
    expected = np.stack([BY_HAND[how](tokens) for tokens in split(hidden, lengths)])
    got = pool(torch.from_numpy(hidden), lengths, how)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("how", sorted(BY_HAND))
def test_sums_are_taken_in_float32(how):
    hidden = torch.full((4000, 2), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum stops at 256
    got = pool(hidden, [3000, 1000], how)
    assert got.dtype == torch.float32
    assert got.tolist() == [[1.0, 1.0]] * 2


def test_first_dimensions_then_length_one():
    vectors = torch.tensor([[3.0, 4.0, 12.0], [0.0, 0.0, 5.0]])
    np.testing.assert_allclose(finish(vectors, 2, True), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(finish(vectors, 2, False), [[3, 4], [0, 0]])
    np.testing.assert_allclose(finish(vectors, None, True).norm(dim=1), [1, 1], atol=1e-6)
    assert finish(vectors, None, False) is not None
    assert torch.equal(finish(vectors, None, False), vectors)
