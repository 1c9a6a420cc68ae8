"""vLLM's pooling runner: token ids in, vectors out, one engine per worker process on the device that the worker was pinned to.

Requests go in while others run, so that continuous batching never drains between batches: `LLM.embed` on one list after
another would wait for the last text of each. The engine's core is a process of its own (vLLM's default); it takes no signals
that are meant for the run, and ends with the run, however that ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from multiprocessing import active_children
from typing import Any

import numpy as np

from builders.job import Job
from builders.options import ConfigError
from extract.batching import TokenBudget
from extract.engines import EngineError
from extract.engines.arrays import finish
from extract.model_files import ModelFiles
from extract.sample import Batch

POOLING_TYPES = {"mean": "MEAN", "last": "LAST", "cls": "CLS"}
BATCH_TOKENS = 8192  # of one step of the engine, and of our batches
IN_FLIGHT_STEPS = 4  # steps' worth of tokens inside the engine: what it schedules from
# Of the key-value cache on a CPU, which a single pass hardly fills; vLLM by itself takes half the memory
CPU_SPACE_GB = "2"
DRAINS = (signal.SIGINT, signal.SIGTERM)  # the run drains at these: its engine must live on


@dataclass
class _Flight:
    """A batch inside the engine, with the vectors that are back."""

    batch: Batch
    vectors: dict[int, np.ndarray] = field(default_factory=dict)  # place in the batch: vector

    @property
    def is_whole(self) -> bool:
        return len(self.vectors) == len(self.batch.samples)


class VllmEngine:
    """See Engine. Pooling, length and dtype are the job's, not vLLM's defaults.

    Raises:
        ConfigError: vLLM is not installed.
        EngineError: it cannot load the model.
    """

    def __init__(
        self, job: Job, files: ModelFiles, gpu_memory_utilization: float = 0.9, max_batch_tokens: int | None = None
    ) -> None:
        self.job = job
        self.max_batch_tokens = max(max_batch_tokens or BATCH_TOKENS, job.max_length or 0)  # of one text at least
        self.dimension = min(job.dimensions or 10**9, files.hidden_size)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_SPACE_GB)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm import LLM, PoolingParams
            from vllm.config import PoolerConfig
        except ImportError as error:
            raise ConfigError(f"--engine vllm: pip install 'stillroom[vllm]' ({error})") from None
        self.params = PoolingParams(task="embed")
        name, revision = files.location
        before = set(active_children())
        signal.pthread_sigmask(signal.SIG_BLOCK, DRAINS)  # children inherit it
        try:
            self.llm: Any = LLM(
                name,
                revision=revision,
                runner="pooling",
                dtype=job.dtype,
                max_model_len=job.max_length,
                max_num_batched_tokens=self.max_batch_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
                trust_remote_code=job.trust_remote_code,
                enable_prefix_caching=False,
                disable_log_stats=True,
                pooler_config=PoolerConfig(pooling_type=POOLING_TYPES[job.pooling or "last"], use_activation=False),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"vLLM cannot load --model {job.model}: {' '.join(str(error).split())[:300]}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, DRAINS)
        self.engine = self.llm.llm_engine
        self.children = [child for child in active_children() if child not in before]
        self.leash = _leash([child.pid for child in self.children if child.pid])
        atexit.register(self.close)
        self.number = 0  # of the last request

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """See Engine. vLLM pads nothing, and finds its own batches: out of memory is its start's to tell."""
        flights: deque[_Flight] = deque()
        owners: dict[str, tuple[_Flight, int]] = {}  # by request
        room = IN_FLIGHT_STEPS * self.max_batch_tokens
        coming = iter(batches)
        batch = next(coming, None)
        try:
            while batch is not None or flights:
                while batch is not None and room > 0:
                    room -= batch.num_tokens
                    flights.append(self._send(batch, owners))
                    batch = next(coming, None)
                while flights and flights[0].is_whole:
                    flight = flights.popleft()
                    room += flight.batch.num_tokens
                    yield flight.batch, self._finish(flight), flight.batch.num_tokens
                if owners and flights:
                    self._step(owners)
        finally:
            if owners:
                self.engine.abort_request(list(owners))

    def close(self) -> None:
        """End the engine's processes. They hold nothing that a kill could lose."""
        for child in self.children:
            child.kill()
            child.join()
        self.leash.communicate()

    def _send(self, batch: Batch, owners: dict[str, tuple[_Flight, int]]) -> _Flight:
        flight = _Flight(batch)
        for place, sample in enumerate(batch.samples):
            self.number += 1
            prompt = {"type": "token", "prompt_token_ids": sample.input_ids}
            self.engine.add_request(str(self.number), prompt, self.params)
            owners[str(self.number)] = (flight, place)
        return flight

    def _step(self, owners: dict[str, tuple[_Flight, int]]) -> None:
        """Wait for the next results of the engine.

        Raises:
            EngineError: it is gone.
        """
        try:
            outputs = self.engine.step()
        except RuntimeError as error:  # vLLM's EngineDeadError is one
            raise EngineError(f"vLLM's engine ended: {' '.join(str(error).split())[:300]}") from error
        for output in outputs:
            if output.finished:
                flight, place = owners.pop(output.request_id)
                flight.vectors[place] = output.outputs.data.float().numpy()

    def _finish(self, flight: _Flight) -> np.ndarray:
        if not flight.vectors:
            return np.empty((0, self.dimension), np.float32)
        vectors = np.stack([flight.vectors[place] for place in range(len(flight.vectors))])
        return finish(vectors, self.job.dimensions, self.job.normalize)


def _leash(pids: list[int]) -> subprocess.Popen[bytes]:
    """Start a process that kills `pids` once this one is gone, by SIGKILL too: it reads a pipe that only this one holds."""
    code = "import os, signal, sys; sys.stdin.read(); [os.kill(int(p), signal.SIGKILL) for p in sys.argv[1:]]"
    command = [sys.executable, "-c", code, *map(str, pids)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
