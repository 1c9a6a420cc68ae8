"""Encoded images to pixels: the one place that knows Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builders.options import ConfigError
from builders.row import RowError

if TYPE_CHECKING:
    from PIL.Image import Image

# others start programs (EPS) or are rarely fuzzed
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_IMAGE_PIXELS = 89_000_000  # 267 MB as RGB; Pillow warns from here. A small file can claim any size
ORIENTATION = 0x0112  # tag of EXIF; from 5 on, width and height change places


def require_pillow() -> None:
    """Raises: ConfigError: Pillow is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ConfigError("--image-column needs Pillow: pip install 'stillroom[vision]'") from None


def image_size(content: bytes) -> tuple[int, int]:
    """Return (height, width) in pixels as the image is seen, from its header alone.

    Raises:
        RowError: `bad_image` for what is no image, `image_too_large` for one that claims more than MAX_IMAGE_PIXELS.
    """
    with _foreign():
        image = _open(content)
        # of a PNG it reads all pixels
        orientation = image.getexif().get(ORIENTATION, 1) if image.format != "PNG" else 1
        return (image.width, image.height) if orientation >= 5 else (image.height, image.width)


def decode(content: bytes) -> Image:
    """Return the image as RGB: upright, on white where it is transparent, the first frame of several.

    Raises:
        RowError: as `image_size`.
    """
    from PIL import ImageOps

    with _foreign():
        return _on_white(ImageOps.exif_transpose(_open(content))).convert("RGB")


def encoded(image: Any) -> bytes:
    """Return an image as a dataset has it: its bytes, a file's, or a Pillow image as PNG, upright and with all its colours.

    Raises:
        ValueError: it is none of these.
        OSError: the file cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return Path(image).expanduser().read_bytes()
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise ValueError(f"{type(image).__name__} is no image: give a Pillow image, a path or encoded bytes")
    upright, content = ImageOps.exif_transpose(image), BytesIO()
    fits = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else upright.convert("RGB")
    fits.save(content, "PNG", compress_level=1)
    return content.getvalue()


@contextmanager
def _foreign() -> Iterator[None]:
    """A decoder meets foreign bytes, and fails in its own ways."""
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError

    try:
        yield
    except RowError:
        raise
    except UnidentifiedImageError:  # its message holds the address of an object: other bytes in each run
        raise RowError("bad_image", f"no image in {', '.join(FORMATS)}") from None
    except Exception as error:
        reason = "image_too_large" if isinstance(error, DecompressionBombError) else "bad_image"
        raise RowError(reason, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]) from None


def _open(content: bytes) -> Image:
    from PIL import Image

    image = Image.open(BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise RowError(
            "image_too_large", f"{image.width} x {image.height} pixels: at most {MAX_IMAGE_PIXELS:,} are read"
        )
    return image


def _on_white(image: Image) -> Image:
    """As qwen_vl_utils and vLLM do: what is transparent has colours that nobody sees."""
    from PIL import Image

    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white
