"""What a proof of many chunks costs in requests, seconds and memory."""

from __future__ import annotations

import io
import json
import logging
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub.folder import FolderRepo
from hub.opened import wrong_vectors
from hub.pending import Entry, Receipt
from hub.remote import HubRepo
from hub.verify import DEEP_THREADS, PlannedUnit, Verifier
from tests.hubserver import HubServer
from tests.runs import use_hub

ROWS = 10
logger = logging.getLogger(__name__)


def unit(number: int) -> PlannedUnit:
    start, stop = number * ROWS, (number + 1) * ROWS
    name = f"train/{number // 1000:04d}/{start:012d}-{stop:012d}.parquet"
    return PlannedUnit(number, start, stop, f"data/{name}", f"skipped/{name}", lambda: np.arange(start, stop))


def content(planned: PlannedUnit, dimension: int) -> bytes:
    """A chunk with the metadata that a run writes, and 10 kB of job and features."""
    vectors = np.random.default_rng(planned.number).standard_normal((ROWS, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension)
    table = pa.table({"index": np.arange(planned.start, planned.stop), "embedding": column})
    said = {"fingerprint": "f", "start": planned.start, "stop": planned.stop, "counts": counts(), "job": "x" * 10_000}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"stillroom": json.dumps(said)}), sink, compression="none")
    return sink.getvalue()


def counts() -> dict[str, int]:
    return {"rows": ROWS, "records": ROWS, "skipped": 0}


def verifier(repo, units: list[PlannedUnit], *, deep: bool) -> Verifier:
    files = repo.list_entries()
    receipts = {
        u.start: Receipt(u.start, u.stop, (Entry(u.data, files[u.data].size, files[u.data].sha256),), counts())
        for u in units
    }
    return Verifier(
        repo,
        files,
        ["data/train", "skipped/train"],
        "f",
        partial(wrong_vectors, is_normalized=True),
        receipts,
        "ledger",
        True,
        deep,
    )


@pytest.mark.parametrize("deep", [False, True])
def test_a_thousand_chunks_are_one_request_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deep: bool) -> None:
    """And none of them against the quota of the API: 1,000 in five minutes, for all that a person runs."""
    units = [unit(number) for number in range(1000)]
    with HubServer(tmp_path / "hub") as hub:
        hub.create_repo("tester/x")
        hub.write("tester/x", {u.data: content(u, dimension=64) for u in units})
        use_hub(monkeypatch, hub)
        repo, started = HubRepo("tester/x"), time.monotonic()
        repo.pin()  # the client's first request brings one of its own along
        assert list(verifier(repo, units, deep=deep).problems(units)) == []
        logger.info("deep=%s: %s in %.1f s", deep, hub.counts(), time.monotonic() - started)
        assert {k: n for k, n in hub.counts().items() if k != "unknown"} == {"info": 1, "tree": 2, "resolve": 1000 + 5}
        statuses = [request.status for request in hub.requests if request.kind == "resolve"]
        assert statuses.count(200) == (1000 if deep else 0)


def test_a_deep_proof_holds_few_chunks(tmp_path: Path) -> None:
    units = [unit(number) for number in range(40)]
    repo = FolderRepo(tmp_path / "out")
    repo.commit({u.data: content(u, dimension=50_000) for u in units}, [], "")
    size = min(repo.list_files().values())
    assert size > 2_000_000
    proof = verifier(repo, units, deep=True)
    tracemalloc.start()
    arrow = pa.default_memory_pool().max_memory()
    assert [problem for problem in proof.problems(units) if problem.repair == "compute"] == []
    peak = tracemalloc.get_traced_memory()[1] + pa.default_memory_pool().max_memory() - arrow
    tracemalloc.stop()
    logger.info("peak %.1f chunks", peak / size)
    assert peak < 4 * DEEP_THREADS * size  # of 40: content, its columns, and float32 at work on them
