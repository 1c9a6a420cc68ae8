"""`stillroom density` and `stillroom sample`: the options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

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
    type=click.Choice(["auto", "exact", "cells", "sketch"]),
    help="all pairs, cells of k-means (recall is measured), a one-pass sketch; auto: all pairs while that is a minute [auto]",
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
