"""`stillroom density` and `stillroom sample`: the options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from builders.options import ConfigError
from extract.command import RunCommand, guarded, set_up_logging


def dataset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """OUTPUT, and which of its vectors."""
    for make in (
        click.option("--cache-dir", help="folder of what is computed once [$STILLROOM_CACHE or ~/.cache/stillroom]"),
        click.option("--column", help="vectors to take, where rows have several [the only one]"),
        click.option("--config-name", default="default", help="configuration within the output [default]"),
        click.argument("output"),
    ):
        command = make(command)
    return command


@click.command("density", cls=RunCommand, context_settings={"max_content_width": 100})
@dataset_options
@click.option("--k", default=10, type=click.IntRange(min=1), help="nearest neighbours of a row [10]")
@click.option(
    "--method",
    default="auto",
    type=click.Choice(["auto", "exact", "cells", "hnsw", "sketch"]),
    help="all pairs; cells of k-means or a graph, which measure their recall; a sketch; auto: all pairs or cells [auto]",
)
@click.option("--seed", default=0, help="of cells and sketches [0]")
@click.option("--save", type=click.Path(path_type=Path), help="also write density_weights.npy, ids and metadata there")
@click.option("--commit/--no-commit", default=True, help="store it as a configuration of OUTPUT [--commit]")
def density_command(output: str, config_name: str, column: str | None, cache_dir: str | None, **options: Any) -> None:
    """Measure how densely each row of OUTPUT lies among the others, and store weights that even this out.

    The configuration `density` holds, for each `index`: knn_distance, weight (1 / density, sum 1) and neighbors.
    """
    set_up_logging(is_debug=False)

    def work() -> int:
        from extract.curate import open_vectors, run_density

        for line in run_density(open_vectors(output, column, config_name), cache=cache_dir, **options):
            click.echo(line)
        return 0

    sys.exit(guarded(work))


@click.command("sample", cls=RunCommand, context_settings={"max_content_width": 100})
@dataset_options
@click.option("--budget", type=click.IntRange(min=1), help="rows to take [all that --dedup leaves]")
@click.option(
    "--by",
    default="density",
    type=click.Choice(["density", "uniform", "quota", "coverage"]),
    help="rare rows more often, all alike, equal parts of each source, or the farthest each time (k-center) [density]",
)
@click.option(
    "--dedup",
    "threshold",
    type=click.FloatRange(0, 1),
    help="first leave out what has this cosine to a kept row [off]",
)
@click.option("--source-column", default="dataset_source", help="column of --by quota [dataset_source]")
@click.option("--seed", default=0, help="of draws [0]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="write ids.txt, indices.npy or records.parquet [only figures]"
)
@click.option("--to", help="write the chosen rows of the source as a dataset (user/name or ./folder) with a card")
@click.option("--private/--public", default=True, help="keep a new Hub dataset (--to) private [--private]")
def sample_command(output: str, config_name: str, column: str | None, cache_dir: str | None, **options: Any) -> None:
    """Take a subset of OUTPUT, and tell how well it covers the whole, beside a random subset of equal size.

    The suffix of --out says what is written: .txt ids, .npy indices, .parquet the records with all columns. --to writes the
    rows of the source, not their vectors.
    """
    set_up_logging(is_debug=False)

    def work() -> int:
        from extract.curate import open_vectors, run_sample

        if options["budget"] is None and options["threshold"] is None:
            raise ConfigError("--budget or --dedup: say how many rows to take, or which to leave out")
        for line in run_sample(open_vectors(output, column, config_name), cache=cache_dir, **options):
            click.echo(line)
        return 0

    sys.exit(guarded(work))
