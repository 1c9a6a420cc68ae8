"""Static models of sentence-transformers and model2vec: a vector per token, averaged. No transformer, no attention."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from builders.job import Job
from extract.batching import TokenBudget
from extract.engines.pooling import finish
from extract.engines.steps import load_steps
from extract.model_files import ModelFiles
from extract.modules import STATIC_NAMES, WEIGHTS
from extract.sample import Batch, Sample

BATCH_TOKENS = 65_536  # one look-up each: what a call costs is small beside it


class StaticEngine:
    """Means of token vectors, in float32 on the given device. The tokenizer takes most of the time."""

    def __init__(self, job: Job, files: ModelFiles, device: str) -> None:
        from safetensors.torch import load_file

        self.job, self.device = job, torch.device(device)
        self.table = _fold(load_file(files.folder / WEIGHTS)).to(self.device)
        self.steps = load_steps(files, self.device)
        self.dimension = min(job.dimensions or 10**9, files.size("mean"))
        self.max_batch_tokens = BATCH_TOKENS

    @torch.inference_mode()
    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """See Engine."""
        for batch in batches:
            vectors = self._embed(batch.samples) if batch.samples else torch.empty(0, self.dimension)
            yield batch, vectors.cpu().numpy(), batch.num_tokens

    def _embed(self, samples: list[Sample]) -> Tensor:
        ids = torch.tensor([id_ for sample in samples for id_ in sample.input_ids])
        starts = torch.tensor([0, *(sample.num_tokens for sample in samples[:-1])]).cumsum(0)
        means = nn.functional.embedding_bag(ids.to(self.device), self.table, starts.to(self.device), mode="mean")
        return finish(self.steps(means), self.job.dimensions, self.job.normalize)


def _fold(weights: Mapping[str, Tensor]) -> Tensor:
    """One vector per token id, float32 [V, D]. model2vec may keep fewer vectors with a `mapping`, and `weights` of tokens."""
    table = next(weights[name] for name in STATIC_NAMES if name in weights).float()
    if STATIC_NAMES[0] in weights:
        return table
    if "mapping" in weights:
        table = table[weights["mapping"].long()]
    return table * weights["weights"].float()[:, None] if "weights" in weights else table
