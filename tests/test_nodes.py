"""Runs over two machines, with addresses of their own, of which one or its line is taken away."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.nodes import HUB, Node, open_nodes
from tests.runs import download, hub_process, hub_state, read_vectors
from tests.test_run import expected, job, write_source

ROWS, CHUNK_ROWS = 4000, 20
REPO = "tester/nodes"
END_SECONDS = 75.0  # after a loss: 60 s of silence, a beat, a batch, a look once a second, the end of a process
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("minilm")]


@pytest.fixture
def nodes(tmp_path):
    with open_nodes(tmp_path) as nodes, hub_process(tmp_path / "hub", host=HUB) as hub:
        for node in nodes:
            node.bench.hub = hub
        yield nodes


def arguments(tmp_path: Path, rows: int = ROWS) -> list[str]:
    source = write_source(tmp_path / "source.jsonl", rows)
    return [*job(source, REPO, CHUNK_ROWS), "--max-batch-tokens", "128", "--resume"]


def slow(seconds: float) -> dict[str, str]:
    return {"STILLROOM_FAKE_SECONDS_PER_BATCH": str(seconds)}


def receipts(node: Node) -> set[int]:
    """First rows of the units pending on a machine's disk."""
    return {int(p.name[:12]) for p in node.bench.cache.glob("jobs/*/pending/receipts/[0-9]*.json")}


def begun(node: Node) -> set[int]:
    """First rows of the units of which a machine's disk holds batches."""
    return {int(p.name[:12]) for p in node.bench.cache.glob("jobs/*/partial/*.part")}


def uploaded(node: Node) -> set[int]:
    files = hub_state(node.bench.hub, REPO)["files"]
    return {int(path.split("/")[-1][:12]) for path in files if path.startswith("data/")}


def wait_for(what, nodes: list[Node], seconds: float = 120.0) -> float:
    """Wait for a condition and return the seconds that it took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, "\n\n".join(node.log() for node in nodes)
        time.sleep(0.1)
    return time.monotonic() - started


def in_full_swing(nodes: list[Node]) -> bool:
    return all(len(begun(node)) == 2 for node in nodes) and bool(uploaded(nodes[0]))


def complete(node: Node, tmp_path: Path, rows: int = ROWS) -> None:
    index, _ = read_vectors(download(node.bench.hub, REPO, tmp_path / "got"))
    assert index.tolist() == expected(rows)


def computed(node: Node) -> int:
    """Units that the last run computed, all its workers together."""
    (status,) = node.bench.cache.glob("jobs/*/status.json")
    return json.loads(status.read_text())["rows"] // CHUNK_ROWS


def said(node: Node) -> set[str]:
    """The lines of stillroom's errors; what else is in the log is the launcher's."""
    return {line for line in node.log().splitlines() if line.startswith("stillroom:")}


def go_on_alone(node: Node, options: list[str], tmp_path: Path, rows: int = ROWS) -> int:
    """Resume on one machine and return the number of units that it computed."""
    process = node.start([], *options)
    assert process.wait(timeout=200) == 0, node.log()
    complete(node, tmp_path, rows)
    return computed(node)


def test_two_machines_finish_a_dataset_together(nodes, tmp_path):
    processes = [n.start(n.torchrun(), *arguments(tmp_path, 1200), **slow(0.1)) for n in nodes]
    assert [process.wait(timeout=200) for process in processes] == [0, 0], nodes[0].log() + nodes[1].log()
    complete(nodes[0], tmp_path, 1200)
    uploads = {r[4] for r in hub_state(nodes[0].bench.hub, REPO)["requests"] if r[3] == "upload"}
    assert uploads == {node.address for node in nodes}


@pytest.mark.parametrize("lost", [2, 1])  # the first machine holds the rendezvous, the store and the main worker
def test_a_machine_is_lost(nodes, tmp_path, lost):
    gone, left = nodes[lost - 1], nodes[2 - lost]
    options = arguments(tmp_path)
    launchers = {n: n.start(n.torchrun(), *options, **slow(0.5)) for n in nodes}
    wait_for(lambda: in_full_swing(nodes), nodes)
    gone.lose()
    wait_for(lambda: not left.workers(), [left], END_SECONDS)
    if lost == 2:  # with the rendezvous gone, torchrun itself waits until the kernel gives its line up
        assert launchers[left].wait(timeout=30) != 0
    why = "machine 1 (ranks 2-3) has not been heard of for 60 s" if lost == 2 else "the launcher's store at "
    (line,) = said(left)
    assert why in line and "run again with --resume" in line and "Traceback" not in left.log().split(line)[0]

    safe = uploaded(left) | receipts(left)
    alone = go_on_alone(left, options, tmp_path)
    assert alone == ROWS // CHUNK_ROWS - len(safe), "what was safe is not computed again"
    assert len(begun(gone)) <= 2, "one unit in the hands of each lost worker"


@pytest.mark.parametrize("line", ["hub", "cable"])
def test_a_line_is_down_for_a_while(nodes, tmp_path, line):
    options = arguments(tmp_path, 2000)
    processes = [n.start(n.torchrun(), *options, **slow(0.5)) for n in nodes]
    wait_for(lambda: in_full_swing(nodes), nodes)
    nodes[1].cut_off_hub(True) if line == "hub" else nodes[1].plug("down")
    time.sleep(25)
    assert all(node.workers() for node in nodes), "the run must not have ended before the line comes back"
    nodes[1].cut_off_hub(False) if line == "hub" else nodes[1].plug("up")
    assert [process.wait(timeout=200) for process in processes] == [0, 0], nodes[0].log() + nodes[1].log()
    complete(nodes[0], tmp_path, 2000)


def test_an_elastic_run_goes_on_without_the_lost_machine(nodes, tmp_path):
    options = arguments(tmp_path, 2400)
    first, _ = [n.start(n.torchrun("--max-restarts", "3", nodes="1:2"), *options, **slow(0.5)) for n in nodes]
    wait_for(lambda: in_full_swing(nodes), nodes)
    nodes[1].lose()
    assert first.wait(timeout=300) == 0, nodes[0].log()
    complete(nodes[0], tmp_path, 2400)


def test_accelerate_on_two_machines(nodes, tmp_path):
    """`--multi_gpu` is what makes accelerate use torchrun; the fake engine needs no GPU for it."""
    options = arguments(tmp_path, 1200)
    launchers = [
        [
            *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "4"),
            *("--machine_rank", str(node.number - 1), "--main_process_ip", nodes[0].address),
            *("--main_process_port", "29501", "--mixed_precision", "no", "--dynamo_backend", "no"),
        ]
        for node in nodes
    ]
    processes = [node.start(launcher, *options, **slow(0.1)) for node, launcher in zip(nodes, launchers, strict=True)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0], nodes[0].log() + nodes[1].log()
    complete(nodes[0], tmp_path, 1200)
    uploads = {r[4] for r in hub_state(nodes[0].bench.hub, REPO)["requests"] if r[3] == "upload"}
    assert uploads == {node.address for node in nodes}


def test_a_killed_worker_has_all_started_again(nodes, tmp_path):
    """The other machine restarts for its sake and does not count that: the two disagree on the number of the attempt."""
    options = arguments(tmp_path, 1200)
    processes = [n.start(n.torchrun("--max-restarts", "3"), *options, **slow(0.3)) for n in nodes]
    wait_for(lambda: in_full_swing(nodes), nodes)
    os.kill(nodes[1].workers()[0], signal.SIGKILL)
    assert [process.wait(timeout=200) for process in processes] == [0, 0], nodes[0].log() + nodes[1].log()
    complete(nodes[0], tmp_path, 1200)
