"""A generator that runs ahead in a thread: python -m pytest tests/test_read_ahead.py."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.read_ahead import read_ahead


def threads():
    return [t for t in threading.enumerate() if t.name == "read-ahead"]


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


@given(st.lists(st.integers(), max_size=50), st.integers(1, 8))
def test_items_come_in_order(items, depth):
    assert list(read_ahead(iter(items), depth)) == items
    assert not threads()


@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_arrives_in_its_place(error):
    def items():
        yield 1
        yield 2
        raise error

    seen = []
    with pytest.raises(type(error)) as caught:
        seen.extend(x for x in map(seen.append, read_ahead(items(), 4)) if x)
    assert caught.value is error
    assert seen == [1, 2]
    assert not threads()


def test_it_is_at_most_so_many_items_ahead():
    made = []

    def items():
        for i in range(1000):
            made.append(i)
            yield i

    ahead = read_ahead(items(), 3)
    next(ahead)
    wait_for(lambda: len(made) == 1 + 3 + 1)  # given, waiting, and the one that finds no room
    time.sleep(0.05)
    assert len(made) == 5
    ahead.close()


def test_closing_ends_the_thread_and_the_generator_in_it():
    is_closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            is_closed.set()

    ahead = read_ahead(items(), 2)
    next(ahead)
    assert len(threads()) == 1
    ahead.close()
    assert not threads()
    assert is_closed.is_set()


def test_nothing_begins_before_the_first_item_is_asked_for():
    ahead = read_ahead(iter([1]), 2)
    assert not threads()
    ahead.close()
    assert not threads()


def test_work_overlaps():
    """Two threads that wait 10 times 20 ms each take 0.2 s together, not 0.4 s."""

    def items():
        for i in range(10):
            time.sleep(0.02)
            yield i

    started = time.perf_counter()
    for _ in read_ahead(items(), 4):
        time.sleep(0.02)
    assert time.perf_counter() - started < 0.35


@pytest.mark.parametrize(("weight", "ahead"), [(1, 8), (4, 2), (8, 1), (100, 1)])
def test_heavy_items_leave_room_for_fewer(weight, ahead):
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    stream = read_ahead(items(), 8, lambda item: weight)
    assert next(stream) == 0
    wait_for(lambda: len(made) == ahead + 2)  # those that wait, the one in hand and the one that has no room
    time.sleep(0.3)
    assert len(made) == ahead + 2
    assert list(stream) == list(range(1, 100))
    assert not threads()
