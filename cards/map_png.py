"""Pictures of a map for the card: PNG, drawn by matplotlib without a screen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_POINTS = 100_000  # a picture of 900 pixels shows no more
MAX_NAMES = 24  # names in the picture, of the greatest groups


def map_png(points: np.ndarray, groups: np.ndarray, names: Sequence[str], title: str, seed: int = 0) -> bytes:
    """Draw points [N, 2] coloured by group (int [N], into `names`), with the names of the greatest groups in the picture.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _figure()
    rows = np.random.default_rng(seed).permutation(len(points))[:MAX_POINTS]
    colors = np.array([_hue(n) for n in range(len(names))])
    size = float(np.clip(9000 / max(len(rows), 1), 0.3, 12))
    axes.scatter(*points[rows].T, s=size, c=colors[groups[rows]], linewidths=0, alpha=0.7, rasterized=True)
    sizes = np.bincount(groups, minlength=len(names))
    for group in np.argsort(-sizes, kind="stable")[:MAX_NAMES]:
        if sizes[group]:
            x, y = np.median(points[groups == group], axis=0)
            box = {"facecolor": "white", "alpha": 0.65, "edgecolor": "none", "pad": 1.2}
            axes.text(x, y, _short(names[group]), fontsize=7, ha="center", va="center", bbox=box, parse_math=False)
    axes.set_title(_short(title, 90), fontsize=10, parse_math=False)
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    _drop_covered(figure, axes)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


def _drop_covered(figure: Any, axes: Any) -> None:
    """Take away names that would lie over that of a greater group; the page has all of them."""
    figure.draw_without_rendering()
    kept: list[Any] = []
    for text in list(axes.texts):
        area = text.get_window_extent()
        if any(area.overlaps(other) for other in kept):
            text.remove()
        else:
            kept.append(area)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'stillroom[viz]', or --no-png") from None
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    return figure, figure.subplots()


def _hue(number: int) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hls_to_rgb((number * 137.508 + 200) % 360 / 360, (0.45, 0.58, 0.34)[number // 12 % 3], 0.62)


def _short(text: str, room: int = 34) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= room else f"{line[: room - 1]}…"
