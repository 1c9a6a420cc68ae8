"""The one seam to whatever runs a model."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Protocol

from builders.job import Job
from extract.batching import TokenBudget
from extract.device import default_device
from extract.model_files import ModelFiles
from extract.sample import Batch


class EngineError(RuntimeError):
    """The model cannot be loaded or run. Exit code 1."""


class Engine(Protocol):
    """Turns batches into results, in the order of the batches, with as many in flight as suits it."""

    dimension: int  # of the vectors, or the number of ids in a distribution
    max_batch_tokens: int  # a good budget for this device

    def run(self, batches: Iterable[Batch], budget: TokenBudget) -> Generator[tuple[Batch, Any, int], None, None]:
        """Yield (batch, results, padded tokens run); vectors are float32 [B, D], final but for storage.

        An empty batch gives an array of no rows. Out of memory halves the budget and goes on.
        """


def load_engine(job: Job, files: ModelFiles, device: str | None) -> Engine:
    """Load the settled job's model.

    Raises:
        EngineError: it cannot be loaded.
    """
    if job.engine == "fake":
        from extract.engines.fake import FakeEngine, FakeTeacher

        return (
            FakeEngine(job.dimensions or files.hidden_size)
            if job.build == "embeddings"
            else FakeTeacher(job, files.vocab_size)
        )
    if job.build == "logits":
        from extract.engines.teacher import TeacherEngine

        return TeacherEngine(job, files, device or default_device())
    if files.modules.is_static:
        from extract.engines.static import StaticEngine

        return StaticEngine(job, files, device or default_device())
    from extract.engines.transformers import TransformersEngine

    return TransformersEngine(job, files, device or default_device())
