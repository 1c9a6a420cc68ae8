"""Resume: what a run costs before its first batch, over the number of chunks that a Hub dataset holds already.

The test Hub is in this process: its own work is counted. Its store gets the chunks directly, as their names are what planning
reads; receipts are those of commits of 100 units.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.table import Row, seconds
from builders.job import Job
from builders.layout import Layout
from builders.units import Units
from extract.prepare import prepare
from extract.settings import Settings
from extract.stop import Stop
from extract.world import World
from hub.ledger import Ledger
from hub.pending import Entry, Receipt
from hub.remote import HubRepo
from tests.hubserver import HubServer
from tests.hubstore import Faults, lfs_info
from tests.runs import MINILM, use_hub

CHUNKS, LEFT, RUNS = (100, 1000, 10_000), 5, 3
SECONDS, REQUESTS = 3.0, 25


def write_source(path: Path, num_rows: int) -> Path:
    """Write a source of so many equal rows, as JSON lines."""
    row = json.dumps({"messages": [{"role": "assistant", "content": "yes"}]})
    path.write_text(f"{row}\n" * num_rows)
    return path


def fill(server: HubServer, output: str, num_done: int, num_rows: int, num_skipped: int = 0) -> None:
    """Put `num_done` chunks of one row each into the Hub's store, the first of them with skipped rows."""
    units, repo, layout = Units(num_rows, 1), server.store.repo(output), Layout()
    tree = {path: file for path, file in repo.head("main").tree.items() if path == layout.job}
    data, skipped = lfs_info("1" * 64, 100_000_000), lfs_info("2" * 64, 1000)
    done = [units[number] for number in range(num_done)]
    tree |= {unit.path(layout.data, "train"): data for unit in done}
    tree |= {unit.path(layout.skipped, "train"): skipped for unit in done[:num_skipped]}
    ledger = Ledger(HubRepo(output), layout.receipts, layout.ledger)
    receipts = [
        Receipt(u.start, u.stop, (Entry(u.path("data", "train"), 100_000_000, "1" * 64),), {"rows": 1, "records": 1})
        for u in done
    ]
    for start in range(0, num_done, 100):
        tree |= {
            path: server.store.keep(content) for path, content in ledger.part(receipts[start : start + 100]).items()
        }
    repo.record("main", tree, f"{num_done:,} chunks", ())


def plans(server: HubServer, folder: Path, num_done: int) -> tuple[list[float], int]:
    """Seconds of each plan, and the most requests that one of them took."""
    source = write_source(folder / f"{num_done}.jsonl", num_done + LEFT)
    job = Job(source=str(source), output=f"tester/done-{num_done}", model=MINILM, engine="fake", chunk_rows=1)

    def plan(cache: str) -> int:
        server.requests.clear()
        settings = Settings(resume=True, cache_dir=str(folder / cache))
        todo = prepare(job, settings, World(), Stop(None)).plan.todo
        return len(todo)

    assert plan(f"first-{num_done}") == num_done + LEFT
    fill(server, str(job.output), num_done, num_done + LEFT)
    taken, requests = [], 0
    for _ in range(RUNS):
        taken.append(seconds(lambda: plan(f"cache-{num_done}")))
        requests = max(requests, sum(n for kind, n in server.counts().items() if kind != "unknown"))
    assert plan(f"cache-{num_done}") == LEFT
    return taken, requests


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        folder = Path(root)
        with HubServer(folder / "hub") as server:
            server.faults = Faults(reset_seconds=0)
            use_hub(patch, server)
            for num_done in CHUNKS:
                taken, requests = plans(server, folder, num_done)
                note = f"{requests} requests"
                yield Row(f"resume, {num_done:,} chunks done", "s", taken, goal=SECONDS, is_less=True, note=note)
            yield Row("requests of the last", "", [requests], goal=REQUESTS, is_less=True)
