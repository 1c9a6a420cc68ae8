"""Runs that are killed at random moments end with the dataset of an undisturbed run: every row once, nothing else.

Seeded, so that a failure comes back. `STILLROOM_KILLS` sets the number of kills (30: about eight minutes on two cores).
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from builders.demo import write_demo
from tests.runs import MINILM, Bench, download, hub_process, hub_state, kill_group, read_vectors, workers_of

KILLS = int(os.environ.get("STILLROOM_KILLS", "30"))
ROWS, CHUNK_ROWS = 2400, 80
LATEST_KILL = 16.0  # seconds after the start; importing torch and loading the model take the first five or so
FAULTS = {
    "seed": 7,
    "rates": {
        "commit_409": 0.10,
        "api_429": 0.02,
        "commit_500": 0.05,
        "commit_landed_500": 0.05,
        "commit_412": 0.02,
        "drop": 0.02,
        "commit_landed_drop": 0.03,
        "upload_drop": 0.05,
        "hang": 0.005,
    },
    "hang_seconds": 5.0,
    "reset_seconds": 1.0,
}
PLANNED = {"README.md", "assets/tokens.svg", ".gitattributes", "_stillroom/job.json", "_stillroom/ledger.jsonl"}

logger = logging.getLogger(__name__)


def arguments(source: Path, output: str) -> list[str]:
    job = ["--source", source, "--model", MINILM, "--dtype", "float32", "--chunk-rows", CHUNK_ROWS]
    return [str(part) for part in [*job, "--output", output, "--resume"]]


def kill_somewhere(process, draw: random.Random) -> None:
    """Kill the whole machine, or one worker only; the launcher must then take the others down."""
    workers = workers_of(process)
    if draw.random() < 0.7 or not workers:
        kill_group(process)
        return
    os.kill(draw.choice(workers), signal.SIGKILL)
    try:
        process.wait(timeout=60)
    except Exception:
        kill_group(process)
        raise


def expect_planned_files(files: list[str]) -> None:
    chunks = {
        f"data/train/0000/{start:012d}-{min(start + CHUNK_ROWS, ROWS):012d}.parquet"
        for start in range(0, ROWS, CHUNK_ROWS)
    }
    assert set(files) == PLANNED | chunks


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    draw = random.Random(20261121)
    source = write_demo(tmp_path / "chat.parquet", num_rows=ROWS)
    bench = Bench(tmp_path)
    bench.run(*arguments(source, "./undisturbed"))
    expected_index, expected = read_vectors(tmp_path / "undisturbed")
    assert expected_index.tolist() == list(range(ROWS))
    with hub_process(tmp_path / "hub", faults=FAULTS, commit_seconds=0.2) as hub:
        bench.hub = hub
        kills, build = 0, 0
        while kills < KILLS:  # a build that ends before its next kill is checked, and another begun
            repo_id = f"user/killed-{build}"
            while True:
                workers = draw.choice([1, 2, 3])
                process = bench.start(*arguments(source, repo_id), workers=workers)
                moment = draw.uniform(0.5, LATEST_KILL)
                end = time.monotonic() + moment if kills < KILLS else float("inf")
                while process.poll() is None and time.monotonic() < end:
                    time.sleep(0.02)
                if process.poll() is not None:
                    assert process.returncode == 0, bench.log.read_text()
                    break
                kill_somewhere(process, draw)
                kills += 1
                logger.info("kill %d after %.1f s of %d workers", kills, moment, workers)
                if kills == KILLS // 2:
                    bench.lose_disk()
            state = hub_state(hub, repo_id)
            expect_planned_files(list(state["files"]))
            index, vectors = read_vectors(download(hub, repo_id, tmp_path / f"got-{build}"))
            assert index.tolist() == list(range(ROWS))
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
            build += 1
