"""When a run stops: python -m pytest tests/test_stop.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extract.stop import COMMIT_SECONDS, DEADLINE, KILLED, LAUNCHERS, REPEAT_SECONDS, SIGNAL_DRAIN_SECONDS, Stop

CHECKOUT = Path(__file__).resolve().parents[1]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_without_a_limit_it_goes_on(clock):
    stop = Stop(None, clock)
    clock.now += 10**9
    assert stop.may_begin()
    assert not stop.now
    assert stop.seconds_to_drain is None


@pytest.mark.parametrize("unit_seconds", [1.0, 60.0, 200.0])
@pytest.mark.parametrize("upload_seconds", [0.0, 30.0])
def test_no_unit_begins_that_would_not_be_uploaded_in_time(clock, unit_seconds, upload_seconds):
    stop = Stop(55, clock)
    end = clock.now + 55 * 60
    stop.uploaded(upload_seconds)
    while stop.may_begin():
        assert clock.now + unit_seconds * bool(stop.unit_seconds) <= end
        clock.now += unit_seconds
        stop.finished_unit(unit_seconds)
    drained = clock.now + 2 * upload_seconds + COMMIT_SECONDS
    assert end - unit_seconds <= drained <= end  # early enough, and not a unit too early
    assert stop.reason == DEADLINE
    assert stop.seconds_to_drain >= 2 * upload_seconds + COMMIT_SECONDS


def test_on_a_disk_that_is_kept_units_begin_until_only_the_drain_fits(clock):
    stop = Stop(10, clock)
    stop.keeps_disk = True
    stop.finished_unit(300)
    clock.now += 600 - stop.drain_seconds - 1
    assert stop.may_begin()
    clock.now += 2
    assert not stop.may_begin()
    assert stop.now


def test_the_end_of_the_time_lets_the_unit_in_hand_finish_and_then_leaves_it(clock):
    stop = Stop(10, clock)
    stop.finished_unit(300)
    clock.now += 400
    assert not stop.may_begin()
    assert not stop.now
    clock.now += 190.5  # only the drain fits
    assert stop.now


def test_no_time_at_all_begins_nothing(clock):
    stop = Stop(0, clock)
    assert not stop.may_begin()
    assert stop.now


def test_the_time_of_a_unit_is_nearly_the_longest_of_the_last_twenty(clock):
    stop = Stop(None, clock)
    assert stop.unit_seconds == 0
    for seconds in [1000.0, *map(float, range(1, 21))]:
        stop.finished_unit(seconds)
    assert stop.unit_seconds == 19


def test_the_first_reason_stays(clock):
    stop = Stop(None, clock)
    stop.request("one", is_urgent=False)
    assert not stop.may_begin()
    assert not stop.now
    stop.request("two")
    assert (stop.reason, stop.now) == ("one", True)


def test_a_signal_counts_for_more_than_a_deadline_and_shortens_the_drain(clock):
    stop = Stop(10, clock)
    stop.request(DEADLINE, is_urgent=False)
    stop._on_signal(signal.SIGTERM, None)
    assert (stop.reason, stop.now, stop.seconds_to_drain) == ("SIGTERM", True, SIGNAL_DRAIN_SECONDS)


def test_a_signal_at_another_worker_is_not_this_ones_first(clock, monkeypatch):
    """The launcher's SIGTERM reaches workers one by one; one that had heard of it from a peer left at once."""
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("left without draining"))
    stop = Stop(None, clock)
    stop.request("SIGTERM")
    stop._on_signal(signal.SIGTERM, None)
    assert stop.seconds_to_drain == SIGNAL_DRAIN_SECONDS


def test_one_ctrl_c_may_arrive_twice(clock, monkeypatch):
    """A terminal sends SIGINT to launcher and worker, and torchrun passes it on: no second wish of the person."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = Stop(None, clock)
    stop._on_signal(signal.SIGINT, None)
    clock.now += REPEAT_SECONDS / 2
    stop._on_signal(signal.SIGINT, None)
    assert codes == []
    clock.now += REPEAT_SECONDS
    stop._on_signal(signal.SIGINT, None)
    assert codes == [KILLED]


@pytest.mark.parametrize(("launcher", "expected"), [(None, False), *((name, True) for name in LAUNCHERS)])
def test_a_lost_parent_ends_a_launched_run_and_not_one_under_nohup(launcher, expected, clock, monkeypatch):
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)
    if launcher:
        monkeypatch.setenv(f"{launcher}X", "1")
    stop = Stop(None, clock)
    assert not stop.now
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.now is expected
    assert stop.reason == ("the launcher is gone" if expected else None)


WORKER = """
import sys, time
from extract import stop as module
module.REPEAT_SECONDS = 0.0
stop = module.Stop(None)
stop.on_signals()
print("ready", flush=True)
while not stop.now:
    time.sleep(0.01)
print(stop.reason, flush=True)
time.sleep(float(sys.argv[1]))
"""


def start(seconds):
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, seconds], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(number):
    process = start("0")
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name}\n"
    assert process.wait(10) == 0


def test_the_second_signal_leaves_at_once():
    process = start("60")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == KILLED
