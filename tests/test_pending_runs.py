"""Pending chunks that an earlier run has left are taken up by their own job alone, and only where the Hub lacks them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from extract import stop
from extract.versions import VERSIONS
from tests.hubserver import HubServer
from tests.hubstore import Faults
from tests.runs import MINILM, read_vectors, use_hub
from tests.test_verify import CHUNK_ROWS, ROWS, run, write_source

OTHER = ["--text-template", "{response_text}"]
pytestmark = pytest.mark.usefixtures("minilm")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "chat.parquet")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", faults=Faults(reset_seconds=0)) as server:
        use_hub(monkeypatch, server)
        monkeypatch.setattr(stop, "SIGNAL_DRAIN_SECONDS", 0.3)
        monkeypatch.chdir(tmp_path)
        yield server


class Machine:
    """A machine with one cache, where jobs run."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root, self.source = root, source

    def run(self, output: str, *extra: str, chunk_rows: int = CHUNK_ROWS) -> None:
        mode = [] if "--restart" in extra else ["--resume"]
        job = ["--model", MINILM, "--engine", "fake", "--chunk-rows", str(chunk_rows), "--source", str(self.source)]
        result = run(
            self.root, "run", *job, "--output", output, "--cache-dir", str(self.root / "cache"), *mode, *extra
        )
        assert result.exit_code == 0, result.output

    def run_without_commits(self, hub: HubServer, output: str, *extra: str, **options: int) -> Path:
        """A run that settles its job and finishes its units, and is terminated before the Hub takes them."""
        hub.faults = Faults(script={"commit": ["ok"]}, rates={"commit_409": 1.0})
        wanted = 2 if "--num-jobs" in extra else 4

        def terminate() -> None:
            end = time.monotonic() + 60
            while sum(map(len, self.pending().values())) < wanted and time.monotonic() < end:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=terminate)
        thread.start()
        self.run(output, *extra, **options)
        thread.join()
        hub.faults = Faults(reset_seconds=0)
        (made,) = self.pending()
        return made

    def pending(self) -> dict[Path, list[tuple[int, int]]]:
        """Row ranges that wait, by the folder of their job."""
        found: dict[Path, list[tuple[int, int]]] = {}
        for path in sorted((self.root / "cache/jobs").glob("*/pending/receipts/*.json")):
            receipt = json.loads(path.read_text())
            found.setdefault(path.parents[2], []).append((receipt["start"], receipt["stop"]))
        return found

    def proves(self, output: str) -> bool:
        result = run(self.root, "verify", output, "--deep", "--cache-dir", str(self.root / "cache"))
        return result.exit_code == 0


@pytest.fixture
def machine(tmp_path: Path, source: Path) -> Machine:
    return Machine(tmp_path, source)


