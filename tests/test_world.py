"""Workers of a run, as real processes with torch's own store."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from extract.world import World

CHECKOUT = Path(__file__).resolve().parents[1]
HEAD = """
import json, os, sys, time
sys.path.insert(0, {checkout!r})
from extract.world import World, WorkerError
world = World.join()
def say(**facts):
    with open(os.path.join({folder!r}, f"{{world.rank}}.json"), "w") as file:
        json.dump(facts, file)
"""


def launch(folder: Path, body: str, workers: int = 2) -> tuple[int, str, list[dict]]:
    """Exit code, output, and what each worker said."""
    script = folder / "script.py"
    script.write_text(HEAD.format(checkout=str(CHECKOUT), folder=str(folder)) + body)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(workers)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", str(script)]
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
