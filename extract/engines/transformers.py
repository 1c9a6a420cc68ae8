"""Any encoder or decoder of the transformers library, on any device torch has."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from builders.job import Job
from builders.options import ConfigError
from extract.batching import TokenBudget
from extract.engines import EngineError
from extract.engines.packed import PackedModel, PackedUnsupportedError
from extract.engines.pooling import finish, pool
from extract.engines.steps import load_steps
from extract.engines.transfer import send
from extract.engines.weights import load_weights
from extract.model_files import ModelFiles
from extract.sample import Batch, Sample
from extract.tokens import load_text_tokenizer

logger = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 2048  # activations of a small model stay in the cache; 8k costs 8 %
DEVICE_BATCH_TOKENS = 32_768  # fills a large accelerator; out of memory halves it
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # not linear, or not in the head
# glibc's mallopt. Activations (12 MB at most) else go back to the system after each layer, and every page faults in again:
# 80,000 faults in 57,000 tokens of a small bfloat16 model, 5 % of its CPU time
MALLOC_KEEPS = {-3: 2**25, -1: 2**28}  # M_MMAP_THRESHOLD (32 MB, its largest), M_TRIM_THRESHOLD
IN_FLIGHT = 2  # batches queued on a device, so that it never waits for the host

Result = tuple[Tensor, int]  # vectors [B, D] on the device, padded tokens


def keep_memory() -> None:
    """Have the C library keep freed activations for the next layer, where it knows how (glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows
        return
    for parameter, value in MALLOC_KEEPS.items():
        mallopt(parameter, value)


class TransformersEngine:
    """Runs batches without padding where the device and the model can, and pools on the device."""

    pad_id = 0  # of tokens that no one sees

    def __init__(self, job: Job, files: ModelFiles, device: str) -> None:
        self.job = job
        self.device = torch.device(device)
        self.model, self.head = _load_model(job, files, self.device)
        config = self.model.config.get_text_config()
        if not -config.num_hidden_layers - 1 <= job.layer <= config.num_hidden_layers:
            raise ConfigError(f"--layer is {job.layer}: the model has layers 0 to {config.num_hidden_layers}")
        self.steps = load_steps(files, self.device)
        size = self.head.out_features if self.head else files.modules.size(config.hidden_size, job.pooling or "last")
        self.dimension = min(job.dimensions or 10**9, size)
        self.num_prompt_tokens = _num_prompt_tokens(job, files)
        self.is_cpu = self.device.type == "cpu"
        self.max_batch_tokens = CPU_BATCH_TOKENS if self.is_cpu else DEVICE_BATCH_TOKENS
        self.arguments: dict[str, Any] = {"use_cache": False} if hasattr(self.model.config, "use_cache") else {}
        if job.layer != -1:
            self.arguments["output_hidden_states"] = True
        if self.is_cpu:
            keep_memory()
        self.packed: PackedModel | None = self._pack() if self.device.type in ("cpu", "cuda") else None

    def _pack(self) -> PackedModel | None:
        try:
            return PackedModel(self.model, self.job.max_length or 0, **self.arguments)
        except PackedUnsupportedError as error:
            logger.warning("padded batches: this model does not run without padding (%s)", error)
            return None

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """See Engine."""
        yield from self._embed_on_cores(batches, budget) if self.is_cpu else self._embed_on_device(batches, budget)

    def _embed_on_cores(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """One batch per core, one thread each: no core waits for another inside an operation."""
        cores = torch.get_num_threads()

        def run(batch: Batch) -> tuple[Batch, np.ndarray, int]:
            vectors, padded = self._run(batch.samples, budget)
            return batch, vectors.numpy(), padded

        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool_:
            yield from in_order(lambda batch: pool_.submit(run, batch).result, batches, cores + 1)

    def _embed_on_device(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """Launch ahead of the copy back, so that the device computes while the host waits for the batch before."""

        def launch(batch: Batch) -> Callable[[], tuple[Batch, np.ndarray, int]]:
            vectors, padded = self._run(batch.samples, budget)
            host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=self.device.type == "cuda")
            host.copy_(vectors, non_blocking=True)
            done = torch.Event(self.device)
            done.record()

            def fetch() -> tuple[Batch, np.ndarray, int]:
                done.synchronize()
                return batch, host.numpy(), padded

            return fetch

        yield from in_order(launch, batches, IN_FLIGHT)

    @torch.inference_mode()
    def _run(self, samples: list[Sample], budget: TokenBudget) -> Result:
        """Vectors of a batch, of any size: what does not fit is run in halves."""
        if not samples:
            return torch.empty(0, self.dimension), 0
        return split_on_oom(self._forward, samples, budget)

    def _forward(self, samples: list[Sample]) -> Result:
        lengths = [sample.num_tokens for sample in samples]
        hidden, padded = self._hidden(samples, lengths)
        vectors = pool(hidden, lengths, self.job.pooling or "last", self.num_prompt_tokens)
        return finish(self._project(vectors), self.job.dimensions, self.job.normalize), padded

    def _project(self, pooled_BD: Tensor) -> Tensor:  # B, D: axes
        """Through what stands behind the pooling: the head for logits, or the model's own modules."""
        if self.head is None:
            vectors: Tensor = self.steps(pooled_BD)
            return vectors
        logits: Tensor = self.head(pooled_BD.to(self.head.weight.dtype)).float()
        return logits

    def _hidden(self, samples: list[Sample], lengths: list[int]) -> tuple[Tensor, int]:
        """Hidden states [N, D] of all tokens, one sample after the other, and the tokens run for them."""
        if self.packed is not None:
            return self.packed([sample.input_ids for sample in samples], self.job.layer), sum(lengths)
        width = max(lengths)
        ids = torch.full((len(samples), width), self.pad_id, dtype=torch.long)
        for row, sample in zip(ids, samples, strict=True):
            row[: sample.num_tokens] = torch.tensor(sample.input_ids)
        mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        places = mask.flatten().nonzero()[:, 0]  # on the host: no wait for the device
        output = self.model(
            input_ids=send(ids, self.device),
            attention_mask=send(mask.long(), self.device),
            **self._more_inputs(samples, width),
            **self.arguments,
        )
        states: Tensor = output[0] if self.job.layer == -1 else output.hidden_states[self.job.layer]
        return states.flatten(0, 1)[send(places, self.device)], ids.numel()

    def _more_inputs(self, samples: list[Sample], width: int) -> dict[str, Tensor]:
        """What the model takes beside ids and mask, of samples padded to `width`."""
        return {}


def _num_prompt_tokens(job: Job, files: ModelFiles) -> int:
    """Tokens in front of a text that are not pooled: those of the prompt, where the model leaves them out."""
    if files.modules.include_prompt or not job.instruction:
        return 0
    return load_text_tokenizer(job, files).num_prompt_tokens


def _load_model(job: Job, files: ModelFiles, device: torch.device) -> tuple[Any, Any]:
    """Return (backbone, head): the head is the language model's, for `logits-mean`, else None."""
    shown, dtype = str(job.model), job.dtype or "float32"
    kind = AutoModelForCausalLM if job.pooling == "logits-mean" else AutoModel
    more = {"trust_remote_code": job.trust_remote_code}
    whole = load_weights(kind, files.location, dtype, str(device), shown=shown, **more)
    if job.pooling != "logits-mean":
        return whole, None
    changed = [
        name for name in LOGIT_CHANGES if getattr(whole.config.get_text_config(), name, None) not in (None, 1.0)
    ]
    if changed:
        raise EngineError(
            f"--pooling logits-mean: {job.model} changes its logits after the head ({', '.join(changed)})"
        )
    return whole.base_model, whole.get_output_embeddings()


def split_on_oom(forward: Callable[[list[Sample]], Result], samples: list[Sample], budget: TokenBudget) -> Result:
    """Run a batch; where memory does not suffice, halve the budget and run its halves.

    Raises:
        EngineError: a single sample does not fit.
    """
    try:
        return forward(samples)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
    longest = max(sample.num_tokens for sample in samples)
    if len(samples) == 1:
        raise EngineError(f"one text of {longest} tokens does not fit into memory: give a smaller --max-length")
    budget.halve(longest * len(samples))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(samples) // 2
    parts = [split_on_oom(forward, part, budget) for part in (samples[:half], samples[half:])]
    return torch.cat([vectors for vectors, _ in parts]), sum(padded for _, padded in parts)


def in_order(launch: Callable[[Any], Callable[[], Any]], items: Iterable[Any], depth: int) -> Iterator[Any]:
    """Launch up to `depth` items ahead and yield their results in order."""
    flying: deque[Callable[[], Any]] = deque()
    for item in items:
        flying.append(launch(item))
        if len(flying) >= depth:
            yield flying.popleft()()
    while flying:
        yield flying.popleft()()
