"""Vision-language models of the transformers library: images and text as one sequence of hidden states."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from builders.job import Job
from builders.row import RowError
from extract.batching import TokenBudget
from extract.engines.transfer import send
from extract.engines.transformers import TransformersEngine, in_order
from extract.model_files import ModelFiles
from extract.processor import load_processor
from extract.sample import Batch, Sample

TOKEN_INPUTS = ("mm_token_type_ids", "token_type_ids")  # one value per token, beside input_ids and attention_mask
BATCHES_AHEAD = 2  # whose pixels are made while the model runs another: 100 kB a token in Qwen3-VL, 3 GB in 32k tokens
THREADS = min(8, os.cpu_count() or 1)  # that decode and scale


class VisionEngine(TransformersEngine):
    """Runs padded batches with the model's own forward, which knows the positions of image tokens."""

    def __init__(self, job: Job, files: ModelFiles, device: str) -> None:
        super().__init__(job, files, device)
        if hasattr(self.model.config.get_text_config(), "use_cache"):
            self.arguments["use_cache"] = False
        self.processor = load_processor(job, files)
        self.pad_id = self.processor.processor.tokenizer.pad_token_id or 0
        self.takes = inspect.signature(self.model.forward).parameters

    def _pack(self) -> None:
        return None

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, np.ndarray, int], None, None]:
        """See Engine. A sample whose image turns out to be broken leaves its batch."""
        threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pixels")

        def launch(batch: Batch) -> Callable[[], Batch]:
            made = [(sample, threads.submit(self._prepare, sample)) for sample in batch.samples]

            def collect() -> Batch:
                for sample, inputs in made:
                    try:
                        inputs.result()
                    except RowError as error:
                        batch.drop(sample, error)
                return batch

            return collect

        try:
            yield from super().run(in_order(launch, batches, 1 + BATCHES_AHEAD), budget)
        finally:
            threads.shutdown(cancel_futures=True)

    def _prepare(self, sample: Sample) -> None:
        """Make pixels, once; the encoded images are let go. Counts are the processor's own from here on."""
        assert sample.scene is not None
        inputs = self.processor.inputs(sample.scene)
        sample.input_ids, sample.num_image_tokens = inputs["input_ids"][0].tolist(), 0
        sample.scene.images = ()
        sample.scene.inputs = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
            if name in self.takes and name not in ("input_ids", "attention_mask")
        }

    def _more_inputs(self, samples: list[Sample], width: int) -> dict[str, Tensor]:
        """What goes with the token ids: of each token padded to `width`, of images one after the other."""
        names = dict.fromkeys(name for sample in samples if sample.scene for name in sample.scene.inputs)
        return {name: send(self._joined(name, samples, width), self.device) for name in names}

    def _joined(self, name: str, samples: list[Sample], width: int) -> Tensor:
        values = [sample.scene.inputs.get(name) for sample in samples if sample.scene]
        if name not in TOKEN_INPUTS:
            return joined([value for value in values if value is not None])
        rows = torch.zeros(len(samples), width, dtype=torch.long)
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[: value.shape[1]] = value[0]
        return rows


def joined(values: list[Tensor]) -> Tensor:
    """Concatenate along the first axis; the others are padded with zeros at their end, as processors do."""
    shape: list[Any] = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [size - have for size, have in zip(shape, value.shape[1:], strict=True)]
        widths = [width for extra in reversed(missing) for width in (0, extra)]
        padded.append(nn.functional.pad(value, widths) if any(missing) else value)
    return torch.cat(padded)
