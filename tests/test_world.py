"""Workers of a run, as real processes with torch's own store."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore

from extract.heartbeat import Heartbeat
from extract.world import World

CHECKOUT = Path(__file__).resolve().parents[1]
HEAD = """
import json, os, sys, time
sys.path.insert(0, {checkout!r})
from functools import partial
import extract.world
from extract.heartbeat import Heartbeat
from extract.stop import LateError
from extract.world import World, WorkerError
extract.world.Heartbeat = partial(Heartbeat, {beat_seconds}, {lost_seconds})
world = World.join()
def say(**facts):
    with open(os.path.join({folder!r}, f"{{world.rank}}.json"), "w") as file:
        json.dump(facts, file)
"""


def launch(
    folder: Path, body: str, workers: int = 2, *, lost_seconds: float = 60.0, options=()
) -> tuple[int, str, list[dict]]:
    """Exit code, output, and what each worker said."""
    script = folder / "script.py"
    facts = {"beat_seconds": lost_seconds / 12, "lost_seconds": lost_seconds}
    script.write_text(HEAD.format(checkout=str(CHECKOUT), folder=str(folder), **facts) + body)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(workers)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", *options, str(script)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=90)
    said = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9].json"))]
    return done.returncode, done.stdout + done.stderr, said


def test_claims_share_gather_and_barriers(tmp_path):
    body = """
claims = []
while (number := world.claim()) < 200:
    claims.append(number)
    time.sleep(0.002 * (1 + 4 * world.is_main))
shared = world.share("job", lambda: {"made by": world.rank, "ü": [1, None]})
gathered = world.gather("pending", [world.rank] * 2)
arrived = time.time()
time.sleep(0.3 * world.is_main)
ticks = []
world.barrier("poured", lambda: ticks.append(1))
world.post("progress", world.rank)
world.barrier("posted")
if world.rank == 1:
    world.request_stop("SIGTERM")
    world.request_stop("deadline")
world.barrier("asked")
say(claims=claims, shared=shared, gathered=gathered, waited=time.time() - arrived, ticks=len(ticks),
    posted=sorted(world.posted("progress")), reason=world.stop_reason(), again=world.stop_reason(),
    roles=[world.is_main, world.is_leader, world.num_machines])
world.barrier("end")
"""
    code, output, said = launch(tmp_path, body)
    assert code == 0, output
    assert len(said) == 2
    claims = [part["claims"] for part in said]
    assert sorted(claims[0] + claims[1]) == list(range(200)), "disjoint and complete"
    assert len(claims[1]) > len(claims[0]) > 0, "the slow worker holds nobody"
    for part in said:
        assert part["shared"] == {"made by": 0, "ü": [1, None]}
        assert part["gathered"] == [[0, 0], [1, 1]]
        assert part["waited"] >= 0.25
        assert part["posted"] == [0, 1]
        assert part["reason"] in ("SIGTERM", "deadline") and part["again"] is None, "looked up once a second"
    assert said[1]["ticks"] > 0
    assert [part["roles"] for part in said] == [[True, True, 1], [False, False, 1]]


@pytest.mark.parametrize(("who", "waits_in"), [(1, "barrier"), (0, "share"), (1, "loop")])
def test_one_workers_failure_stops_all_with_its_error(tmp_path, who, waits_in):
    body = f"""
try:
    if world.rank == {who}:
        time.sleep(0.5)
        raise ValueError("the disk is full of ü")
    if {waits_in!r} == "barrier":
        world.barrier("poured")
    elif {waits_in!r} == "share":
        world.share("job", lambda: 1)
    while True:
        world.stop_reason()
        time.sleep(0.05)
except BaseException as error:
    world.fail(error)
    say(error=f"{{type(error).__name__}}: {{error}}")
    time.sleep(1)
    raise
"""
    code, _, said = launch(tmp_path, body)
    assert code != 0
    errors = [part["error"] for part in said]
    assert errors[who] == "ValueError: the disk is full of ü"
    assert errors[1 - who] == f"WorkerError: worker {who}: ValueError: the disk is full of ü"


def test_a_silent_worker_is_a_failure_of_all(tmp_path):
    """Stopped, not killed: the launcher sees nothing. Worker 0 listens to it, and tells worker 2."""
    body = """
import signal
world.barrier("begin")
started = time.monotonic()
if world.rank == 1:
    if os.fork() == 0:  # wakes its parent, so that the test ends
        time.sleep(8)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
