"""The commit budget, on a clock that the test moves."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.budget import HOUR, SHARE_OF_LIMIT, CommitBudget


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def budget_of(per_hour: float | None, num_writers: int = 1) -> tuple[CommitBudget, Clock]:
    clock = Clock()
    return CommitBudget(per_hour, num_writers, clock), clock


steps = st.lists(st.tuples(st.floats(0, 2000), st.booleans(), st.sampled_from([None, 8, 40])), max_size=200)


@given(steps, st.sampled_from([3.0, 12.0, 96.0]), st.integers(1, 5))
def test_never_more_than_the_limit_in_any_rolling_hour(pattern, per_hour, num_writers):
    """Whatever the order of pauses, last commits and learnt limits."""
    budget, clock = budget_of(per_hour, num_writers)
    times: list[float] = []
    for pause, is_last, learnt in pattern:
        clock.now += pause
        if learnt is not None:
            budget.block(0.0, learnt)
        if budget.wait_seconds(is_last=is_last) <= 0:
            budget.spend()
            times.append(clock.now)
            # the limit that holds now binds the hour that ends now
            recent = [t for t in times if t > clock.now - HOUR]
            assert len(recent) <= max(1.0, budget.per_hour / num_writers)


@given(st.floats(1, 96), st.integers(1, 64))
def test_waiting_as_told_is_enough(per_hour, num_writers):
    budget, clock = budget_of(per_hour, num_writers)
    for _ in range(30):
        for _ in range(3):
            clock.now += budget.wait_seconds()
        assert budget.wait_seconds() <= 1e-6
        clock.now += 1e-6
        budget.spend()


def test_the_first_goes_at_once_and_the_next_waits_its_turn():
    budget, clock = budget_of(96, num_writers=2)
    assert budget.wait_seconds() == 0
    budget.spend()
    assert budget.wait_seconds() == pytest.approx(75)
    clock.now += 75
    assert budget.wait_seconds() == 0


def test_the_last_waits_for_room_only():
    budget, clock = budget_of(3)
    for _ in range(3):
        assert budget.wait_seconds(is_last=True) == 0
        budget.spend()
        clock.now += 1
    assert budget.wait_seconds(is_last=True) == pytest.approx(HOUR - 3)


def test_a_learnt_limit_lowers_and_never_raises():
    budget, _ = budget_of(96)
    budget.block(10, 64)
    assert budget.per_hour == 64 * SHARE_OF_LIMIT
    budget.block(10, 256)
    assert budget.per_hour == 64 * SHARE_OF_LIMIT


def test_a_short_block_does_not_end_a_long_one():
    """An upload that hiccups must not bring on the commits that an hourly limit holds back."""
    budget, _ = budget_of(96)
    budget.block(900, 128)
    budget.block(2)
    assert budget.wait_seconds(is_last=True) == 900


def test_a_refund_takes_the_last_one_back():
    budget, _ = budget_of(96)
    budget.spend()
    budget.refund()
    assert (budget.wait_seconds(), budget.num_left) == (0, 96)


def test_a_folder_takes_any_number():
    budget, _ = budget_of(None)
    for _ in range(1000):
        budget.spend()
    budget.block(0, 128)
    assert (budget.wait_seconds(), budget.num_left, budget.per_hour) == (0, float("inf"), None)


def test_many_writers_have_one_an_hour_each():
    budget, clock = budget_of(96, num_writers=500)
    budget.spend()
    clock.now += HOUR * 500 / 96
    assert budget.wait_seconds() == 0
