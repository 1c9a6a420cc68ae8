"""An engine without a model: vectors from a hash of the tokens. For dry runs of everything around the model."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Generator, Iterable

import numpy as np

from extract.batching import TokenBudget
from extract.sample import Batch, Sample

SECONDS_PER_BATCH = "STILLROOM_FAKE_SECONDS_PER_BATCH"  # stands for the work of a device
LOG = "STILLROOM_FAKE_LOG"  # file that gets a line for each batch, once it is computed: first row of the unit, samples


class FakeEngine:
    """Unit vectors that depend on the token ids alone. Costs what the environment says per batch, else nothing."""

    max_batch_tokens = 4096

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.seconds = float(os.environ.get(SECONDS_PER_BATCH, "0"))
        self.log = os.environ.get(LOG)

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """See Engine."""
        for batch in batches:
            if batch.samples and self.seconds:
                time.sleep(self.seconds)
            if batch.samples and self.log:
                with open(self.log, "a") as log:
                    log.write(f"{batch.work.unit.start} {len(batch.samples)}\n")
            vectors = [self._vector(sample) for sample in batch.samples]
            yield batch, np.array(vectors, np.float32).reshape(len(vectors), self.dimension), batch.num_tokens

    def _vector(self, sample: Sample) -> np.ndarray:
        seed = zlib.crc32(np.array(sample.input_ids, np.int64).tobytes())
        vector = np.random.default_rng(seed).standard_normal(self.dimension)
        return vector / np.linalg.norm(vector)
