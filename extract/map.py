"""`stillroom map`: a map of an embeddings dataset, put beside its records, and as one page."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builders.curate.atlas import COLUMNS, TEXT_CHARS, map_table, neighbor_column
from builders.curate.mapping import make_map, unit_rows
from builders.curate.retrieve import Searcher
from builders.curate.vectors import open_dataset
from builders.options import ConfigError
from builders.schema import Column, arrow_schema
from builders.units import Unit, Units
from cards.derived import Section
from cards.map_page import shorten
from extract.map_pictures import NAMES_SHOWN, Mapped, Request, facts, pictures_of, texts_of, write_page
from extract.settings import Settings
from hub.derived import put_config
from hub.repo import Repo, is_folder, open_repo

logger = logging.getLogger(__name__)

CHUNK_ROWS = 100_000  # of the configurations that are written: some 25 MB
FAR_SHOWN = 5  # outliers that the command names


def run_map(request: Request) -> Iterator[str]:
    """Make a map, write what was asked for, and yield what is printed.

    Raises:
        ConfigError: no such dataset, too few rows, or a package is missing.
        CommitError: the output cannot take the map.
    """
    if not (request.push or request.html):
        raise ConfigError("--no-push leaves nothing to write: give --html FILE")
    cache = Settings(cache_dir=str(request.cache_dir) if request.cache_dir else None).cache
    try:
        dataset = open_dataset(request.output, column=request.column, config_name=request.config_name)
        searcher = Searcher.open(dataset, None, cache)
        yield f"{dataset.name} is {dataset.progress}"
        made = make_map(searcher.matrix.vectors, request.options, lambda rows: texts_of(request, searcher, rows))
        mapped = Mapped(request, searcher, made)
        pictures = pictures_of(mapped) if request.png and request.push else {}
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from None
    yield from summary(mapped)
    if request.html is not None:
        yield write_page(mapped, request.html)
    if request.push:
        repo = open_repo(mapped.target, private=request.private)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as workdir:
            yield _put_map(mapped, repo, pictures, Path(workdir))
            if request.dims is not None:
                yield _put_components(mapped, repo, request.dims, Path(workdir))
        yield "Embedding Atlas opens it as it is:\n    " + atlas_command(mapped, repo)


def summary(mapped: Mapped) -> Iterator[str]:
    """What is printed of a map: figures, clusters, and the rows that are farthest from all others."""
    for name, text in facts(mapped).items():
        yield f"{name:>18}  {text}"
    made = mapped.map
    sizes = np.bincount(made.cluster + 1, minlength=len(made.cluster_names))
    for number, name in list(enumerate(made.cluster_names))[:NAMES_SHOWN]:
        if sizes[number]:
            yield f"{sizes[number]:>18,}  {_line(name, 80)}"
    far = np.argsort(-made.distance, kind="stable")[:FAR_SHOWN]
    for row, text in zip(far, texts_of(mapped.request, mapped.searcher, far), strict=True):
        yield f"  farthest {made.distance[row]:.3f}  row {mapped.searcher.matrix.indices[row]}: {_line(text, 70)}"


def _line(text: str, room: int) -> str:
    return "".join(c if c.isprintable() else " " for c in shorten(text, room))


def _put_map(mapped: Mapped, repo: Repo, pictures: dict[str, bytes], workdir: Path) -> str:
    layout = mapped.layout("projection")
    section = Section(layout.config_name, layout.split, layout.glob(layout.data), _body(mapped, list(pictures)))
    units = Units(len(mapped.map.cluster), CHUNK_ROWS)
    chunks = ((unit.path(layout.data, layout.split), _map_rows(mapped, unit)) for unit in units)
    message = f"Map of {len(mapped.map.cluster):,} rows"
    size = put_config(repo, layout.of_split(layout.data), chunks, pictures, section.into, message, workdir)
    return f"{repo.name}: configuration {layout.config_name}, {size / 1e6:.1f} MB"


def _map_rows(mapped: Mapped, unit: Unit) -> pa.Table:
    made, searcher = mapped.map, mapped.searcher
    at = slice(unit.start, unit.stop)
    rows = searcher.rows.slice(unit.start, unit.num_rows)
    columns: dict[str, Any] = {
        name: rows[name].combine_chunks() for name in ("id", "dataset_source") if name in rows.column_names
    }
    columns |= {
        "index": searcher.matrix.indices[at],
        "projection_x": made.flat[at, 0],
        "projection_y": made.flat[at, 1],
    }
    columns |= {f"projection_3d_{axis}": made.deep[at, i] for i, axis in enumerate("xyz")}
    columns |= {
        "cluster": made.cluster[at],
        "cluster_name": np.array(made.cluster_names, object)[made.cluster[at] + 1],
    }
    columns |= {"knn_distance": made.distance[at], "outlier": made.is_outlier[at]}
    columns["neighbors"] = neighbor_column(made.neighbors.positions[at], made.neighbors.similarities[at])
    if mapped.request.texts:
        texts = texts_of(mapped.request, searcher, np.arange(unit.start, unit.stop))
        columns["text"] = [shorten(text, TEXT_CHARS) for text in texts]
    return map_table(columns)


def _body(mapped: Mapped, pictures: list[str]) -> str:
    layout = mapped.layout("projection")
    lines = [f"## Map (`{layout.config_name}`)", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in facts(mapped).items()]
    lines += ["", *(f"![Map of the rows, by {Path(path).stem}]({path})" for path in pictures), ""]
    lines += ["| column | |", "|---|---|", *(f"| `{name}` | {about} |" for name, (_, _, about) in COLUMNS.items())]
    return "\n".join(lines)


def _put_components(mapped: Mapped, repo: Repo, dims: int, workdir: Path) -> str:
    """A configuration of the first principal components, as vectors."""
    made, searcher = mapped.map, mapped.searcher
    if not 1 <= dims <= len(made.pca.variance):
        raise ConfigError(f"--dims {dims}: the vectors have {len(made.pca.variance)} dimensions")
    layout, share = mapped.layout(f"pca-{dims}"), float(made.pca.explained[:dims].sum())
    about = f"First {dims} principal components of the vectors of length 1, centred: {share:.1%} of the variance."
    columns = [Column("index", "int64", COLUMNS["index"][2]), Column("embedding", "float32", about, length=dims)]
    units, schema = Units(len(searcher.matrix), CHUNK_ROWS), arrow_schema(columns)

    def table(unit: Unit) -> pa.Table:
        values = made.pca.transform(unit_rows(searcher.matrix.vectors, np.arange(unit.start, unit.stop)), dims)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=schema.field("embedding").type)
        return pa.table([pa.array(searcher.matrix.indices[unit.start : unit.stop]), vectors], schema=schema)

    chunks = ((unit.path(layout.data, layout.split), table(unit)) for unit in units)
    section = Section(
        layout.config_name, layout.split, layout.glob(layout.data), f"## `{layout.config_name}`\n\n{about}"
    )
    put_config(repo, layout.of_split(layout.data), chunks, {}, section.into, f"First {dims} components", workdir)
    return f"{repo.name}: configuration {layout.config_name}, {share:.1%} of the variance"


def atlas_command(mapped: Mapped, repo: Repo) -> str:
    """The command that opens the map in Embedding Atlas, which reads files, or the default configuration of a Hub dataset."""
    layout = mapped.layout("projection")
    files = f"{repo.name}/{layout.of_split(layout.data)}/*/*.parquet"
    inputs = files if is_folder(mapped.target) or not layout.is_default else f"{repo.name} --split {layout.split}"
    text = " --text text" if mapped.request.texts else ""
    return f"embedding-atlas {inputs} --x projection_x --y projection_y --neighbors neighbors{text}"
