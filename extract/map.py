"""`stillroom map`: a map of an embeddings dataset, put beside its records, and as one page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from builders.curate.atlas import COLUMNS, TEXT_CHARS, map_table, neighbor_column
from builders.curate.mapping import make_map, unit_rows
from builders.curate.retrieve import Searcher
from builders.curate.vectors import cache_folder, open_dataset
from builders.layout import Layout
from builders.options import ConfigError
from builders.schema import Column, arrow_schema
from builders.units import Unit, Units
from cards.map_page import shorten
from cards.section import put_section
from extract.derived import commit_derived
from extract.map_pictures import NAMES_SHOWN, Mapped, Request, facts, pictures_of, texts_of, write_page

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
    try:
        dataset = open_dataset(request.output, column=request.column, config_name=request.config_name)
        if request.dims is not None and request.dims > dataset.dimension:
            raise ConfigError(f"--dims {request.dims}: the vectors have {dataset.dimension} dimensions")
        searcher = Searcher.open(dataset, None, request.cache_dir)
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
        yield _put_map(mapped, pictures)
        if request.dims is not None:
            yield _put_components(mapped, request.dims)
        yield f"Embedding Atlas opens it as it is:\n    {atlas_command(mapped)}"


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


def _put_map(mapped: Mapped, pictures: dict[str, bytes]) -> str:
    units, layout = Units(len(mapped.map.cluster), CHUNK_ROWS), mapped.layout("projection")
    parts = ((unit.path(layout.data, layout.split), _map_rows(mapped, unit)) for unit in units)
    columns = _map_rows(mapped, Unit(0, 0, 1)).column_names
    return _commit(mapped, layout, parts, _body(mapped, list(pictures), columns), pictures)


def _commit(
    mapped: Mapped, layout: Layout, parts: Iterable[tuple[str, pa.Table]], text: str, others: dict[str, bytes]
) -> str:
    name, request = layout.config_name, mapped.request
    config = {"config_name": name, "data_files": [{"split": layout.split, "path": layout.glob(layout.data)}]}

    def write_card(readme: str, loaded: str) -> str:
        return put_section(readme, "map" if layout.is_default else name, text, [config])

    cache, about = cache_folder(request.cache_dir), {"n": len(mapped.map.cluster)}
    target = commit_derived(
        mapped.target, layout.data, parts, about, write_card, cache, others, private=request.private,
        replaces="map" if layout.is_default and request.to else None,
    )  # fmt: skip
    return f'load_dataset("{target}", "{name}", split="{layout.split}")'


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


def _body(mapped: Mapped, pictures: list[str], columns: Sequence[str]) -> str:
    layout = mapped.layout("projection")
    lines = [f"## Map (`{layout.config_name}`)", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in facts(mapped).items()]
    lines += ["", *(f"![Map of the rows, by {PurePosixPath(path).stem}]({path})" for path in pictures), ""]
    lines += ["| column | |", "|---|---|", *(f"| `{name}` | {COLUMNS[name][2]} |" for name in columns)]
    return "\n".join(lines)


def _put_components(mapped: Mapped, dims: int) -> str:
    """A configuration of the first principal components, as vectors."""
    made, searcher = mapped.map, mapped.searcher
    layout, share = mapped.layout(f"pca-{dims}"), float(made.pca.explained[:dims].sum())
    about = f"First {dims} principal components of the vectors of length 1, centred: {share:.1%} of the variance."
    columns = [Column("index", "int64", COLUMNS["index"][2]), Column("embedding", "float32", about, length=dims)]
    units, schema = Units(len(searcher.matrix), CHUNK_ROWS), arrow_schema(columns)

    def table(unit: Unit) -> pa.Table:
        values = made.pca.transform(unit_rows(searcher.matrix.vectors, np.arange(unit.start, unit.stop)), dims)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=schema.field("embedding").type)
        return pa.table([pa.array(searcher.matrix.indices[unit.start : unit.stop]), vectors], schema=schema)

    chunks = ((unit.path(layout.data, layout.split), table(unit)) for unit in units)
    return _commit(mapped, layout, chunks, f"## `{layout.config_name}`\n\n{about}", {})


def atlas_command(mapped: Mapped) -> str:
    """The command that opens the map in Embedding Atlas: it reads files, or the default configuration of a Hub dataset."""
    layout = mapped.layout("projection")
    is_hub = not os.path.isdir(os.path.expanduser(mapped.target))
    inputs = f"{mapped.target}/{layout.of_split(layout.data)}/*/*.parquet"
    if is_hub and layout.is_default:
        inputs = f"{mapped.target} --split {layout.split}"
    text = " --text text" if mapped.request.texts else ""
    return f"embedding-atlas {inputs} --x projection_x --y projection_y --neighbors neighbors{text}"
