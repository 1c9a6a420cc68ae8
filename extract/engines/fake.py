"""An engine without a model: vectors from a hash of the tokens. For dry runs of everything around the model."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Generator, Iterable

import numpy as np

from builders.job import Job
from extract.batching import TokenBudget
from extract.sample import Batch, Sample
from extract.token_logits import TokenLogits

SECONDS_PER_BATCH = "STILLROOM_FAKE_SECONDS_PER_BATCH"  # stands for the work of a device
LOG = "STILLROOM_FAKE_LOG"  # file that gets a line for each batch, once it is computed: first row of the unit, samples


class Fake:
    """What both engines without a model share: a batch costs what the environment says, else nothing."""

    max_batch_tokens = 4096

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.seconds = float(os.environ.get(SECONDS_PER_BATCH, "0"))
        self.log = os.environ.get(LOG)

    def spend(self, batch: Batch) -> None:
        """Take the time of a batch, and note it."""
        if batch.samples and self.seconds:
            time.sleep(self.seconds)
        if batch.samples and self.log:
            with open(self.log, "a") as log:
                log.write(f"{batch.work.unit.start} {len(batch.samples)}\n")


class FakeEngine(Fake):
    """Unit vectors that depend on the token ids alone."""

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """See Engine."""
        for batch in batches:
            self.spend(batch)
            vectors = [self._vector(sample) for sample in batch.samples]
            yield batch, np.array(vectors, np.float32).reshape(len(vectors), self.dimension), batch.num_tokens

    def _vector(self, sample: Sample) -> np.ndarray:
        seed = zlib.crc32(np.array(sample.input_ids, np.int64).tobytes())
        for image in sample.scene.images if sample.scene else ():
            seed = zlib.crc32(image, seed)
        vector = np.random.default_rng(seed).standard_normal(self.dimension)
        return vector / np.linalg.norm(vector)


class FakeTeacher(Fake):
    """Distributions that depend on seed, row and token alone: up to 50 ids of falling probability, and a hundredth beyond.

    `dimension`, the number of ids, is that of the model's files.
    """

    def __init__(self, job: Job, vocab_size: int) -> None:
        super().__init__(vocab_size or 1000)
        self.job = job

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, list[TokenLogits], int], None, None]:
        """See Engine."""
        for batch in batches:
            self.spend(batch)
            yield batch, [self._teach(sample) for sample in batch.samples], batch.num_tokens

    def _teach(self, sample: Sample) -> TokenLogits:
        job, tokens = self.job, len(sample.targets)
        draw = np.random.default_rng([job.seed, sample.index])
        sizes = draw.integers(1, min(job.top_p_max_elements, 50), tokens, endpoint=True)
        listed = -np.arange(50.0) + np.where(np.arange(50) < sizes[:, None], 0, -np.inf)  # logits [tokens, 50]
        logsumexp = _logsumexp(listed) - np.log(0.99)
        p = np.exp(listed - logsumexp[:, None])
        is_kept = p > 0
        drawn = np.full(tokens, job.num_sampled)
        if job.select == "global":
            is_kept = p >= job.global_threshold
            drawn = np.ceil((1 - (p * is_kept).sum(1)) / job.global_threshold - draw.random(tokens)).astype(int)
        width = int(drawn.max(initial=0))
        last_ids = np.arange(self.dimension // 2, self.dimension, dtype=np.int32)[-512:]
        others = np.tile(last_ids, (tokens, 1))
        sampled = draw.permuted(others, axis=1)[:, :width]
        sampled = np.where(np.arange(width) < drawn[:, None], sampled, self.dimension)
        sampled.sort(axis=1)
        last = np.take_along_axis(sampled, np.maximum(drawn - 1, 0)[:, None], 1) if width else sampled
        sampled = np.where(sampled < self.dimension, sampled, np.where(drawn[:, None] > 0, last, 0))
        several = job.temperatures if len(job.temperatures) > 1 else ()
        at = [_logsumexp(listed / t) - np.log(0.99) for t in several if t != 1]
        ids = np.tile(np.arange(50, dtype=np.int32), (tokens, 1))[is_kept]
        return TokenLogits(
            ids,
            -ids.astype(np.float32),
            is_kept.sum(1).astype(np.uint16),
            logsumexp,
            sampled.astype(np.int32),
            np.full(sampled.shape, -9, np.float32),
            drawn.astype(np.uint16),
            np.array(at).reshape(len(at), tokens).T,
            np.full((tokens, len(several)), 0.01, np.float32),
        )


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    return np.log(np.exp(logits).sum(1))
