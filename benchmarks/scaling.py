"""Strong scaling: the same rows by 1, 3 and 8 workers, on an engine that sleeps for a fixed time per batch.

Workers are real processes under torchrun that read, tokenise, claim units and write chunks into a folder; an engine that
sleeps lets eight of them share two cores. A worker's phase goes from the begin of its first batch to the end of its last
one: waiting for units, for the disk, for the interpreter and for the other workers' cores is counted. Not counted are
imports, planning and opening the tokenizer, and the end, where a worker waits for the last unit of another: units take
seconds here to keep the sweep short, and two minutes in a run of hours. Efficiency of N workers: the phase of one worker
over the phases of N together, in the same sweep.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(CHECKOUT), *(path for path in sys.path if path != str(CHECKOUT / "benchmarks"))]


WORKERS, SWEEPS = (1, 3, 8), 3
UNITS, UNIT_ROWS, BATCH_TOKENS, BATCH_SECONDS = 20, 32, 1024, 0.15  # about 90 batches
SPANS = "STILLROOM_BENCH_SPANS"  # folder in which each worker leaves the times of its batches
GOAL = 0.95


def work(arguments: list[str]) -> None:
    """Be a worker: run the main job, and note when each batch began and ended."""
    from extract.cli import run_command
    from extract.engines.fake import Fake

    spans: list[tuple[float, float]] = []
    spend = Fake.spend

    def noted(self, batch) -> None:
        began = time.monotonic()
        spend(self, batch)
        if batch.samples:
            spans.append((began, time.monotonic()))

    Fake.spend = noted
    try:
        run_command(arguments)
    finally:
        (Path(os.environ[SPANS]) / f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(spans))


def worker_seconds(folder: Path) -> float:
    """Seconds from each worker's first batch to the end of its last one, of all workers together."""
    workers = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sum(spans[-1][1] - spans[0][0] for spans in workers if spans)


def phase(root: Path, source: Path, num_workers: int) -> float:
    """Run the job with so many workers into a new folder, and return their phases together."""
    from tests.runs import MINILM, Bench

    root.mkdir()
    spans = root / "spans"
    spans.mkdir()
    options = {"STILLROOM_FAKE_SECONDS_PER_BATCH": str(BATCH_SECONDS), SPANS: str(spans), "OMP_NUM_THREADS": "1"}
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(num_workers),
        "--master_port",
        "0",
    ]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    command = [*(launcher if num_workers > 1 else [sys.executable]), __file__]
    command += ["--source", str(source), "--model", MINILM, "--engine", "fake", "--output", str(root / "out")]
    command += ["--chunk-rows", str(UNIT_ROWS), "--max-batch-tokens", str(BATCH_TOKENS), "--resume"]
    env = Bench(root, options=options).env
    done = subprocess.run(command, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:])
    return worker_seconds(spans)


def rows(sweeps: int = SWEEPS, workers: tuple[int, ...] = WORKERS):
    """Yield the rows of the table."""
    from benchmarks.table import Row
    from builders.demo import write_demo

    found: dict[int, list[float]] = {count: [] for count in workers}
    with tempfile.TemporaryDirectory() as folder:
        source = write_demo(Path(folder) / "demo.parquet", UNITS * UNIT_ROWS)
        for sweep in range(sweeps):
            for count in workers:
                found[count].append(phase(Path(folder) / f"{sweep}-{count}", source, count))
    for count in workers[1:]:
        efficiency = [one / many for one, many in zip(found[workers[0]], found[count], strict=True)]
        yield Row(f"efficiency of {count} workers", "of linear", efficiency, goal=GOAL, note="engine that sleeps")


if __name__ == "__main__":
    work(sys.argv[1:])
