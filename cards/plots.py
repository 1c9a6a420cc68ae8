"""Small SVG plots for a card: bars, and nothing to install. One file is 2 to 5 kB."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 180  # of the bars
LEFT, TOP, BOTTOM = 8, 34, 30
MAX_LABELS = 10
COLOR, INK = "#5b7fb4", "#6b7280"  # on white and on black


class PlotBar(NamedTuple):
    """One bar: what stands under it, what pointing at it says, and how high it is."""

    label: str
    about: str
    number: int


def bars_svg(title: str, bars: Sequence[PlotBar]) -> str:
    """Return an SVG of bars of equal width."""
    most, step = max((bar.number for bar in bars), default=1) or 1, WIDTH / max(1, len(bars))
    total = sum(bar.number for bar in bars) or 1
    every = -(-len(bars) // MAX_LABELS)
    parts = []
    for place, bar in enumerate(bars):
        x, height = LEFT + place * step, HEIGHT * bar.number / most
        if bar.number:
            height = max(1.0, height)
            about = f"<title>{escape(bar.about)}: {bar.number:,} ({bar.number / total:.1%})</title>"
            size = f'width="{step * 0.88:.1f}" height="{height:.1f}"'
            parts.append(f'<rect x="{x:.1f}" y="{TOP + HEIGHT - height:.1f}" {size} fill="{COLOR}">{about}</rect>')
        if place % every == 0:
            middle = x + step * 0.44
            parts.append(_text(middle, TOP + HEIGHT + 18, bar.label, "middle"))
    whole = f"{WIDTH + 2 * LEFT} {TOP + HEIGHT + BOTTOM}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole}" width="{WIDTH + 2 * LEFT}" '
        f'font-family="sans-serif" font-size="12" role="img">\n'
        + "\n".join([_text(LEFT, 18, title, "start"), *parts])
        + f'\n<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}" stroke="{INK}"/>\n</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{INK}" text-anchor="{anchor}">{escape(text)}</text>'