try:
    while True:
        world.stop_reason()
        time.sleep(0.05)
except WorkerError as error:
    say(error=str(error), seconds=time.monotonic() - started)
    time.sleep(10)  # or the launcher ends the others first
"""
    code, output, said = launch(tmp_path, body, workers=3, lost_seconds=3.0)
    assert code == 0, output
    assert [part["error"].split(". ")[0] for part in said] == ["worker 1 has not been heard of for 3 s"] * 3
    assert all(3 <= part["seconds"] < 7 for part in (said[0], said[2]))


def test_a_busy_worker_is_not_lost(tmp_path):
    """Nothing but its thread speaks for a worker that is in one long call."""
    body = """
world.barrier("begin")
if world.rank == 1:
    time.sleep(6)
world.barrier("end")
say(ok=True)
"""
    code, output, said = launch(tmp_path, body, lost_seconds=2.0)
    assert (code, said) == (0, [{"ok": True}] * 2), output


def test_workers_that_are_started_again_know_nothing_of_the_first_ones(tmp_path):
    """The store is the launcher's and keeps the failure, the claims and the open barriers of the first attempt."""
    body = """
first = not os.path.exists("failed")
world.barrier("begin")
claims = [world.claim() for _ in range(5)]
if first and world.rank == 1:
    time.sleep(0.5)
    open("failed", "w").close()
    error = ValueError("once")
    world.fail(error)
    raise error
while first:
    world.stop_reason()
    time.sleep(0.05)
say(claims=claims, reason=world.stop_reason())
world.barrier("end")
"""
    code, output, said = launch(tmp_path, body, options=("--max-restarts", "1"))
    assert code == 0, output
    assert sorted(said[0]["claims"] + said[1]["claims"]) == list(range(10))
    assert [part["reason"] for part in said] == [None, None]


def test_what_comes_too_late_for_the_main_worker_does_for_all(tmp_path):
    body = """
def settle():
    raise LateError("SIGTERM")
try:
    world.share("job", settle)
except LateError as error:
    world.fail(error)
    say(late=str(error))
"""
    code, output, said = launch(tmp_path, body)
    assert (code, said) == (0, [{"late": "SIGTERM"}] * 2), output


class StuckStore:
    """A store whose machine was taken away: no call comes back."""

    def add(self, key: str, value: int) -> int:
        threading.Event().wait()
        return 0


def test_a_store_that_does_not_answer_has_an_end():
    heartbeat, store = Heartbeat(0.1, 0.5), StuckStore()
    assert heartbeat.ask(lambda: 5) == 5
    for seconds in (0.5, 0.0):  # the second call is not made
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer for 0 s"):
            heartbeat.ask(lambda: store.add("claims", 1))
        assert seconds <= time.monotonic() - started < seconds + 0.4


def test_only_answers_of_the_store_make_a_neighbour_silent():
    """While this machine's own line is down, nobody can be heard: the others are not lost for it."""
    store, down = HashStore(), threading.Event()
    beats = [0]

    class Line:
        def add(self, key: str, value: int) -> int:
            while down.is_set():
                time.sleep(0.05)
            if key == "beat/1":
                beats[0] += 1
                return beats[0]
            return store.add(key, value)

    heartbeat = Heartbeat(0.05, 0.5)
    heartbeat.listen_to(Line(), 0, 1)
    time.sleep(0.3)
    down.set()
    time.sleep(1.0)
    assert not heartbeat.is_silent
    down.clear()
    time.sleep(0.3)
    assert not heartbeat.is_silent


def test_a_process_may_end_in_the_middle_of_a_call():
    """Python ends daemon threads by unwinding them; inside torch that is SIGABRT, and a run that succeeded would fail."""
    body = """
import time
from torch.distributed import TCPStore
from extract.heartbeat import Heartbeat
heartbeat = Heartbeat(beat_seconds=0.0)
heartbeat.listen_to(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), 0, 1)
time.sleep(0.3)
"""
    done = subprocess.run([sys.executable, "-c", body], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = World.join()
    assert [world.claim() for _ in range(3)] == [0, 1, 2]
    assert world.share("x", lambda: {"a": 1}) == {"a": 1}
    assert world.gather("x", 5) == [5]
    world.barrier("x")
    world.post("x", 1)
    world.request_stop("x")
    world.fail(ValueError())
    assert (world.posted("x"), world.stop_reason()) == ([], None)
    assert (world.is_main, world.is_leader, world.num_machines) == (True, True, 1)
