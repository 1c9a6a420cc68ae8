"""`stillroom map`: the options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from extract.command import RunCommand, guarded, set_up_logging


@click.command("map", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("output")
@click.option("--to", help="another output (user/name or ./folder) that receives the map [the dataset itself]")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="write one page to look at, without network"
)
@click.option(
    "--push/--no-push", default=True, help="put the map beside the records, as configuration `projection` [--push]"
)
@click.option("--png/--no-png", default=True, help="pictures for the card [--png]")
@click.option(
    "--dims", type=click.IntRange(min=1), help="also the first D principal components, as configuration `pca-D`"
)
@click.option("--method", default="umap", type=click.Choice(["umap", "pca"]), help="how points are laid out [umap]")
@click.option(
    "--clusters", default="kmeans", type=click.Choice(["kmeans", "hdbscan"]), help="how clusters are found [kmeans]"
)
@click.option("--num-clusters", "number", type=click.IntRange(min=2), help="of k-means [sqrt(rows / 2), at most 64]")
@click.option("--neighbors", default=10, type=click.IntRange(1, 100), help="nearest rows of each row [10]")
@click.option("--landmarks", default=20_000, type=click.IntRange(min=16), help="rows that UMAP lays out [20000]")
@click.option("--page-points", default=200_000, type=click.IntRange(min=1), help="points of the page [200000]")
@click.option(
    "--text/--no-text",
    "texts",
    default=True,
    help="texts for names and the page, of the dataset or its source [--text]",
)
@click.option("--seed", default=0, type=int, help="seed of every draw [0]")
@click.option("--column", help="vectors to map, where records have several [the only one]")
@click.option("--config-name", default="default", help="configuration within the output [default]")
@click.option("--private/--public", default=True, help="keep a new Hub dataset (--to) private [--private]")
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="folder of the index [$STILLROOM_CACHE or ~/.cache/stillroom]"
)
def map_command(output: str, **options: Any) -> None:
    """Make a map of an embeddings dataset: points, clusters with names, neighbours, outliers, variance explained.

    It becomes the configuration `projection` of the dataset, which Embedding Atlas opens as it is, and a part of its card.

    \b
    stillroom map ./out --html map.html            one page, in 2-D and 3-D
    stillroom map user/x-embeddings --to user/x-map
    """  # noqa: D301  # \b is click's mark of lines that it must not join
    set_up_logging(is_debug=False)
    sys.exit(guarded(lambda: _map(output, **options)))


def _map(output: str, **options: Any) -> int:
    from builders.curate.mapping import MapOptions
    from extract.map import Request, run_map

    made = {name: options.pop(name) for name in ("method", "clusters", "number", "neighbors", "seed", "landmarks")}
    for line in run_map(Request(output, options=MapOptions(**made), **options)):
        click.echo(line)
    return 0
