"""What a map is made of, and its pictures: the request, the dataset, figures, the page, images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from builders.curate.density_table import derived_name
from builders.curate.mapping import DataMap, MapOptions
from builders.curate.retrieve import Searcher
from builders.layout import Layout
from builders.options import ConfigError
from cards.map_page import Coloring, MapPage
from cards.map_png import map_png

NAMES_SHOWN = 24


@dataclass(frozen=True)
class Request:
    """What was asked for: the options of the command."""

    output: str
    to: str | None = None
    config_name: str = "default"
    column: str | None = None
    options: MapOptions = field(default_factory=MapOptions)
    dims: int | None = None
    html: Path | None = None
    page_points: int = 200_000
    png: bool = True
    push: bool = True
    texts: bool = True
    private: bool = True
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Mapped:
    """A dataset and its map."""

    request: Request
    searcher: Searcher
    map: DataMap

    @property
    def target(self) -> str:
        """The output that receives the map."""
        return self.request.to or self.searcher.dataset.name

    def layout(self, name: str) -> Layout:
        """Where a configuration stands in the target; in an output of its own the map is the one that loads by default."""
        dataset = self.searcher.dataset
        split = dataset.stored.job.split
        if self.request.to is not None and name == "projection":
            return Layout("default", split)
        return Layout(derived_name(name, dataset), split)

    @property
    def title(self) -> str:
        """Name of the dataset (of a folder, its last part), and of its vectors where there are several."""
        dataset = self.searcher.dataset
        name = Path(dataset.name).name if dataset.revision is None else dataset.name
        return name if dataset.column == "embedding" else f"{name}: {dataset.column}"


def texts_of(request: Request, searcher: Searcher, rows: np.ndarray) -> list[str]:
    """Texts of rows by their positions; empty ones with --no-text."""
    return searcher.texts.at(rows) if request.texts else [""] * len(rows)


def facts(mapped: Mapped) -> dict[str, str]:
    """Figures of the map, for people."""
    made, dataset = mapped.map, mapped.searcher.dataset
    explained = np.cumsum(made.pca.explained)
    shares = ", ".join(f"{d}: {explained[d - 1]:.1%}" for d in (2, 8, 32, 64, 128, 256) if d <= len(explained))
    half, most = made.pca.dims_for(0.5), made.pca.dims_for(0.9)
    kept = ", ".join(f"{name}: {share:.0%}" for name, share in made.kept.items())
    near = made.neighbors
    return {
        "rows": f"{len(made.cluster):,} ({dataset.progress})",
        "model": f"{dataset.stored.job.model}, {dataset.dimension} dimensions",
        "variance explained": f"{shares} by so many components; half by {half}, nine tenths by {most}",
        "neighbours kept": f"{kept} of a row's 10 nearest stay among its 10 nearest",
        "clusters": f"{len(made.names)} by {mapped.request.options.clusters}",
        "neighbours": f"{near.positions.shape[1]} of each row, {near.method}, recall {near.recall:.3f}",
        "outliers": f"{int(made.is_outlier.sum()):,} rows are farther than {made.fence:.3g} from their neighbours",
        "layout": f"{made.method}, seed {mapped.request.options.seed}",
    }


def write_page(mapped: Mapped, path: Path) -> str:
    """Write the page, and say how great it is. ConfigError: the file cannot be written."""
    made, searcher = mapped.map, mapped.searcher
    number = min(mapped.request.page_points, len(made.cluster))
    rows = np.sort(np.random.default_rng(mapped.request.options.seed).permutation(len(made.cluster))[:number])
    colorings = [Coloring("cluster", made.cluster[rows] + 1, made.cluster_names)]
    if "dataset_source" in searcher.rows.column_names:
        names = searcher.rows["dataset_source"].take(rows).to_pylist()
        kinds = sorted({str(name) for name in names})
        place = {name: i for i, name in enumerate(kinds)}
        colorings.append(Coloring("source", np.array([place[str(name)] for name in names]), kinds))
    colorings.append(Coloring("distance to neighbours (rare rows: great)", made.distance[rows]))
    colorings.append(Coloring("outlier", made.is_outlier[rows].astype(np.int64), ["inlier", "outlier"]))
    page = MapPage(
        mapped.title,
        facts(mapped),
        made.flat[rows],
        made.deep[rows],
        searcher.matrix.indices[rows],
        texts_of(mapped.request, searcher, rows),
        colorings,
        _labels(made, rows),
    )
    try:
        path.write_text(page.render(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html {path}: {error.strerror}") from error
    return f"{path}: {len(rows):,} points, {path.stat().st_size / 1e6:.1f} MB"


def _labels(made: DataMap, rows: np.ndarray) -> list[tuple[str, int]]:
    """Names of the greatest clusters, each at its point that is nearest to the middle of it."""
    labels = []
    for number, name in enumerate(made.names[:NAMES_SHOWN]):
        members = np.flatnonzero(made.cluster[rows] == number)
        if len(members):
            points = made.flat[rows[members]]
            middle = np.median(points, axis=0)
            labels.append((name, int(members[np.argmin(((points - middle) ** 2).sum(1))])))
    return labels


def pictures_of(mapped: Mapped) -> dict[str, bytes]:
    """PNGs for the card by their paths in the output, coloured by cluster and by source."""
    made, rows = mapped.map, mapped.searcher.rows
    folder = mapped.layout("projection").meta
    names = made.cluster_names
    found = {f"{folder}/clusters.png": map_png(made.flat, made.cluster + 1, names, f"{mapped.title}: clusters")}
    if "dataset_source" in rows.column_names:
        sources = rows["dataset_source"].to_pylist()
        kinds = sorted({str(name) for name in sources})
        place = {name: i for i, name in enumerate(kinds)}
        groups = np.array([place[str(name)] for name in sources])
        found[f"{folder}/sources.png"] = map_png(made.flat, groups, kinds, f"{mapped.title}: sources")
    return found
