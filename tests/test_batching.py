"""Batches under a token budget: python -m pytest tests/test_batching.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.batching import WINDOW_BATCHES, WINDOW_SAMPLES, TokenBudget, token_batches
from extract.sample import Batch, Sample

LENGTHS = st.lists(st.integers(1, 300), max_size=400)


def samples_of(lengths):
    return [Sample(i, 0, [0] * n) for i, n in enumerate(lengths)]


def padded(batch):
    return max(s.num_tokens for s in batch) * len(batch)


@given(LENGTHS, st.integers(1, 600))
def test_every_sample_once_and_no_batch_over_the_budget(lengths, budget):
    batches = list(token_batches(samples_of(lengths), TokenBudget(budget)))
    assert sorted(s.position for batch in batches for s in batch) == list(range(len(lengths)))
    assert all(padded(batch) <= budget or len(batch) == 1 for batch in batches)
    assert all(batches)


@given(LENGTHS)
def test_within_a_window_the_longest_come_first(lengths):
    in_order = [s.num_tokens for batch in token_batches(samples_of(lengths), TokenBudget(1000)) for s in batch]
    assert in_order == sorted(lengths, reverse=True) or sum(lengths) >= WINDOW_BATCHES * 1000


def test_samples_of_equal_length_keep_their_order():
    batches = token_batches(samples_of([5] * 50), TokenBudget(40))
    assert [s.position for batch in batches for s in batch] == list(range(50))


def test_no_more_is_read_ahead_than_a_window_and_a_half():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Sample(read, 0, [0] * 10)

    next(token_batches(endless(), TokenBudget(1000)))
    assert read == 1.5 * WINDOW_BATCHES * 1000 / 10
    read = 0
    next(token_batches(endless(), TokenBudget(10**9)))
    assert read == 1.5 * WINDOW_SAMPLES


def test_a_few_samples_at_the_end_are_no_window_of_their_own():
    count = WINDOW_BATCHES * 1000 // 10
    lengths = [*[10] * count, *[9, 5] * 100]
    in_order = [s.num_tokens for batch in token_batches(samples_of(lengths), TokenBudget(1000)) for s in batch]
    assert in_order == sorted(lengths, reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_ragged_texts_pad_at_most_two_percent(seed):
    lengths = np.random.default_rng(seed).lognormal(5, 1, 8000).clip(1, 256).astype(int).tolist()
    total = sum(padded(batch) for batch in token_batches(samples_of(lengths), TokenBudget(2048)))
    assert (total - sum(lengths)) / total <= 0.02


def test_a_halved_budget_counts_from_the_next_batch_on():
    budget = TokenBudget(100)
    batches = token_batches(samples_of([10] * 30), budget)
    assert len(next(batches)) == 10
    budget.halve(100)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]


def test_halving_goes_by_what_failed_and_ends_at_one():
    budget = TokenBudget(1000)
    budget.halve(300)
    assert budget.max_batch_tokens == 150
    for _ in range(20):
        budget.halve(10**6)
    assert budget.max_batch_tokens == 1


def test_a_batch_knows_its_tokens():
    batch = Batch(None, samples_of([3, 5]))
    assert (batch.num_tokens, batch.max_length, batch.num_padded_tokens) == (8, 5, 10)
    assert (Batch(None).num_tokens, Batch(None).max_length, Batch(None).num_padded_tokens) == (0, 0, 0)
