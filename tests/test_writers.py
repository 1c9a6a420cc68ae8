"""Real processes that write one Hub dataset together, through a lock, an outage and a lost token."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from builders.demo import write_demo
from tests.runs import MINILM, Bench, download, hub_process, hub_state, read_vectors

ROWS, CHUNK_ROWS = 480, 10
SECRET = "hf_sesameSesameSesame0123456789"
OUTAGE_SECONDS = float(os.environ.get("STILLROOM_OUTAGE_SECONDS", "300"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_demo(tmp_path / "chat.parquet", num_rows=ROWS)


def options(source: Path, output: str, *more: object) -> list[str]:
    job = ["--source", source, "--model", MINILM, "--engine", "fake", "--chunk-rows", CHUNK_ROWS, "--resume"]
    return [str(option) for option in [*job, "--output", output, *more]]


def finish(process: subprocess.Popen, bench: Bench, seconds: float = 300) -> None:
    assert process.wait(timeout=seconds) == 0, bench.log.read_text()


def expect_whole(hub: dict[str, str], output: str, folder: Path) -> None:
    index, _ = read_vectors(download(hub, output, folder))
    assert index.tolist() == list(range(ROWS))
    assert "**Complete**" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_eight_jobs_that_share_nothing(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All land, and whichever ends last completes the card. The lock holds each commit for half a second."""
    with hub_process(tmp_path / "hub", commit_seconds=0.5) as hub:
        jobs = []
        for number in range(8):
            (root := tmp_path / f"job-{number}").mkdir()
            environment = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.3"}
            bench = Bench(root, hub=hub, options=environment)
            more = ("--num-jobs", 8, "--job-index", number, "--max-batch-tokens", 1000)
            jobs.append((bench.start(*options(source, "user/fleet", *more)), bench))
        for process, bench in jobs:
            finish(process, bench)
        expect_whole(hub, "user/fleet", tmp_path / "got")
        state = hub_state(hub, "user/fleet")
        answers = [status for _, _, status, kind, _ in state["requests"] if kind == "commit"]
        writers = [bench.log.read_text().count("nothing left to do") for _, bench in jobs]
    assert sum(writers) >= 1 and {200, 409, 412} >= set(answers), answers
    landed, refused = answers.count(200), len(answers) - answers.count(200)
    assert landed <= 8 * 2 + 4, "one or two commits for each job, the job itself, and the card"
    with capsys.disabled():
        print(f"\n8 jobs, {ROWS // CHUNK_ROWS} chunks: {landed} commits landed, {refused} were refused by the lock")


def set_down(hub: dict[str, str], value: bool) -> None:
    address = f"{hub['HF_ENDPOINT']}/_test/down"
    urllib.request.urlopen(
        urllib.request.Request(address, json.dumps({"down": value}).encode(), method="POST")
    ).close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_unplugged(source: Path, tmp_path: Path) -> None:
    """The Hub is away in the middle of a run, for five minutes if not told otherwise: all of it lands after."""
    with hub_process(tmp_path / "hub") as hub:
        bench = Bench(tmp_path, hub=hub, options={"STILLROOM_FAKE_SECONDS_PER_BATCH": f"{OUTAGE_SECONDS / 50}"})
        process = bench.start(*options(source, "user/unplugged", "--max-batch-tokens", 2000))
        wait_until(lambda: bool(pending(bench)), process)
        wait_until(lambda: "data/" in str(hub_state(hub, "user/unplugged")["files"]), process)
        set_down(hub, True)
        before = len(pending(bench))
        time.sleep(OUTAGE_SECONDS)
        during = len(pending(bench))
        set_down(hub, False)
        assert process.poll() is None, bench.log.read_text()
        assert during >= before + min(5, OUTAGE_SECONDS / 30), "computing went on"
        wait_until(lambda: len(pending(bench)) <= 2, process, 120)
        finish(process, bench, 600)
        expect_whole(hub, "user/unplugged", tmp_path / "got")


def pending(bench: Bench) -> list[Path]:
    return list(bench.cache.glob("jobs/*/pending/receipts/[0-9]*.json"))


def wait_until(condition, process: subprocess.Popen, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)


FAULTS = {"rates": {"commit_409": 0.2, "any_500": 0.1, "any_drop": 0.05, "api_429": 0.05}, "reset_seconds": 1.0}


@pytest.mark.slow
def test_the_token_is_nowhere(source: Path, tmp_path: Path) -> None:
    """Neither in what a run writes and says at its most talkative, nor in what it says when the token is refused."""
    with hub_process(tmp_path / "hub", faults=FAULTS, token=SECRET) as hub:
        hub = hub | {"HF_TOKEN": SECRET}
        bench = Bench(tmp_path / "bench", hub=hub)
        bench.root.mkdir()
        said = [bench.run(*options(source, "user/quiet", "--debug"))]
        said.append(bench.run(*options(source, "user/quiet", "--debug"), workers=2))
        expect_whole(hub, "user/quiet", tmp_path / "bench" / "got")
        for wrong in ("hf_thisTokenIsRevoked0123456789", SECRET[:-1] + "x"):
            bench.hub = hub | {"HF_TOKEN": wrong}
            process = bench.start(*options(source, "user/refused", "--debug"))
            assert process.wait(timeout=120) != 0
            said.append(bench.log.read_text())
            assert wrong not in said[-1] and "hf auth login" in said[-1]
        log = tmp_path / "bench" / "run.log"
        bench.hub = hub
        history = json.dumps(hub_state(hub, "user/quiet")["commits"])
    assert SECRET not in history and not any(SECRET in text for text in said)
    scanned = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert log in scanned and any(path.name == "status.json" for path in scanned)
    found = [path for path in scanned if re.search(rb"hf_sesame|hf_thisToken", path.read_bytes())]
    assert found == []
