"""Memory over time: a real run whose resident memory is sampled, and how fast it still grows after its warm-up.

    python benchmarks/memory.py --minutes 30 [--engine transformers] [--hub]

The run reads generated chats, over and over, into a folder (or a test Hub, which is another process and not counted), with
small units, so that much is opened, written and closed. The engine without a model shows the pipeline's own memory at a
thousand rows a second. Warm-up is the first fifth. The slope is that of a straight line through all samples after it.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(CHECKOUT), *(path for path in sys.path if path != str(CHECKOUT / "benchmarks"))]

import click
import numpy as np
import pyarrow.parquet as pq

from benchmarks.table import Row
from builders.demo import write_demo
from tests.runs import MINILM, Bench, hub_process

DEMO_ROWS, CHUNK_ROWS, EVERY_SECONDS, WARM = 2400, 500, 1.0, 0.2
FILES_PER_MINUTE = 120  # 4,800 rows a second; two cores of an EPYC reach 1,800
GOAL = 20.0  # MB/hour


def write_source(folder: Path, minutes: float) -> Path:
    """Write more rows than a run of this length reads, as links to one file of demo chats."""
    folder.mkdir()
    chats = write_demo(folder / "part-0000.parquet", DEMO_ROWS)
    pq.write_table(pq.read_table(chats), chats, row_group_size=500)
    for number in range(1, math.ceil(FILES_PER_MINUTE * (minutes + 1))):
        (folder / f"part-{number:04}.parquet").hardlink_to(chats)
    return folder


def resident_mb(pid: int) -> float:
    """Resident memory of a process; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def sample(minutes: float, engine: str, *, on_hub: bool) -> tuple[np.ndarray, np.ndarray]:
    """Run for so many minutes; return times [N] in seconds since the first batch, and resident MB [N]."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(root)
        if on_hub:
            bench.hub = stack.enter_context(hub_process(root / "hub"))
        output = "tester/memory" if on_hub else str(root / "out")
        options = ["--source", str(write_source(root / "source", minutes)), "--model", MINILM, "--engine", engine]
        options += ["--output", output, "--chunk-rows", str(CHUNK_ROWS), "--resume"]
        process = bench.start(*options, "--max-runtime-minutes", str(minutes + 5))
        try:
            while not list(bench.cache.glob("jobs/*/pending/receipts/*")) and process.poll() is None:
                time.sleep(0.1)
            began, found = time.monotonic(), list[tuple[float, float]]()
            while (now := time.monotonic() - began) < 60 * minutes and process.poll() is None:
                found.append((now, resident_mb(process.pid)))
                time.sleep(EVERY_SECONDS)
            if process.poll() is not None:
                raise click.ClickException(f"the run ended by itself: {bench.log.read_text()[-2000:]}")
        finally:
            process.kill()
            process.wait()
    times, sizes = zip(*found, strict=True)
    return np.array(times), np.array(sizes)


def slope(times: np.ndarray, sizes: np.ndarray) -> float:
    """MB per hour after the warm-up."""
    late = times > WARM * times[-1]
    return float(np.polyfit(times[late], sizes[late], 1)[0] * 3600)


def rows(minutes: float = 0.5) -> Iterator[Row]:
    """Yield the rows of the table. A short slice says how much memory a run takes; its slope says little."""
    times, sizes = sample(minutes, "fake", on_hub=False)
    late = sizes[times > WARM * times[-1]]
    grown = f"{late[-1] - late[0]:+.0f} MB in its last {100 * (1 - WARM):.0f} %"
    yield Row(f"memory of a run, {minutes:g} min", "MB", [float(np.median(late))], note=grown)


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--engine", default="fake", show_default=True, type=click.Choice(["fake", "transformers"]))
@click.option("--hub", "on_hub", is_flag=True, help="pour into a test Hub [a folder]")
def main(minutes: float, engine: str, on_hub: bool) -> None:
    """Print start, median, last and peak MB, and MB per hour."""
    times, sizes = sample(minutes, engine, on_hub=on_hub)
    parts = np.array_split(sizes, 10)
    click.echo(
        f"engine {engine}, {minutes:g} minutes: median MB of each tenth {[round(float(np.median(p))) for p in parts]}"
    )
    click.echo(f"start {sizes[0]:.0f}, median {np.median(sizes):.0f}, last {sizes[-1]:.0f}, peak {sizes.max():.0f} MB")
    grown = slope(times, sizes)
    click.echo(
        f"after the warm-up {grown:+.1f} MB/hour; goal at most {GOAL:g}: {'reached' if grown <= GOAL else 'NOT reached'}"
    )


if __name__ == "__main__":
    main()
