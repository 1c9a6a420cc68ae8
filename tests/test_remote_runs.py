"""Whole runs with a server, killed, left by it, stopped, misled: python -m pytest tests/test_remote_runs.py."""

import time

import numpy as np
import pytest

from tests.embedserver import EmbedServer
from tests.runs import MINILM, Bench, kill_group, read_vectors


@pytest.fixture
def server(minilm):
    with EmbedServer(minilm) as server:
        yield server


@pytest.fixture(scope="module")
def job(chat_parquet, tmp_path_factory):
    """Options of a run of 60 rows in 12 chunks, and what it must give: the output of the fake engine."""
    whole = ["--source", str(chat_parquet), "--model", MINILM, "--output", "./out", "--resume", "--chunk-rows", "5"]
    bench = Bench(tmp_path_factory.mktemp("fake"))
    bench.run(*whole, "--engine", "fake")
    return whole, read_vectors(bench.root / "out")


def run_until(bench, arguments, more):
    """Start a run and wait until it has written so many chunks more."""
    written = lambda: len(list((bench.root / "out").glob("data/**/*.parquet")))  # noqa: E731
    before, end = written(), time.monotonic() + 60
    process = bench.start(*arguments)
    while written() < before + more or "is ready" not in bench.log.read_text():
        assert time.monotonic() < end and process.poll() is None, bench.log.read_text()
        time.sleep(0.02)
    return process


def test_a_build_is_killed_loses_its_server_and_goes_on(server, job, tmp_path):
    arguments, truth = job
    bench = Bench(tmp_path)
    mine = [*arguments, "--engine", "openai", "--endpoint", server.url]
    server.seconds_per_request, server.max_texts = 0.3, 2
    kill_group(run_until(bench, mine, 2))

    process = run_until(bench, [*mine, "--endpoint-patience", "0.03"], 2)
    server.die()
    assert process.wait(timeout=60) == 0
    log = bench.log.read_text()
    assert "no answer from" in log and "units left; run again with --resume" in log.replace(" of 12", "")

    server.come_back()
    server.seconds_per_request = 0.0
    log = bench.run(*mine)
    assert "complete: 12 units" in log
    index, vectors = read_vectors(tmp_path / "out")
    assert index.tolist() == truth[0].tolist()
    np.testing.assert_allclose(vectors, truth[1], atol=1e-6)


def test_a_run_that_waits_for_its_server_can_be_stopped(server, job, tmp_path):
    arguments, _ = job
    bench = Bench(tmp_path)
    server.seconds_per_request = 2.0
    process = run_until(
        bench, [*arguments, "--engine", "openai", "--endpoint", server.url, "--max-batch-tokens", "64"], 1
    )
    server.die()
    time.sleep(1)
    process.terminate()
    assert process.wait(timeout=20) == 0
    assert "stopped (SIGTERM)" in bench.log.read_text()


def test_a_server_of_another_model_does_not_go_on_with_a_dataset(server, job, tmp_path):
    arguments, _ = job
    bench = Bench(tmp_path)
    mine = [*arguments, "--engine", "openai", "--endpoint", server.url]
    server.seconds_per_request, server.max_texts = 0.3, 2
    kill_group(run_until(bench, mine, 1))
    server.engine._vector = lambda sample: np.ones(384) / np.sqrt(384)
    assert bench.start(*mine).wait(timeout=60) == 1
    assert "--engine openai gives other vectors than ./out holds (cosine " in bench.log.read_text()


def test_a_dataset_that_a_wrong_server_began_is_not_gone_on_with_by_the_model(server, job, tmp_path):
    """This server's vectors are hashes of token ids, which MiniLM itself would never give."""
    arguments, _ = job
    bench = Bench(tmp_path)
    server.seconds_per_request, server.max_texts = 0.3, 2
    kill_group(run_until(bench, [*arguments, "--engine", "openai", "--endpoint", server.url], 1))
    assert bench.start(*arguments, "--engine", "transformers").wait(timeout=120) == 1
    said = bench.log.read_text()
    assert "--engine transformers gives other vectors than ./out holds (cosine " in said and "--restart" in said
