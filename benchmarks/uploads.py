"""Upload stall: how long the workers of a run wait for a Hub that takes 20 MB/s.

Twice the same run in turns, into a test Hub and into a folder: an engine without a model at full speed, records of 1.5 kB. The
stall is what the run itself reports: seconds in which a worker waited because too much was pending, over the seconds of the
run. The ratio compares the seconds of both runs, start of the process not counted; the last upload and commit are.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Row
from builders.demo import write_demo
from tests.runs import MINILM, Bench, hub_process

RUNS, ROWS, CHUNK_ROWS, BYTES_PER_SECOND = 3, 4000, 500, 20e6
GOAL = 0.01


def status(bench: Bench, source: Path, output: str) -> dict:
    """Run, and return the last status that the run wrote."""
    options = ["--source", str(source), "--model", MINILM, "--engine", "fake", "--output", output, "--resume"]
    bench.run(*options, "--chunk-rows", str(CHUNK_ROWS))
    (path,) = bench.cache.glob("jobs/*/status.json")
    return json.loads(path.read_text())


def rows(runs: int = RUNS, num_rows: int = ROWS) -> Iterator[Row]:
    """Yield the rows of the table."""
    stall, online, local, rate = [], [], [], []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        source = write_demo(folder / "demo.parquet", num_rows)
        with hub_process(folder / "hub", upload_bytes_per_second=BYTES_PER_SECOND) as hub:
            for number in range(runs):
                benches = [Bench(folder / f"{number}-{kind}") for kind in ("hub", "folder")]
                for bench in benches:
                    bench.root.mkdir()
                benches[0].hub = hub
                sent = status(benches[0], source, f"tester/run-{number}")
                kept = status(benches[1], source, str(benches[1].root / "out"))
                stall.append(sent["stall_seconds"] / sent["seconds"])
                online.append(sent["seconds"])
                local.append(kept["seconds"])
                rate.append(sent["uploaded_bytes"] / sent["seconds"] / 1e6)
    note = f"{sum(rate) / len(rate):.1f} MB/s made"
    yield Row("upload stall, Hub of 20 MB/s", "of the run", stall, goal=GOAL, is_less=True, note=note)
    yield Row("run to that Hub", "s", online, local, "to a folder", is_less=True)
