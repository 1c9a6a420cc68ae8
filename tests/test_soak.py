"""Hundreds of kills under a bad Hub: nothing lost, nothing doubled, and little computed twice.

`make soak` is the whole (200 kills, about an hour on two cores). `STILLROOM_SOAK_KILLS` and `STILLROOM_SOAK_MINUTES` end it
at the first of them; the extra suites take ten minutes of it. Seeded by `STILLROOM_SOAK_SEED`.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builders.demo import write_demo
from tests.runs import CHECKOUT, MINILM, Bench, download, hub_process, hub_state, kill_group, read_vectors, workers_of

KILLS = int(os.environ.get("STILLROOM_SOAK_KILLS", "200"))
MINUTES = float(os.environ.get("STILLROOM_SOAK_MINUTES", "10"))
SEED = int(os.environ.get("STILLROOM_SOAK_SEED", "3"))
ROWS, CHUNK_ROWS = 1200, 20
WORLD_SIZES = (1, 2, 3, 4, 8)
WIPES = 0.15  # of the kills, the disk is lost with the process
# until the first batch, with each worker more; then of work
START_SECONDS, WORKER_SECONDS, RUN_SECONDS = 3.0, 2.0, 8.0
FAULTS = {
    "rates": {
        "commit_409": 0.10,
        "api_429": 0.05,
        "any_500": 0.05,
        "commit_landed_500": 0.03,
        "any_drop": 0.03,
        "any_hang": 0.01,
    },
    "hang_seconds": 20.0,
    "reset_seconds": 1.0,
}


@dataclass
class Toll:
    """What the kills cost, in units: allowed is one for each worker, and what was pending on a disk that was lost."""

    kills: int = 0
    wipes: int = 0
    builds: int = 0
    allowed: int = 0
    computed: Counter[int] = field(default_factory=Counter)  # samples by (build, unit)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def recomputed(self) -> float:
        """Units that were computed beyond once."""
        return sum(samples - CHUNK_ROWS for samples in self.computed.values()) / CHUNK_ROWS


def read_log(path: Path) -> Counter[int]:
    """Samples that the engine has computed, by first row of the unit."""
    counts: Counter[int] = Counter()
    for line in path.read_text().splitlines() if path.exists() else ():
        start, number = line.split()
        counts[int(start)] += int(number)
    return counts


def pending_units(bench: Bench) -> int:
    return len(list(bench.cache.glob("jobs/*/pending/receipts/[0-9]*.json")))


def kill_somewhere(process: subprocess.Popen, draw: random.Random) -> None:
    """The whole machine, or one worker, which the launcher must answer by taking the others down."""
    workers = workers_of(process)
    if draw.random() < 0.7 or not workers:
        kill_group(process)
        return
    try:
        os.kill(draw.choice(workers), signal.SIGKILL)
        process.wait(timeout=60)
    except ProcessLookupError:
        pass
    finally:
        if process.poll() is None:
            kill_group(process)


def verify(bench: Bench, output: str) -> str:
    """`stillroom verify --deep`; anything but a clean proof is an error."""
    command = [sys.executable, "-c", "from extract.cli import main; main()", "verify", output, "--deep"]
    env = bench.env | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=env, cwd=bench.root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def set_faults(hub: dict[str, str], faults: dict) -> None:
    request = urllib.request.Request(f"{hub['HF_ENDPOINT']}/_test/faults", json.dumps(faults).encode(), method="POST")
    urllib.request.urlopen(request).close()


def build(bench: Bench, source: Path, output: str, draw: random.Random, toll: Toll, end: float) -> None:
    """Run until the dataset is complete, killing each run but the last."""
    log = bench.root / f"{output.replace('/', '-')}.log"
    bench.options = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.15", "STILLROOM_FAKE_LOG": str(log)}
    options = ["--source", source, "--model", MINILM, "--engine", "fake", "--chunk-rows", CHUNK_ROWS]
    options += ["--output", output, "--resume", "--max-batch-tokens", 1500, "--commits-per-hour", 3600]
    while True:
        workers = draw.choice(WORLD_SIZES)
        process = bench.start(*map(str, options), workers=workers)
        lifetime = draw.uniform(0.3, START_SECONDS + WORKER_SECONDS * workers + RUN_SECONDS)
        is_killed = toll.kills < KILLS and time.monotonic() < end
        try:
            process.wait(timeout=lifetime if is_killed else 600)
        except subprocess.TimeoutExpired:
            assert is_killed, bench.log.read_text()
            kill_somewhere(process, draw)
            toll.kills += 1
            toll.allowed += workers
            if draw.random() < WIPES:
                toll.wipes += 1
                toll.allowed += pending_units(bench)
                bench.lose_disk()
            continue
        assert process.returncode == 0, bench.log.read_text()
        toll.computed.update({(output, start): n for start, n in read_log(log).items()})
        return


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, toll = random.Random(SEED), Toll()
    source = write_demo(tmp_path / "chat.parquet", num_rows=ROWS)
    bench = Bench(tmp_path)
    end = time.monotonic() + 60 * MINUTES
    with hub_process(tmp_path / "hub", faults=FAULTS | {"seed": SEED}, commit_seconds=0.2) as hub:
        bench.hub = hub
        while toll.kills < KILLS and time.monotonic() < end:
            output = f"user/soak-{toll.builds}"
            build(bench, source, output, draw, toll, end)
            toll.builds += 1
            set_faults(hub, {"rates": {}})  # the proof reads the dataset, not the Hub's health
            assert "nothing is missing, doubled or damaged" in verify(bench, output)
            index, _ = read_vectors(download(hub, output, tmp_path / f"got-{toll.builds}"))
            assert index.tolist() == list(range(ROWS))
            chunks = [path for path in hub_state(hub, output)["files"] if re.match(r"(data|skipped)/", path)]
            assert len(chunks) == ROWS // CHUNK_ROWS
            set_faults(hub, FAULTS | {"seed": SEED + toll.builds})
            with capsys.disabled():
                print(report(toll), flush=True)
    assert toll.kills, "a slice too short to kill anything proves nothing"
    assert toll.recomputed <= toll.allowed


def report(toll: Toll) -> str:
    return (
        f"{toll.kills} kills ({toll.wipes} with the disk) over {toll.builds} builds: 0 rows lost, 0 doubled; "
        f"{toll.recomputed:.1f} units computed again, {toll.recomputed / max(1, toll.kills):.2f} per kill "
        f"(allowed: {toll.allowed})"
    )
