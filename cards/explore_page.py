"""One HTML page of a logits dataset: figures, and conversations coloured by probability. Nothing in it is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from builders.histogram import Histogram
from builders.logits_stats import bar_label
from builders.token_view import TokenView

TEMPLATES = Path(__file__).parent / "templates"
WIDTH, HEIGHT = 320, 120  # of the bars, in units of the drawing
NUM_BARS = 32
MAX_TOKENS = 4000  # of a conversation; a page of three is then 5 MB at most


@dataclass(frozen=True)
class PageRow:
    """One conversation. `names` has the text of every id that a view names, as it is shown."""

    title: str
    about: str
    pieces: Sequence[str]  # the text of each token
    views: Sequence[TokenView]
    names: Mapping[int, str]


def render_page(
    title: str,
    facts: Mapping[str, str],
    figures: Mapping[str, tuple[Histogram, str]],
    rows: Sequence[PageRow],
    hint: str,
) -> str:
    """Return the page. `figures`: histograms and their summaries by name; `hint` says what is wrong with the text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["newlines"] = show_newlines
    return environment.get_template("explore.html").render(
        title=title,
        facts=facts,
        charts=[_chart(name, *figure) for name, figure in figures.items() if figure[0].num_values],
        rows=[_row(row) for row in rows],
        data=[[_token(view, row.names) for view in row.views if view.position < MAX_TOKENS] for row in rows],
        hint=hint,
    )


def show_newlines(text: str) -> Markup:
    """Escape a token's text, and show its newlines, which are tokens too."""
    return Markup(str(escape(text)).replace("\n", '<span class="n">↵</span>\n'))


def _chart(name: str, histogram: Histogram, summary: str) -> dict[str, Any]:
    bars = histogram.bars(NUM_BARS)
    most, step = max(bar.number for bar in bars), WIDTH / len(bars)
    heights = [max(1.0, HEIGHT * bar.number / most) if bar.number else 0.0 for bar in bars]
    return {
        "name": name,
        "summary": summary,
        "first": bar_label(histogram, bars[0]),
        "last": bar_label(histogram, bars[-1]),
        "bars": [
            {
                "x": f"{place * step:.2f}",
                "y": f"{HEIGHT + 10 - height:.2f}",
                "width": f"{step * 0.9:.2f}",
                "height": f"{height:.2f}",
                "about": f"{bar_label(histogram, bar)}: {bar.number / histogram.num_values:.2%}",
            }
            for place, (bar, height) in enumerate(zip(bars, heights, strict=True))
        ],
    }


def _row(row: PageRow) -> dict[str, Any]:
    views = {view.position: view for view in row.views}
    tokens = [
        {
            "text": text,
            "number": views[position].number if position in views else None,
            "level": views[position].level if position in views else None,
        }
        for position, text in enumerate(row.pieces[:MAX_TOKENS])
    ]
    cut = max(0, len(row.pieces) - MAX_TOKENS)
    return {"title": row.title, "about": row.about, "tokens": tokens, "cut": cut}


def _token(view: TokenView, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        "number": view.number,
        "position": view.position,
        "text": names[view.id],
        "p": float(f"{view.p:.3g}"),
        "stored": view.is_stored,
        "entropy": round(view.entropy, 3),
        "size": view.size,
        "rest": round(view.rest, 5),
        "candidates": [[names[i], float(f"{p:.4g}"), i == view.id] for i, p in view.candidates],
    }
