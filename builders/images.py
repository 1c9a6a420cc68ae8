"""The images of a row: from its image columns, and from the parts of its conversation that stand for one."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builders.chat import shorten
from builders.job import Job
from builders.row import RowError
from builders.source import is_local
from builders.text import Text, TextView

IMAGE_PARTS = ("image", "image_url", "input_image")  # `type` of a part of a message that is an image
NO_TEXT = ("empty_text", "messages_missing")  # reasons of a row that may still have images


@dataclass(frozen=True)
class ImageView:
    """How a row becomes a text with images in front of it. Either may be missing, not both.

    A value of an image column is an image or a list of them: encoded bytes, `{bytes, path}` as `datasets` stores them, a
    `data:` address, or a path inside `folder`. Nothing is fetched over the network. Where messages have parts of type
    `image`, these take the images in order, and a part may bring its own.
    """

    text: TextView
    image_columns: tuple[str, ...]
    folder: Path | None = None

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """Name the columns that the view needs. ValueError where the source lacks one; it may lack text of any kind."""
        for name in self.image_columns:
            if name not in available:
                raise ValueError(f"no column {name!r} for --image-column: the source has {', '.join(available)}")
        messages = self.text.messages_column
        has_text = self.text.template or "text" in available or messages in available
        texts = self.text.columns(available) if has_text else ()
        chat = (messages,) if messages is not None and messages in available else ()
        return tuple(dict.fromkeys([*texts, *chat, *self.image_columns]))

    def render(self, data: Mapping[str, Any]) -> tuple[Text]:
        """Make the text of one row, with its images.

        Raises:
            RowError: `no_image` where an image is missing, or the row has nothing at all; `bad_image` for what is none;
                those of the text view.
        """
        images = tuple(row_images(data, self.image_columns, self.text.messages_column, self.folder))
        view = replace(self.text, empty_text=None) if images else self.text
        try:
            (text,) = view.render(data)
        except RowError as error:
            if error.reason not in NO_TEXT:
                raise
            if not images:
                raise RowError("no_image", f"no image in {', '.join(self.image_columns)}, and no text") from None
            text = Text("", "")
        return (replace(text, images=images),)


def row_view(job: Job) -> TextView | ImageView:
    """The view of the job: what of a row is embedded."""
    if not job.image_column:
        return job.view
    source = Path(str(job.source)).expanduser()
    folder = (source if source.is_dir() else source.parent) if is_local(str(job.source)) else None
    return ImageView(job.view, job.image_column, folder)


def row_images(
    data: Mapping[str, Any], columns: Sequence[str], messages_column: str | None, folder: Path | None
) -> Iterator[bytes]:
    """Yield the encoded images of a row, in order.

    Raises:
        RowError: see ImageView.
    """
    given = [image for name in columns if name != messages_column for image in _images(data.get(name), folder)]
    parts = list(image_parts(data.get(messages_column))) if messages_column is not None else []
    if not parts:
        yield from given
        return
    rest = iter(given)
    num_empty = 0
    for part in parts:
        own = part.get("image") or part.get("image_url") or part.get("bytes")
        image = next(rest, None) if own is None else image_bytes(own, folder)
        num_empty += own is None
        if image is None:
            raise RowError(
                "no_image", f"the conversation has {num_empty} images without content, the row {len(given)}"
            )
        yield image
    if len(given) > num_empty:
        raise RowError("no_image", f"the conversation places {num_empty} of the {len(given)} images of the row")


def image_parts(messages: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of a conversation that are images; what is malformed is for the text view to refuse."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            return
    for message in messages if isinstance(messages, list | tuple) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS:
                yield part


def _images(value: Any, folder: Path | None) -> Iterator[bytes]:
    for one in value if isinstance(value, list | tuple) else [value]:
        image = image_bytes(one, folder)
        if image is not None:
            yield image


def image_bytes(value: Any, folder: Path | None) -> bytes | None:
    """Return the encoded image that a value holds, None for a null.

    Raises:
        RowError: `no_image` for an address or a file that is not there, `bad_image` for a value of another kind.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("bytes", "url", "path") if value.get(key) is not None), None)
    if value is None:
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise RowError("bad_image", f"{shorten(value)} is no image")
    if value.startswith("data:"):
        return _from_data(value)
    return _from_file(value, folder)


def _from_data(address: str) -> bytes:
    head, _, content = address.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not in base64")
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RowError("bad_image", f"{shorten(address)}: {error}") from None


def _from_file(name: str, folder: Path | None) -> bytes:
    """Read a file of a local source. A row may name no file outside its folder: it could be anybody's."""
    if folder is None or "://" in name:
        raise RowError("no_image", f"the row has no image but an address of one: {shorten(name)}")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RowError("no_image", f"{shorten(name)} is outside the folder of the source")
    try:
        return path.read_bytes()
    except OSError as error:
        raise RowError("no_image", f"{shorten(name)}: {error.strerror}") from None
