"""The query side: embed a text exactly as a dataset's own, from nothing but the job that the dataset holds.

embedder = Embedder.from_dataset("user/dolci-embeddings", prompt_name="query")
query = embedder.embed_text("why is the sky blue?")  # float32 [D]
nearest = (vectors @ query).argsort()[::-1][:10]  # vectors: those of the dataset, float32 [N, D]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from builders.chat import clean_text
from builders.engines import SERVERS
from builders.job import Job
from builders.options import ConfigError
from builders.row import RowError
from builders.selection import select
from builders.source import open_source
from builders.stored import open_stored
from builders.text import Text
from builders.units import Unit, Units
from extract.agree import check_agreement
from extract.batching import TokenBudget
from extract.claim import Plan
from extract.engines import Engine, load_engine
from extract.image_job import settle_images
from extract.images import encoded
from extract.model_files import ModelFiles, read_model_files
from extract.plan import open_existing
from extract.processor import VisionProcessor, load_processor
from extract.sample import Sample
from extract.settings import Settings
from extract.stages import batches
from extract.tokens import load_text_tokenizer
from extract.vectors import VectorWork


class Embedder:
    """The model of a dataset, with its revision, prompt, length, pooling, modules, dimensions and scaling.

    Vectors are float32, whatever the dataset stores: a float32 query finds more than a quantised one.
    """

    def __init__(self, job: Job, files: ModelFiles, engine: Engine) -> None:
        self.job, self.files, self.engine = job, files, engine
        self.tokenizer = load_processor(job, files) if job.image_column else load_text_tokenizer(job, files)

    @classmethod
    def from_dataset(
        cls,
        name: str,
        *,
        config_name: str = "default",
        revision: str | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        model: str | None = None,
        engine: str | None = None,
        device: str | None = None,
        endpoint: str | Sequence[str] = (),
        endpoint_model: str | None = None,
    ) -> Embedder:
        """Load what made a Hub dataset (user/name) or a folder.

        In front of a text stands the prompt that the documents had, unless `prompt_name` takes another of the model's own,
        as `query`, or `instruction` is a text. `model` says where a local model is on this machine, `engine` what runs it
        (all engines give the same vectors), `endpoint` where a server does.

        Raises:
            ValueError: no dataset of embeddings there, or no access to it; the model here is another, or has no such prompt.
            EngineError: the model cannot be loaded, or its server is not ready.
            OSError: the Hub does not answer.
        """
        job = open_stored(name, config_name=config_name, revision=revision).job
        if job.build != "embeddings":
            raise ConfigError(f"{name} is a dataset of {job.build}: there are no embeddings in it")
        made = replace(job, output=name, model=model or job.model, engine=engine or job.engine, fields=())
        if made.engine in SERVERS and not endpoint:
            raise ConfigError(
                f"{name} was made by --engine {made.engine}: give endpoint=URL, or engine='transformers'"
            )
        files = read_model_files(made)
        if files.revision != job.model_revision:
            there = f"{name} was made with {job.model_revision}"
            raise ConfigError(f"the model {made.model} is {files.revision} here, and {there}")
        made = settle_images(_prompted(made, files, prompt_name, instruction), files)
        urls = (endpoint,) if isinstance(endpoint, str) else tuple(endpoint)
        settings = Settings(device=device, endpoint=urls, endpoint_model=endpoint_model)
        return cls(made, files, load_engine(made, files, device, settings))

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return self.engine.dimension

    @property
    def prompt(self) -> str:
        """What stands in front of every text."""
        return self.job.instruction or ""

    def embed_text(self, text: str) -> np.ndarray:
        """Return the vector of a text, float32 [D]. ValueError: there is nothing to embed in it."""
        vector: np.ndarray = self.embed_batch([text])[0]
        return vector

    def embed_batch(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of N texts in their order, float32 [N, D].

        What is too long is cut as in the dataset, except that `balanced`, which knows the parts of a row, cuts the end.

        Raises:
            ValueError: there is nothing to embed in one of them.
            EngineError: the model, or its server, fails.
        """
        if isinstance(texts, str):
            raise ValueError("embed_batch takes a list of texts: embed_text takes one")
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        return self._run(self._samples(texts))

    def embed_multimodal(self, text: str, image: Any) -> np.ndarray:
        """Return the vector of a text, which may be empty, and an image, float32 [D].

        `image` is encoded bytes, a path, an image of Pillow, or a list of these.

        Raises:
            ValueError: the dataset was made of text alone, or the image is broken or too long.
            OSError: there is no such file.
        """
        if not isinstance(self.tokenizer, VisionProcessor):
            raise ValueError(f"{self.job.output} embeds text alone: an image needs a dataset that was made of images")
        images = tuple(map(encoded, image if isinstance(image, list | tuple) else [image]))
        vector: np.ndarray = self._run([_scene(self.tokenizer, 0, Text("", _clean(text), (), images))])[0]
        return vector

    def check(self) -> None:
        """Embed a few rows of the source again and compare them with the dataset: is it the same model?

        A server may run another under the same name. Reads one chunk, the smallest, and a few rows of the source.

        Raises:
            EngineError: the vectors differ (cosine below 0.99).
            ConfigError: the source cannot be read here, or this embedder has another prompt than the documents.
        """
        job = open_stored(str(self.job.output), config_name=self.job.config_name).job
        if self.job.instruction != job.instruction:
            raise ConfigError("check() compares documents: open the Embedder without prompt_name and instruction")
        source = open_source(job, Settings().cache)
        selection = select(job, source)
        assert job.chunk_rows is not None
        units = Units(selection.num_rows, job.chunk_rows)
        plan = Plan(replace(job, engine=self.job.engine), source, selection, units, ())
        check_agreement(plan, self.files, self.engine, open_existing(str(self.job.output)))

    def _run(self, samples: Sequence[Sample]) -> np.ndarray:
        """Vectors of samples of one row each, [N, D]."""
        work, budget = VectorWork(Unit(0, 0, len(samples)), self.job), TokenBudget(self.engine.max_batch_tokens)
        for batch, vectors, _ in self.engine.run(batches(samples, budget, work), budget):
            work.keep(batch.samples, vectors)
        for number, error in sorted(work.failed.items()):  # an image that only its decoder finds broken
            raise ValueError(f"text {number}: {error.detail}")
        assert work.vectors is not None
        return work.vectors[0]

    def _samples(self, texts: Sequence[str]) -> list[Sample]:
        cleaned = [Text("", _clean(text)) for text in texts]
        if isinstance(self.tokenizer, VisionProcessor):
            is_empty = [not text.text for text in cleaned]
            samples = [_scene(self.tokenizer, i, text) for i, text in enumerate(cleaned)]
        else:
            found = self.tokenizer.encode(cleaned)
            is_empty = [not ids for ids, _ in found]
            samples = [Sample(i, 0, ids, truncated) for i, (ids, truncated) in enumerate(found)]
        if any(is_empty):
            i = is_empty.index(True)
            raise ValueError(f"text {i} has nothing to embed: {texts[i]!r}")
        return samples


def _prompted(job: Job, files: ModelFiles, prompt_name: str | None, instruction: str | None) -> Job:
    """The job with another prompt in front of its texts, where one is asked for."""
    if instruction is None and prompt_name is None:
        return job
    asked = replace(job, instruction=instruction, prompt_name=prompt_name)  # refuses both
    prompt = files.prompt_named(prompt_name) if instruction is None else instruction
    return replace(asked, instruction=prompt, prompt_name=None)


def _clean(text: str) -> str:
    return clean_text(text).strip()


def _scene(processor: VisionProcessor, number: int, text: Text) -> Sample:
    try:
        return processor.sample(number, text)
    except RowError as error:
        raise ValueError(f"text {number}: {error.detail}") from None
