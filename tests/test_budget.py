"""The commit budget, on a clock that the test moves."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.budget import COUNTED, HOUR, LOOK_SECONDS, SHARE_OF_LIMIT, CommitBudget, PastCommit


@dataclass
class Clock:
    now: float = 100_000.0

    def __call__(self) -> float:
        return self.now


def budget_of(per_hour: float | None, draw: float = 0.0) -> tuple[CommitBudget, Clock]:
    clock = Clock()
    return CommitBudget(per_hour, "me", clock, lambda: draw), clock


def seen(*ages: float, writer: str | None = "another") -> list[PastCommit]:
    return [PastCommit(f"{age}", age, writer) for age in ages]


steps = st.lists(st.tuples(st.floats(0, 2000), st.booleans(), st.sampled_from([None, 8, 40])), max_size=200)


@given(steps, st.sampled_from([3.0, 12.0, 96.0]))
def test_never_more_than_the_limit_in_any_rolling_hour(pattern, per_hour):
    """Whatever the order of pauses, urgent commits and learnt limits."""
    budget, clock = budget_of(per_hour)
    times: list[float] = []
    for pause, is_urgent, learnt in pattern:
        clock.now += pause
        if learnt is not None:
            budget.block(0.0, learnt)
        if budget.wait_seconds(is_urgent=is_urgent) <= 0:
            budget.spend()
            times.append(clock.now)
            # the limit that holds now binds the hour that ends now
            recent = [t for t in times if t > clock.now - COUNTED]
            assert len(recent) <= max(1.0, budget.per_hour)


ages = st.lists(st.tuples(st.floats(0.001, COUNTED - 1), st.sampled_from(["me", "you", "they"])), max_size=96)


@given(ages, st.floats(0, 1))
def test_what_others_commit_counts(found, draw):
    """With what the history shows, the hour never holds more than the limit; and its end is told."""
    budget, clock = budget_of(96, draw)
    budget.observe([PastCommit(f"{i}", age, writer) for i, (age, writer) in enumerate(found)])
    times = [clock.now - age for age, _ in found]
    for _ in range(120):
        clock.now += budget.wait_seconds(is_urgent=True) + 1e-6
        budget.spend()
        times.append(clock.now)
        assert sum(t > clock.now - COUNTED for t in times) <= 96


@given(st.floats(1, 96))
def test_waiting_as_told_is_enough(per_hour):
    budget, clock = budget_of(per_hour)
    for _ in range(30):
        for _ in range(3):
            clock.now += budget.wait_seconds()
        assert budget.wait_seconds() <= 1e-6
        clock.now += 1e-6
        budget.spend()


def test_the_first_goes_at_once_and_the_next_waits_its_turn():
    budget, clock = budget_of(96)
    assert budget.wait_seconds() == 0
    budget.spend()
    assert budget.wait_seconds() == pytest.approx(37.5)
    clock.now += 37.5
    assert budget.wait_seconds() == 0


def test_an_urgent_one_waits_for_room_only():
    budget, clock = budget_of(3)
    for _ in range(3):
        assert budget.wait_seconds(is_urgent=True) == 0
        budget.spend()
        clock.now += 1
    assert budget.wait_seconds(is_urgent=True) == pytest.approx(COUNTED - 3)


def test_two_writers_take_turns():
    budget, clock = budget_of(96)
    budget.observe([*seen(10, 20), *seen(30, writer="third"), *seen(5, writer="me")])
    assert budget.num_writers == 3
    budget.spend()
    assert budget.wait_seconds() == pytest.approx(3 * 37.5)
    assert 0 <= budget.spread_seconds <= 4
    clock.now += COUNTED
    budget.observe([])
    assert (budget.num_writers, budget.spread_seconds) == (1, 0)


def test_ones_own_commits_before_a_restart_count():
    budget, _ = budget_of(4)
    budget.observe(seen(100, 200, 300, 400, writer="me"))
    assert budget.num_left == 0 and budget.num_writers == 1
    assert budget.wait_seconds() == pytest.approx(COUNTED - 400)


def test_ones_own_commits_count_once():
    """Those of this process are in its own list, and in the history."""
    budget, clock = budget_of(96)
    clock.now += 100
    budget.spend()
    clock.now += 10
    budget.observe(seen(9.5, writer="me"))
    assert budget.num_left == 95


def test_writers_that_wait_for_the_same_place_draw_lots():
    budget, _ = budget_of(2, draw=0.5)
    budget.observe([*seen(600), *seen(1200, writer="third")])
    opens = COUNTED - 1200
    assert budget.wait_seconds() == pytest.approx(opens + 0.5 * 3 * HOUR / 2)
    assert budget.wait_seconds(is_urgent=True) == pytest.approx(opens + 15)


def test_strangers_cannot_take_all():
    budget, _ = budget_of(96)
    budget.observe(seen(*range(200), writer=None))
    assert budget.num_left == 24
    assert budget.interval == pytest.approx(HOUR / 24)


def test_it_looks_before_the_first_and_then_now_and_again():
    budget, clock = budget_of(96)
    assert budget.needs_look
    budget.observe([])
    assert not budget.needs_look
    clock.now += LOOK_SECONDS + 1
    assert budget.needs_look
    budget.looked()
    assert not budget.needs_look
    budget.observe(seen(1))
    clock.now += 6
    assert budget.needs_look


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
    assert budget.wait_seconds(is_urgent=True) == 900


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
    assert not budget.needs_look
