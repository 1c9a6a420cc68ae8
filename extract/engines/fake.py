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
    """Distributions over 1,000 ids that depend on seed, row and token alone."""

    def __init__(self, job: Job) -> None:
        super().__init__(1000)
        self.job = job

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, list[TokenLogits], int], None, None]:
        """See Engine."""
        for batch in batches:
            self.spend(batch)
            yield batch, [self._teach(sample) for sample in batch.samples], batch.num_tokens

    def _teach(self, sample: Sample) -> TokenLogits:
        tokens, drawn = len(sample.targets), self.job.num_sampled
        draw = np.random.default_rng([self.job.seed, sample.index])
        counts = draw.integers(1, min(self.job.top_p_max_elements, 50), tokens, endpoint=True).astype(np.uint8)
        ids = np.concatenate([np.empty(0, np.int32), *(np.arange(count, dtype=np.int32) for count in counts)])
        others = np.tile(np.arange(500, 1000, dtype=np.int32), (tokens, 1))
        sampled = np.sort(draw.permuted(others, axis=1)[:, :drawn], axis=1)
        return TokenLogits(
            ids,
            -ids.astype(np.float32),
            counts,
            np.array([np.log(np.exp(-np.arange(count)).sum() / 0.99) for count in counts]),
            sampled,
            np.full((tokens, drawn), -9, np.float32),
            np.full(tokens, drawn, np.uint16),
        )
