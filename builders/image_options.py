"""Options of a build whose rows have images."""

from __future__ import annotations

from dataclasses import dataclass

from builders.options import ConfigError, option

IMAGE_ENGINES = ("transformers", "fake")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The part of a job that `--image-column` begins: a vision-language model embeds the row's images and text as one."""

    image_column: tuple[str, ...] = option(
        (),
        "columns of images or lists of them, as in image,chart; the model gets them before the text [no images]",
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

    def check_images(self, build: str, engine: str, pooling: str | None, has_fields: bool) -> None:
        """Check what the options of images say together, and with those of the job.

        Raises:
            ConfigError: with the flag, the value and what would be right.
        """
        if not self.image_column:
            for name in ("min_pixels", "max_pixels"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"--{name.replace('_', '-')} is of images: name their column with --image-column"
                    )
            return
        if engine not in IMAGE_ENGINES:
            raise ConfigError(f"--engine {engine} takes no images: --image-column needs --engine transformers")
        others = {
            f"--build {build}": build != "embeddings",
            "--fields": has_fields,
            f"--pooling {pooling}": pooling == "logits-mean",
        }
        for given, is_wrong in others.items():
            if is_wrong:
                raise ConfigError(f"{given} does not go with --image-column: a row has one vector, of hidden states")
        if (self.min_pixels or 0) > (self.max_pixels or 10**18):
            raise ConfigError(f"--min-pixels is {self.min_pixels}: --max-pixels is {self.max_pixels}, which is less")
