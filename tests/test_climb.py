"""Finding how much to send at once, on servers that are formulas: python -m pytest tests/test_climb.py."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.engines.climb import MAX_REQUESTS, MAX_TOKENS, START, Climb, Pace


def speed(cell, per_request, per_token, lanes, crowd):
    """Tokens per second of a server that computes `lanes` requests at once and suffers from more than `crowd`."""
    tokens, requests = cell
    seconds = per_request + per_token * tokens
    return tokens * min(requests, lanes) / seconds / (1 + max(0, requests - crowd) / crowd)


def climbed(server, steps=60, noise=lambda step: 1.0):
    climb = Climb()
    for step in range(steps):
        climb.measured(server(climb.cell) * noise(step))
    return climb


GRID = [(2**t, 2**r) for t, r in itertools.product(range(8, 18), range(9))]


@given(
    per_request=st.floats(1e-4, 1.0),
    per_token=st.floats(1e-7, 1e-3),
    lanes=st.integers(1, 256),
    crowd=st.integers(1, 512),
)
def test_the_best_static_setting_is_found(per_request, per_token, lanes, crowd):
    server = lambda cell: speed(cell, per_request, per_token, lanes, crowd)  # noqa: E731
    assert server(climbed(server).best) >= 0.95 * max(map(server, GRID))


def test_noise_of_a_tenth_costs_little():
    server = lambda cell: speed(cell, 0.02, 1e-5, 16, 32)  # noqa: E731
    best = climbed(server, steps=200, noise=lambda step: 0.9 + 0.2 * (step * 7919 % 101 / 100)).best
    assert server(best) >= 0.85 * max(map(server, GRID))


def test_a_server_that_changes_is_followed():
    climb = climbed(lambda cell: speed(cell, 0.01, 1e-6, 64, 512))
    assert climb.best[1] >= 32
    slow = lambda cell: speed(cell, 0.01, 1e-6, 1, 1)  # noqa: E731
    for _ in range(200):
        climb.measured(slow(climb.cell))
    assert slow(climb.best) >= 0.95 * max(map(slow, GRID))


def test_limits_hold():
    climb = Climb()
    climb.limit(max_tokens=1000, max_requests=3)
    seen = set()
    for _ in range(50):
        climb.measured(climb.cell[0] * climb.cell[1])
        seen.add(climb.cell)
    assert all(tokens <= 1000 and requests <= 3 for tokens, requests in seen)
    assert climbed(lambda cell: cell[0] * cell[1], 100).best == (MAX_TOKENS, MAX_REQUESTS)


def measure(starved=False):
    """Answer requests of 100 tokens, a tenth of a second apart, with as many under way as the pace wants."""
    now = 0.0
    pace = Pace(Climb(), clock=lambda: now)
    flying = []
    for _ in range(60):
        while pace.num_flying < pace.climb.cell[1]:
            flying.append(pace.sent())
        now += 0.1
        pace.returned(flying.pop(0), 100)
        if starved:
            pace.starve()
    return pace


def test_a_measure_counts_requests_of_one_setting_only():
    assert measure().climb.speeds[START] == pytest.approx(1000)
    assert len(measure().climb.speeds) > 1


def test_a_measure_without_enough_to_send_says_nothing():
    assert measure(starved=True).climb.speeds == {}