def vectors(hub: HubServer, output: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    for path in hub.files(output):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(hub.read(output, path))
    return read_vectors(folder)


def ranges(chunk_rows: int = CHUNK_ROWS, numbers=None) -> list[tuple[int, int]]:
    count = ROWS // chunk_rows
    return [(n * chunk_rows, (n + 1) * chunk_rows) for n in (numbers if numbers is not None else range(count))]


@pytest.mark.parametrize(("extra", "chunk_rows"), [(OTHER, CHUNK_ROWS), ([], 50)])
def test_those_of_another_fingerprint_stay_where_they_are(
    hub: HubServer, machine: Machine, extra: list[str], chunk_rows: int
) -> None:
    old = machine.run_without_commits(hub, "tester/x")
    assert machine.pending() == {old: ranges()}
    machine.run("tester/x", "--restart", *extra, chunk_rows=chunk_rows)
    assert machine.pending() == {old: ranges()} and machine.proves("tester/x")
    machine.run("./fresh", *extra, chunk_rows=chunk_rows)
    fresh, got = read_vectors(machine.root / "fresh"), vectors(hub, "tester/x", machine.root / "got")
    np.testing.assert_array_equal(got[0], fresh[0])
    np.testing.assert_array_equal(got[1], fresh[1])


def test_those_of_another_output_stay_where_they_are(hub: HubServer, machine: Machine) -> None:
    old = machine.run_without_commits(hub, "tester/x")
    machine.run("tester/y")
    assert machine.pending() == {old: ranges()} and machine.proves("tester/y")
    assert not [path for path in hub.files("tester/x") if path.endswith(".parquet")]
    machine.run("tester/x")
    assert machine.pending() == {} and machine.proves("tester/x")


def test_those_of_another_job_index_stay_where_they_are(hub: HubServer, machine: Machine) -> None:
    old = machine.run_without_commits(hub, "tester/x", "--num-jobs", "2", "--job-index", "0")
    assert machine.pending() == {old: ranges(numbers=(0, 2))}
    machine.run("tester/x", "--num-jobs", "2", "--job-index", "1")
    assert machine.pending() == {old: ranges(numbers=(0, 2))}
    assert sum(path.startswith("data/") for path in hub.files("tester/x")) == 2
    machine.run("tester/x", "--num-jobs", "2", "--job-index", "0")
    assert machine.pending() == {} and machine.proves("tester/x")


def test_those_that_the_hub_has_already_are_dropped(
    hub: HubServer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, with other versions in its chunks' metadata, has computed the same units meanwhile: they stay."""
    machine.run_without_commits(hub, "tester/x")
    there = Machine(machine.root / "there", machine.source)
    python = VERSIONS["python"]
    monkeypatch.setitem(VERSIONS, "python", "3.12.0")
    there.run("tester/x", "--num-jobs", "2", "--job-index", "0")
    monkeypatch.setitem(VERSIONS, "python", python)
    before = {path: file.oid for path, file in hub.files("tester/x").items() if path.endswith(".parquet")}
    uploads = len(hub.commits("tester/x"))
    machine.run("tester/x")
    touched = [path for commit in hub.commits("tester/x")[uploads:] for path in commit.paths]
    assert not before.keys() & set(touched) and machine.pending() == {}
    after = {path: file.oid for path, file in hub.files("tester/x").items()}
    assert before.items() <= after.items() and machine.proves("tester/x")

    commits = len(hub.commits("tester/x"))
    machine.run("tester/x")
    assert len(hub.commits("tester/x")) == commits


@pytest.mark.parametrize("output", ["tester/x", "./out"])
def test_those_of_no_unit_of_the_plan_are_thrown_away(
    hub: HubServer, machine: Machine, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a cache was copied by hand: chunks of 100 rows into a job of 50."""
    old = machine.run_without_commits(hub, "tester/old")
    machine.run(output, chunk_rows=50)
    (new,) = set((machine.root / "cache/jobs").iterdir()) - {old}
    if output == "./out":
        shutil.rmtree(machine.root / "out/data")
    else:
        hub.write(output, {p: None for p in hub.files(output) if p.startswith("data/")})
    shutil.copytree(old / "pending", new / "pending", dirs_exist_ok=True)
    with caplog.at_level(logging.WARNING):
        machine.run(output, chunk_rows=50)
    assert "rows 0-100 are pending, and no unit of this plan: thrown away" in caplog.text
    assert machine.pending() == {old: ranges()} and machine.proves(output)


def test_a_folder_takes_a_unit_again_whose_receipt_did_not_arrive(hub: HubServer, machine: Machine) -> None:
    """Files of a folder appear one by one, the receipt last: a kill in between leaves a unit in both places."""
    old = machine.run_without_commits(hub, "tester/old")
    machine.run("./out")
    (new,) = set((machine.root / "cache/jobs").iterdir()) - {old}
    (machine.root / "out/_stillroom/ledger.jsonl").unlink()
    shutil.copytree(old / "pending", new / "pending", dirs_exist_ok=True)
    assert len(machine.pending()) == 2
    machine.run("./out")
    assert machine.pending() == {old: ranges()} and machine.proves("./out")
