"""Text in a terminal, coloured or marked: conversations come from anywhere, and must not steer the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import click

# C0 but tab and newline, DEL, C1, and the marks that turn the direction of text
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Piece(NamedTuple):
    """Some text; `color` is click's, `note` stands for it where there are no colours: ⟦text note⟧."""

    text: str
    color: str | int | None = None
    note: str | None = None


def paint(pieces: Iterable[Piece], *, color: bool) -> str:
    """Join pieces of text, in their colours, or those that have a note between ⟦ and ⟧."""
    return "".join(_painted(piece, color=color) for piece in pieces)


def _painted(piece: Piece, *, color: bool) -> str:
    text = printable(piece.text)
    if color:
        return text if piece.color is None or not text else click.style(text, fg=piece.color)
    if piece.note is None:
        return text
    return f"⟦{text} {piece.note}⟧" if piece.note else f"⟦{text}⟧"


def printable(text: str) -> str:
    """Show control characters as pictures of them."""
    return CONTROL.sub(lambda found: _picture(ord(found[0])), text)


def _picture(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "�"
