"""One HTML page of a map: points in two and three dimensions, drawn by the page itself. Nothing in it is fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
LEVELS = 65535  # a coordinate or a number is 16 bits: finer than a screen
MAX_CATEGORIES = 60  # the rarest of more become "others": nobody tells 200 colours apart
TEXT_BYTES = 40 << 20  # of all hover texts: a page of 200,000 points then has some 55 MB and opens in seconds
MAX_CHARS, MIN_CHARS = 400, 60  # of one of them


@dataclass(frozen=True)
class Coloring:
    """What points can be coloured by: categories (`names` of `values` int [N]), or with no names a number (float [N])."""

    name: str
    values: np.ndarray
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class MapPage:
    """N points: `flat` [N, 2], `deep` [N, 3], the `index` of each row in the source, and what is shown on pointing at it."""

    title: str
    facts: Mapping[str, str]
    flat: np.ndarray
    deep: np.ndarray
    index: np.ndarray
    texts: Sequence[str]
    colorings: Sequence[Coloring]
    labels: Sequence[tuple[str, int]] = ()  # names that stand in the picture, each at one of the points

    def render(self) -> str:
        """Return the page."""
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
        )
        room = max(MIN_CHARS, min(MAX_CHARS, TEXT_BYTES // max(1, len(self.texts))))
        order = np.random.default_rng(0).permutation(len(self.index))  # so that the first rows are a sample of all
        place = np.argsort(order)
        data = {
            "number": len(order),
            "flat": _packed(_levels(self.flat)[order]),
            "deep": _packed(_levels(self.deep)[order]),
            "index": _packed(self.index[order].astype(np.float64)),  # whole up to 2^53, as JavaScript's numbers
            "texts": [shorten(self.texts[row], room) for row in order],
            "colorings": [_coloring(one, order) for one in self.colorings],
            "labels": [[name, int(place[row])] for name, row in self.labels],
        }
        return environment.get_template("map.html").render(title=self.title, facts=self.facts, data=data)


def shorten(text: str, room: int) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 2 * room].split())
    return line if len(line) <= room and len(text) <= 2 * room else f"{line[:room].rstrip()} …"


def _levels(points: np.ndarray) -> np.ndarray:
    """Coordinates in 16 bits, all axes by one scale, the middle of the picture in the middle of the range."""
    low, high = points.min(0, initial=np.inf), points.max(0, initial=-np.inf)
    if not len(points):
        return np.empty(points.shape, np.uint16)
    width = max(float((high - low).max()), 1e-12)
    scaled = (points - (low + high) / 2) / width + 0.5
    return np.clip(np.round(scaled * LEVELS), 0, LEVELS).astype(np.uint16)


def _coloring(one: Coloring, rows: np.ndarray) -> dict[str, Any]:
    if one.names is None:  # by rank: a skewed figure would else be one colour
        rank = np.argsort(np.argsort(one.values, kind="stable"), kind="stable")
        ranks = (rank * LEVELS // max(1, len(rank) - 1)).astype(np.uint16)[rows]
        low, high = (f"{float(f(one.values)):.3g}" for f in (np.min, np.max)) if len(one.values) else ("", "")
        return {"name": one.name, "names": None, "low": low, "high": high, "values": _packed(ranks)}
    sizes = np.bincount(one.values, minlength=len(one.names))
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    shown = order[:MAX_CATEGORIES]
    place = np.full(len(one.names), len(shown), np.uint16)
    place[shown] = np.arange(len(shown))
    names = [f"{one.names[i]}" for i in shown] + (["others"] if len(order) > len(shown) else [])
    counts = [int(sizes[i]) for i in shown] + [int(sizes[order[len(shown) :]].sum())] * (len(order) > len(shown))
    return {"name": one.name, "names": names, "counts": counts, "values": _packed(place[one.values][rows])}


def _packed(values: np.ndarray) -> str:
    """Little-endian bytes as base64."""
    return base64.b64encode(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes()).decode()
