"""Embeddings from servers, with all that servers do: python -m pytest tests/test_remote_engine.py."""

import logging
import subprocess
import sys
import threading

import numpy as np
import pytest

from builders.job import Job
from builders.options import ConfigError
from extract.batching import TokenBudget
from extract.engines import EngineError, EngineLostError, load_engine
from extract.engines.fake import FakeEngine
from extract.model_files import read_model_files
from extract.sample import Batch, Sample
from extract.settings import Settings
from tests.embedserver import EmbedServer
from tests.runs import CHECKOUT


@pytest.fixture
def server(minilm):
    with EmbedServer(minilm) as server:
        yield server


def engine_of(minilm, *urls, settings=(), **options):
    asked = {"model": str(minilm), "engine": "openai", "dtype": "float32", "pooling": "mean", "max_length": 64}
    job = Job(**{**asked, **options})
    return load_engine(job, read_model_files(job), None, Settings(endpoint=urls, **dict(settings)))


def samples_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Sample(i, 0, [101, *rng.integers(2000, 9000, n).tolist(), 102])
        for i, n in enumerate(rng.integers(1, 40, count))
    ]


def embed(engine, samples, size=16, between=lambda number: None):
    """Vectors [N, D] of samples sent in batches of `size`; every batch must come back once, in order."""
    batches = [Batch(None, samples[i : i + size]) for i in range(0, len(samples), size)] + [Batch(None, is_last=True)]
    done, vectors = [], []
    for batch, got, padded in engine.run(batches, TokenBudget(1000)):
        if batch.samples or batch.is_last:  # else it waits for a server
            done.append(batch)
            vectors.append(got)
            assert padded == batch.num_tokens
            between(len(done))
    assert done == batches
    return np.concatenate(vectors)


def expected(samples):
    return np.array([FakeEngine(384)._vector(sample) for sample in samples], np.float32)


def assert_same(vectors, samples):
    np.testing.assert_allclose(vectors, expected(samples), atol=1e-6)


@pytest.mark.parametrize(
    ("takes_ids", "specials_around_ids", "takes_base64", "sends_ids"),
    [(True, False, True, True), (False, False, True, False), (True, True, True, False), (True, False, False, True)],
)
def test_the_form_that_a_server_takes_is_found(
    server, minilm, caplog, takes_ids, specials_around_ids, takes_base64, sends_ids
):
    server.takes_ids, server.specials_around_ids, server.takes_base64 = takes_ids, specials_around_ids, takes_base64
    caplog.set_level(logging.INFO, "extract")
    engine, samples = engine_of(minilm, server.url), samples_of(100)
    what = "token ids" if sends_ids else "text"
    assert f"{server.url}/v1 is ready: model the-model, 384 dimensions, takes {what}" in caplog.text
    if not sends_ids:  # words, not any tokens: some do not come back from text as they were
        ids = [server.tokenizer.encode(f"Row {i}: it's {i} o'clock, déjà vu (again)!").ids for i in range(100)]
        samples = [Sample(i, 0, one) for i, one in enumerate(ids)]
    assert_same(embed(engine, samples), samples)


def test_tei_says_its_limits_itself(server, minilm, caplog):
    caplog.set_level(logging.INFO, "extract")
    server.rates = {"429": 0.05, "drop": 0.05}
    server.max_texts = 20
    engine, samples = engine_of(minilm, server.url, engine="tei"), samples_of(500)
    assert "model the-model, at most 20 texts per request, 384 dimensions, takes token ids" in caplog.text
    assert_same(embed(engine, samples), samples)
    assert server.most_texts == 20 and not server.counts["413"]
    with pytest.raises(EngineError, match="takes texts of at most 512 tokens: give --max-length 512"):
        engine_of(minilm, server.url, engine="tei", max_length=513)


def test_a_bad_server_costs_time_and_nothing_else(server, minilm):
    engine, samples = engine_of(minilm, server.url), samples_of(1500)
    server.rates = {"429": 0.1, "500": 0.05, "503": 0.1, "drop": 0.1}
    server.max_texts, server.seconds_per_request = 24, 0.002
    assert_same(embed(engine, samples), samples)
    assert {"429", "500", "503", "413", "drop"} <= set(server.counts)
    assert server.most_texts <= 24


