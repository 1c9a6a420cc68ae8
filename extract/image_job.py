"""Settling what a job leaves open of images: the prompt and the pixels that a vision-language model was trained with."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

from builders.job import Job
from builders.options import ConfigError
from extract.images import require_pillow
from extract.model_files import ModelFiles

# Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py: the system prompt, and tokens of an image
INSTRUCTION = "Represent the user's input."
MIN_TOKENS, MAX_TOKENS = 4, 1800


def settle_images(job: Job, files: ModelFiles) -> Job:
    """Fill in instruction and pixels of a job with images.

    Raises:
        ConfigError: Pillow is missing, or an option does not fit the model.
    """
    if not job.image_column:
        return job
    require_pillow()
    side = token_side(files.folder)
    for name in ("min_pixels", "max_pixels"):
        if side is None and getattr(job, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: {job.model} has its own rule for the size of images")
    instruction = (files.prompt_named(job.prompt_name) or None) if job.instruction is None else job.instruction
    if _read(files.folder / "config.json").get("model_type", "").startswith("qwen3_vl"):
        instruction = INSTRUCTION if instruction is None else instruction.strip()
        if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
            instruction += "."
    if side is None:
        return replace(job, instruction=instruction or "")
    return replace(
        job,
        instruction=instruction or "",
        min_pixels=job.min_pixels or min(MIN_TOKENS * side**2, job.max_pixels or MIN_TOKENS * side**2),
        max_pixels=job.max_pixels or max(MAX_TOKENS * side**2, job.min_pixels or 0),
    )


def token_side(folder: Path) -> int | None:
    """Pixels of an image token's side (28 or 32) where a model takes images of any size, as Qwen-VL; else None."""
    processor = _read(folder / "processor_config.json").get("image_processor") or _read(
        folder / "preprocessor_config.json"
    )
    if not str(processor.get("image_processor_type", "")).startswith("Qwen2VLImageProcessor"):
        return None
    return int(processor.get("patch_size", 14)) * int(processor.get("merge_size", 2))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
