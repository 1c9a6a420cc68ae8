"""The one seam to whatever runs a model."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Protocol

from builders.engines import SERVERS
from builders.job import Job
from builders.options import ConfigError
from extract.batching import TokenBudget
from extract.device import check_device, default_device
from extract.model_files import ModelFiles
from extract.sample import Batch
from extract.settings import Settings


class EngineError(RuntimeError):
    """The model cannot be loaded or run. Exit code 1."""


class EngineLostError(EngineError):
    """What runs the model is gone and may come back: the run stops with everything safe, as at its deadline."""


class Engine(Protocol):
    """Turns batches into results, in the order of the batches, with as many in flight as suits it."""

    dimension: int  # of the vectors, or the number of ids in a distribution
    max_batch_tokens: int  # a good budget for this device

    def run(self, batches: Iterable[Batch], budget: TokenBudget) -> Generator[tuple[Batch, Any, int], None, None]:
        """Yield (batch, results, padded tokens run); vectors are float32 [B, D], final but for storage.

        An empty batch gives an array of no rows. Out of memory halves the budget and goes on. An engine that waits long yields
        empty batches of its own, so that the run can stop.

        Raises:
            EngineLostError: a server was away for too long.
        """


def load_engine(job: Job, files: ModelFiles, device: str | None, settings: Settings | None = None) -> Engine:
    """Load the settled job's model.

    Raises:
        EngineError: it cannot be loaded.
        ConfigError: the engine is not installed, or does not do what the job asks for, or there is no such device.
    """
    settings = settings or Settings()
    if settings.device_map and (job.build != "logits" or job.engine != "transformers"):
        raise ConfigError("--device-map is for --build logits with --engine transformers: leave it out")
    if job.build == "lengths":
        from extract.lengths import NoEngine

        return NoEngine()
    if job.engine == "fake":
        from extract.engines.fake import FakeEngine, FakeTeacher

        return (
            FakeEngine(job.dimensions or files.hidden_size)
            if job.build == "embeddings"
            else FakeTeacher(job, files.vocab_size)
        )
    if device is not None and job.engine == "transformers":
        check_device(device)
    if job.build == "logits":
        from extract.engines.teacher import TeacherEngine

        return TeacherEngine(job, files, device or default_device(), settings)
    if job.image_column:
        from extract.engines.vision import VisionEngine

        return VisionEngine(job, files, device or default_device())
    if job.engine in SERVERS:
        from extract.engines.remote import RemoteEngine

        return RemoteEngine(job, files, settings)
    if job.engine == "vllm":
        from extract.engines.vllm import VllmEngine

        return VllmEngine(job, files, settings.gpu_memory_utilization, settings.max_batch_tokens)
    if files.modules.is_static:
        from extract.engines.static import StaticEngine

        return StaticEngine(job, files, device or default_device())
    from extract.engines.transformers import TransformersEngine

    return TransformersEngine(job, files, device or default_device())
