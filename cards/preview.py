"""A card as one HTML page to look at before anybody else does: nothing in it is fetched, and no script runs."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import yaml

from builders.options import ConfigError
from cards.readme import split_front_matter

TEMPLATE = Path(__file__).parent / "templates" / "preview.html"
COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)
PICTURES = ("image/svg+xml", "image/png", "image/jpeg", "image/webp", "image/gif")


def render_preview(readme: str, title: str, read: Callable[[str], bytes | None]) -> str:
    """Return the page of a README.md. `read` gives the pictures beside it; HTML in the Markdown is shown as text.

    Raises:
        ConfigError: there is no library that reads Markdown.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ConfigError('--preview needs markdown-it-py: pip install "stillroom[viz]"') from error
    data, body = split_front_matter(readme)
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    tokens = parser.parse(COMMENT.sub("", body))
    for token in tokens:
        _embed(token.children or (), read)
    return (
        TEMPLATE.read_text()
        .replace("{{ title }}", escape(title))
        .replace("{{ yaml }}", escape(yaml.safe_dump(data, sort_keys=False, allow_unicode=True)))
        .replace("{{ body }}", parser.renderer.render(tokens, parser.options, {}))
    )


def _embed(tokens: Iterable[Any], read: Callable[[str], bytes | None]) -> None:
    """Put the bytes of pictures in the place of their paths; one that is not there leaves its title."""
    for token in tokens:
        _embed(token.children or (), read)
        if token.type == "image":
            path = str(token.attrs["src"])
            kind, _ = mimetypes.guess_type(path)
            content = read(path) if kind in PICTURES and "://" not in path else None
            text = base64.b64encode(content).decode() if content else ""
            token.attrs["src"] = f"data:{kind};base64,{text}" if content else "data:,"
