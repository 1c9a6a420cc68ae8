"""Sources on the Hub: Parquet by row ranges at a pinned commit, other formats through the `datasets` cache."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hubserver import HubServer
from tests.runs import MINILM, Bench, read_vectors

NUM_ROWS, GROUP_ROWS = 600, 50
FILLER = "x" * 4000  # a column that no text needs; reading it would show in the bytes sent


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, hub: HubServer) -> Bench:
    return Bench(tmp_path, hub=dict(hub.env()))


def rows(start: int, stop: int) -> list[dict]:
    return [
        {"id": f"r{i}", "question": f"What is {i} plus {i}?", "filler": FILLER + str(i)} for i in range(start, stop)
    ]


def parquet(start: int, stop: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(start, stop)), sink, row_group_size=GROUP_ROWS, compression="none")
    return sink.getvalue()


def run(bench: Bench, *extra: str) -> str:
    template = ["--text-template", "{question}", "--model", MINILM, "--engine", "fake", "--chunk-rows", "100"]
    return bench.run("--source", "user/source", *template, "--output", "./out", "--resume", *extra)


def test_parquet_is_read_by_ranges_and_never_whole(hub: HubServer, bench: Bench) -> None:
    half = NUM_ROWS // 2
    files = {"data/train-0.parquet": parquet(0, half), "data/train-1.parquet": parquet(half, NUM_ROWS)}
    hub.create_repo("user/source")
    hub.write("user/source", files, "two files")
    run(bench)
    index, _ = read_vectors(bench.root / "out")
    assert index.tolist() == list(range(NUM_ROWS))
    reads = [request for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert {r.status for r in reads if r.path.endswith(".parquet")} == {206}, reads
    assert pq.read_table(bench.root / "out" / "data")["id"].to_pylist() == [f"r{i}" for i in range(NUM_ROWS)]


def test_a_job_stays_at_the_commit_that_it_began_with(hub: HubServer, bench: Bench) -> None:
    hub.create_repo("user/source")
    first = hub.write("user/source", {"data/train.parquet": parquet(0, 200)}, "first")
    run(bench)
    hub.write("user/source", {"data/train.parquet": parquet(0, 400)}, "the source goes on")
    assert "nothing left to do" in run(bench)
    assert json.loads((bench.root / "out/_stillroom/job.json").read_text())["job"]["revision"] == first


def test_another_revision_is_refused(hub: HubServer, bench: Bench) -> None:
    hub.create_repo("user/source")
    first = hub.write("user/source", {"data/train.parquet": parquet(0, 200)}, "first")
    second = hub.write("user/source", {"data/train.parquet": parquet(0, 400)}, "second")
    run(bench, "--revision", first)
    with pytest.raises(AssertionError, match=f"(?s)another job.*revision: '{first}' -> '{second}'"):
        run(bench, "--revision", "main")


def test_other_formats_go_through_the_datasets_cache(hub: HubServer, bench: Bench) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows(0, 120))
    hub.create_repo("user/source")
    hub.write("user/source", {"train.jsonl": lines.encode()}, "JSON lines")
    run(bench)
    index, _ = read_vectors(bench.root / "out")
    assert index.tolist() == list(range(120))


def test_a_source_that_is_not_there_is_one_line(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="--source user/source: no such dataset on the Hub"):
        run(bench)
