"""Every engine that runs a real model gives the same vectors: python -m pytest -m slow tests/test_engines_agree.py.

vLLM and Triton have environments of their own: `make test-vllm` and `make test-triton` make them and name their interpreters.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from builders.demo import write_demo
from tests.runs import Bench, kill_group, read_vectors

VLLM_PYTHON = os.environ.get("STILLROOM_VLLM_PYTHON")
TRITON_PYTHON = os.environ.get("STILLROOM_TRITON_PYTHON")
SAMPLE = os.environ.get("STILLROOM_CHAT_SAMPLE")
NUM_ROWS = 500
MIN_COSINE, MIN_COSINE_HALF = 0.9999, 0.999

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
needs_vllm = pytest.mark.skipif(VLLM_PYTHON is None, reason="STILLROOM_VLLM_PYTHON is not set: `make test-vllm`")

needs_triton = pytest.mark.skipif(
    TRITON_PYTHON is None, reason="STILLROOM_TRITON_PYTHON is not set: `make test-triton`"
)


@pytest.fixture(scope="module")
def arguments(minilm, tmp_path_factory) -> list[str]:
    """The job of all engines: 500 real chats where the sample is at hand, else generated ones."""
    if SAMPLE is None:
        pytest.importorskip("reasoning_gym", reason='pip install "stillroom[demo]"')
    source = SAMPLE or write_demo(tmp_path_factory.mktemp("demo") / "chat.parquet", NUM_ROWS)
    job = ["--source", source, "--model", minilm, "--dtype", "float32", "--max-length", 64, "--limit", NUM_ROWS]
    return [str(part) for part in [*job, "--chunk-rows", 50, "--output", "./out", "--resume"]]


@pytest.fixture(scope="module")
def truth(arguments, tmp_path_factory) -> np.ndarray:
    """Vectors [N, D] of the transformers engine, by row."""
    bench = Bench(tmp_path_factory.mktemp("transformers"))
    bench.run(*arguments)
    return vectors_of(bench)


def vectors_of(bench: Bench) -> np.ndarray:
    """Vectors [N, D] of a complete output: every row once, in order."""
    index, vectors = read_vectors(bench.root / "out")
    assert index.tolist() == list(range(NUM_ROWS))
    return vectors


def lowest_cosine(vectors: np.ndarray, truth: np.ndarray) -> float:
    return float(np.einsum("nd,nd->n", vectors, truth).min())


def wait_for_chunks(bench: Bench, count: int, timeout: float = 300) -> None:
    end = time.monotonic() + timeout
    while len(list((bench.root / "out").glob("data/**/*.parquet"))) < count:
        assert time.monotonic() < end, bench.log.read_text()
        time.sleep(0.05)


def processes_with(word: str) -> list[int]:
    """Living processes whose environment holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


@needs_vllm
def test_vllm_killed_and_resumed_gives_the_vectors_of_transformers(arguments, truth, tmp_path):
    bench = Bench(tmp_path, python=str(VLLM_PYTHON))
    process = bench.start(*arguments, "--engine", "vllm", "--max-batch-tokens", "256")
    wait_for_chunks(bench, 2)
    kill_group(process)
    end = time.monotonic() + 20
    while left := processes_with(str(bench.cache)):  # the engine's own processes hold a device's memory
        assert time.monotonic() < end, f"processes {left} outlive the run"
        time.sleep(0.1)
    assert len(list((tmp_path / "out").glob("data/**/*.parquet"))) < 10
    bench.run(*arguments, "--engine", "vllm", timeout=600)
    assert lowest_cosine(vectors_of(bench), truth) >= MIN_COSINE


@contextmanager
def serving(command: list[str], ready: str, log: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server in its own process group, once it answers at the URL `ready`."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **(env or {})}
        )
    try:
        end = time.monotonic() + 400
        while True:
            with suppress(OSError), urllib.request.urlopen(ready, timeout=2) as answer:
                if answer.status == 200:
                    break
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield
    finally:
        kill_group(process)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@needs_vllm
def test_a_vllm_server_gives_the_vectors_of_transformers(arguments, truth, minilm, tmp_path):
    port, options = free_port(), ["--runner", "pooling", "--dtype", "float32", "--max-model-len", "256"]
    command = [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(minilm), *options]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "minilm"]
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    bench = Bench(tmp_path)
    with serving(command, f"http://127.0.0.1:{port}/health", tmp_path / "server.log", env):
        log = bench.run(*arguments, "--engine", "openai", "--endpoint", f"http://127.0.0.1:{port}", timeout=600)
    assert f"http://127.0.0.1:{port}/v1 is ready: model minilm, 384 dimensions, takes token ids" in log
    assert lowest_cosine(vectors_of(bench), truth) >= MIN_COSINE


@needs_vllm
def test_bfloat16_stays_near(arguments, truth, tmp_path):
    """Of float32, and of each other."""
    half = ["bfloat16" if part == "float32" else part for part in arguments]
    found = []
    for engine, python in (("transformers", sys.executable), ("vllm", str(VLLM_PYTHON))):
        bench = Bench(tmp_path / engine, python=python)
        bench.root.mkdir()
        bench.run(*half, "--engine", engine, timeout=600)
        found.append(vectors_of(bench))
        assert lowest_cosine(found[-1], truth) >= MIN_COSINE_HALF
    assert lowest_cosine(*found) >= MIN_COSINE_HALF


@needs_vllm
def test_vllm_says_what_it_cannot_do(arguments, tmp_path):
    bench = Bench(tmp_path, python=str(VLLM_PYTHON))
    process = bench.start(*arguments, "--engine", "vllm", "--max-length", "100000")
    assert process.wait(timeout=120) == 2
    assert "--max-length 100000: the model takes at most 256 tokens" in bench.log.read_text()


@needs_triton
def test_a_triton_server_gives_the_vectors_of_transformers(arguments, truth, minilm, tmp_path):
    """Token ids over HTTP, text over gRPC; each run is killed and resumed."""
    pytest.importorskip("tritonclient", reason="pip install 'stillroom[triton]'")
    find = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    libraries = subprocess.run(
        [str(TRITON_PYTHON), "-c", find], capture_output=True, text=True, check=True
    ).stdout.strip()
    http, grpc = free_port(), free_port()
    command = [str(TRITON_PYTHON), "tests/tritonserver.py", str(minilm), str(http), str(grpc)]
    ready = f"http://127.0.0.1:{http}/v2/models/by_text/ready"
    with serving(command, ready, tmp_path / "server.log", {"LD_LIBRARY_PATH": libraries}):
        for number, (url, model) in enumerate(
            {f"http://127.0.0.1:{http}": "by_ids", f"grpc://127.0.0.1:{grpc}": "by_text"}.items()
        ):
            bench = Bench(tmp_path / str(number))
            bench.root.mkdir()
            mine = [*arguments, "--engine", "triton", "--endpoint", url, "--triton-model", model]
            process = bench.start(*mine, "--max-batch-tokens", "256")
            wait_for_chunks(bench, 2)
            kill_group(process)
            log = bench.run(*mine, timeout=600)
            assert f"{url} is ready: model {model} (" in log and "at most 64 texts per request, 384 dimensions" in log
            assert lowest_cosine(vectors_of(bench), truth) >= MIN_COSINE
