"""Options of a build whose rows have images."""

from __future__ import annotations

from dataclasses import dataclass

from builders.options import option


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The part of a job that `--image-column` begins: a vision-language model embeds the row's images and text as one."""

    image_column: tuple[str, ...] = option(
        (),
        "columns that hold images or lists of them, as in image,chart; the model gets them before the text",
        group="Images",
    )
    min_pixels: int | None = option(
        None,
        "a smaller image is scaled up to so many pixels, where a model takes any size [4,096 for Qwen3-VL: 4 tokens]",
        group="Images",
        minimum=1,
    )
    max_pixels: int | None = option(
        None,
        "a larger image is scaled down to so many, where a model takes any size [1,843,200 for Qwen3-VL: 1,800 tokens]",
        group="Images",
        minimum=1,
    )