def test_a_limit_on_tokens_is_found(server, minilm):
    engine, samples = engine_of(minilm, server.url), samples_of(300)
    server.max_tokens = 500
    assert_same(embed(engine, samples), samples)
    assert 1 <= server.counts["400"] < 30


def test_two_servers_share_the_work(server, minilm):
    with EmbedServer(minilm) as other:
        server.seconds_per_token = other.seconds_per_token = 1e-5
        engine, samples = engine_of(minilm, server.url, other.url), samples_of(1500)
        assert_same(embed(engine, samples), samples)
        assert min(server.texts, other.texts) > 300


def test_one_server_of_two_that_dies_leaves_its_work_to_the_other(server, minilm):
    with EmbedServer(minilm) as other:
        server.seconds_per_request = other.seconds_per_request = 0.01
        engine, samples = engine_of(minilm, server.url, other.url), samples_of(1500)
        assert_same(embed(engine, samples, between=lambda number: other.die() if number == 10 else None), samples)


def test_a_server_that_returns_is_waited_for(server, minilm):
    def away(number):
        if number == 10:
            server.die()
            threading.Timer(2.0, server.come_back).start()

    engine, samples = engine_of(minilm, server.url), samples_of(1500)
    server.seconds_per_request = 0.005
    assert_same(embed(engine, samples, between=away), samples)


def test_a_server_that_does_not_return_ends_the_run(server, minilm):
    engine = engine_of(minilm, server.url, settings={"endpoint_patience": 0.02})
    server.seconds_per_request = 0.005
    with pytest.raises(EngineLostError, match=rf"no answer from {server.url}/v1 for 0.02 minutes"):
        embed(engine, samples_of(1500), between=lambda number: server.die() if number == 5 else None)


def test_a_text_that_always_fails_is_told_from_a_server_that_does(server, minilm):
    engine, samples = engine_of(minilm, server.url), samples_of(400)
    server.poison = samples[77].input_ids
    with pytest.raises(EngineError, match=r"one text of \d+ tokens fails again and again: .*assertion failed"):
        embed(engine, samples)


def test_the_key_comes_from_the_environment_and_shows_nowhere(server, minilm, monkeypatch, caplog):
    server.key = "sk-secret"
    caplog.set_level(logging.DEBUG)
    with pytest.raises(EngineError, match=r"not ready.*401"):
        engine_of(minilm, server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")  # of another company
    with pytest.raises(EngineError, match=r"not ready.*401"):
        engine_of(minilm, server.url)
    monkeypatch.setenv("STILLROOM_API_KEY", "sk-secret")
    embed(engine_of(minilm, server.url), samples_of(20))
    assert "is ready" in caplog.text and "sk-secret" not in caplog.text


def test_what_is_wrong_is_said_before_the_run(server, minilm):
    with pytest.raises(ConfigError, match="--engine openai needs --endpoint URL"):
        engine_of(minilm)
    with pytest.raises(ConfigError, match="--endpoint localhost: expected a URL"):
        engine_of(minilm, "localhost")
    with pytest.raises(ConfigError, match=r"--endpoint has a password in it: give the key in [$]STILLROOM_API_KEY$"):
        engine_of(minilm, "http://user:word@127.0.0.1")
    with pytest.raises(ConfigError, match=r"--endpoint-model other: .* serves the-model"):
        engine_of(minilm, server.url, settings={"endpoint_model": "other"})
    with pytest.raises(EngineError, match="--no-normalize cannot be kept"):
        engine_of(minilm, server.url, normalize=False)
    server.engine = FakeEngine(64)
    with pytest.raises(
        EngineError, match=r"gives vectors of 64 dimensions, --model .* has 384: is it the same model\?"
    ):
        engine_of(minilm, server.url)
    server.die()
    with pytest.raises(EngineError, match=f"--endpoint is not ready: {server.url}/v1: ConnectError"):
        engine_of(minilm, server.url)


def test_a_run_begins_more_requests_than_one_at_a_server_that_computes_them_at_once(server, minilm):
    server.seconds_per_request = 0.1
    samples = samples_of(12000)
    engine = engine_of(minilm, server.url)
    assert_same(embed(engine, samples), samples)
    tokens, requests = engine.endpoints[0].pace.climb.best
    assert tokens * requests > 2048 * 4 and server.most_at_once > 4


def test_engines_of_servers_need_no_torch():
    code = "import extract.engines.remote, extract.engines.openai, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True)
