"""Models that run in servers: the engine behind `openai`, `tei` and `triton`. Threads and HTTP; no torch.

Texts are cut here, by the model's tokenizer to --max-length, whatever the server would do. They are sent as token ids where
the server shows on three probes that it takes them as they are, else as the text of these very tokens. Vectors are cut to
--dimensions and scaled here, too. The server decides pooling and dtype; its vectors must have the model's size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from builders.job import Job
from builders.options import ConfigError
from builders.text import Text
from extract.batching import TokenBudget
from extract.engines import EngineError
from extract.engines.arrays import finish
from extract.engines.desk import POLL_SECONDS, Desk
from extract.engines.endpoint import Endpoint
from extract.engines.wire import KEY, BusyFault, Client, Fault, RefusedError
from extract.model_files import ModelFiles
from extract.sample import Batch, Sample
from extract.settings import Settings
from extract.tokens import TextTokenizer, load_text_tokenizer

logger = logging.getLogger(__name__)

BATCH_TOKENS = 8192  # of a batch, the unit of progress; requests have a size of their own
PROBE_TRIES = 5  # at a server that is busy
PROBES = ("a", "The stillroom was where one distilled.", "1, 2, 3: ready! Ünïcode, too.")


class RemoteEngine:
    """See Engine.

    Raises:
        ConfigError: no --endpoint, or none that fits the job.
        EngineError: an endpoint is not ready.
    """

    max_batch_tokens = BATCH_TOKENS

    def __init__(self, job: Job, files: ModelFiles, settings: Settings) -> None:
        self.job, self.patience = job, 60 * settings.endpoint_patience
        if not settings.endpoint:
            raise ConfigError(f"--engine {job.engine} needs --endpoint URL, as in http://127.0.0.1:8000")
        tokenizer = load_text_tokenizer(job, files)
        text_of, probes = text_of_sample(tokenizer), probe_samples(tokenizer)
        clients = [open_client(job, url, settings.endpoint_model, text_of) for url in settings.endpoint]
        vectors = [check(client, probes, job, files) for client in clients]
        self.dimension = min(job.dimensions or 10**9, vectors[0].shape[1])
        self.endpoints = [Endpoint(client) for client in clients]

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """See Engine. While it waits for a server, an empty batch comes out now and then, so that the run can stop."""
        desk = Desk(self.endpoints, self.patience)
        coming = iter(batches)
        batch = next(coming, None)
        try:
            while batch is not None or desk.flights:
                while batch is not None and desk.has_room:
                    desk.put(batch)
                    last, batch = batch, next(coming, None)
                if batch is None:
                    desk.end()
                if (flight := desk.take(POLL_SECONDS)) is None:
                    yield Batch(last.work), self._finish([]), 0
                else:
                    yield flight.batch, self._finish(flight.vectors), flight.batch.num_tokens
        finally:
            desk.close()

    def _finish(self, vectors: Sequence[np.ndarray | None]) -> np.ndarray:
        if not vectors:
            return np.empty((0, self.dimension), np.float32)
        return finish(np.stack(vectors), self.job.dimensions, self.job.normalize)  # type: ignore[arg-type]


def open_client(job: Job, url: str, model: str | None, text_of: Callable[[Sample], str]) -> Client:
    """Return the client of what the job names as its engine."""
    if "@" in urlsplit(url).netloc:
        raise ConfigError(f"--endpoint has a password in it: give the key in ${KEY}")
    if not url.startswith(("http://", "https://", "grpc://")):
        raise ConfigError(f"--endpoint {url}: expected a URL, as in http://127.0.0.1:8000")
    if job.engine == "triton":
        from extract.engines.triton import TritonClient

        return TritonClient(url, model, text_of)
    if url.startswith("grpc://"):
        raise ConfigError(f"--endpoint {url}: --engine {job.engine} speaks HTTP; gRPC is for --engine triton")
    if job.engine == "tei":
        from extract.engines.tei import TeiClient

        return TeiClient(url, job.max_length or 0, text_of)
    from extract.engines.openai import OpenAiClient

    return OpenAiClient(url, model, str(job.model), text_of)


def check(client: Client, probes: list[Sample], job: Job, files: ModelFiles) -> np.ndarray:
    """See that a server is ready and gives the model's vectors; say what it is in one line.

    Raises:
        EngineError: it is not, or does not.
    """
    try:
        what = client.connect()
        vectors = best_form(client, probes)
    except (Fault, RefusedError) as fault:
        raise EngineError(f"--endpoint is not ready: {fault}") from None
    size, expected = vectors.shape[1], files.size(job.pooling)
    if size not in (expected, job.dimensions):
        raise EngineError(
            f"--endpoint {client.name} gives vectors of {size} dimensions, --model {job.model} has {expected}: "
            "is it the same model?"
        )
    if job.normalize is False and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        raise EngineError(f"--endpoint {client.name} scales vectors to length 1: --no-normalize cannot be kept")
    form = {None: "", True: ", takes token ids", False: ", takes text"}[getattr(client, "sends_ids", None)]
    logger.info("%s is ready: %s, %d dimensions%s", client.name, what, size, form)
    return vectors


def best_form(client: Any, probes: list[Sample]) -> np.ndarray:
    """Probe with text, then with token ids, and have the client send ids where both give the same vectors.

    A server that adds special tokens to ids, or decodes them its own way, shows itself here.
    """
    by_text = probe(client, probes)
    if getattr(client, "sends_ids", None) is None:
        return by_text
    client.sends_ids = True
    try:
        by_ids = probe(client, probes)
        is_same = by_ids.shape == by_text.shape and cosines(by_ids, by_text).min() > 0.999
    except (Fault, EngineError):
        is_same = False
    client.sends_ids = bool(is_same)
    return by_text


def probe(client: Client, probes: list[Sample]) -> np.ndarray:
    """Vectors of the probes, sent one by one: a server may take no more at once. One that is busy is asked again."""

    def ask(sample: Sample) -> np.ndarray:
        for _ in range(PROBE_TRIES - 1):
            try:
                return client.embed([sample])
            except BusyFault as fault:
                time.sleep(fault.seconds or 1.0)
        return client.embed([sample])

    return np.concatenate([ask(sample) for sample in probes])


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows."""
    products = np.einsum("nd,nd->n", first, second)
    return products / np.maximum(np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1), 1e-12)


def probe_samples(tokenizer: TextTokenizer) -> list[Sample]:
    """The texts that every server is asked for first."""
    encoded = tokenizer.encode([Text("", text) for text in PROBES])
    return [Sample(i, 0, ids, truncated) for i, (ids, truncated) in enumerate(encoded)]


def text_of_sample(tokenizer: TextTokenizer) -> Callable[[Sample], str]:
    """Return what makes the text of a sample's tokens. The server puts special tokens round it by itself.

    Tokens of a text that was cut may need more tokens when they are read again; the text then ends where they would.
    """
    backend, first, last = tokenizer.backend, len(tokenizer.prefix_ids), len(tokenizer.suffix_ids)

    def text_of(sample: Sample) -> str:
        ids = sample.input_ids[first : sample.num_tokens - last]
        text: str = backend.decode(ids, skip_special_tokens=False)
        if sample.truncated:
            again = backend.encode(text, add_special_tokens=False)
            if len(again.ids) > len(ids):
                text = text[: again.offsets[len(ids) - 1][1]]
        return text

    return text_of
