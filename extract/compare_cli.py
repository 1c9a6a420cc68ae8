"""`stillroom compare`: the options, and the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builders.options import ConfigError
from extract.command import RunCommand, guarded, set_up_logging

if TYPE_CHECKING:
    from builders.curate.agreement import Agreement

NAME_CHARS = 40


@click.command("compare", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("a")
@click.argument("b")
@click.option("--column", "columns", multiple=True, help="vectors of A, and given twice of B [the only ones]")
@click.option("--config-name", default="default", help="configuration within both [default]")
@click.option("--neighbors", default=10, type=click.IntRange(1, 100), help="neighbours that are compared, k [10]")
@click.option("--seed", default=0, type=int, help="seed of the rows whose neighbours are compared [0]")
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="folder of the index [$STILLROOM_CACHE or ~/.cache/stillroom]"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object [off]")
def compare_command(a: str, b: str, as_json: bool, **options: object) -> None:
    """Compare two embeddings datasets over the same rows: two models, or two fields of one dataset.

    \b
    cosine    mean and 5th percentile, where both have the same dimensions
    CKA       linear; 1 for the same geometry up to rotation and scale
    overlap   share of the k nearest that A and B have in common; and by chance

    \b
    stillroom compare user/x-minilm user/x-qwen
    stillroom compare ./out ./out \\
        --column embedding_think --column embedding_response
    """  # noqa: D301  # \b is click's mark of lines that it must not join
    set_up_logging(is_debug=False)
    sys.exit(guarded(lambda: _compare(a, b, as_json, **options)))  # type: ignore[arg-type]


def _compare(
    a: str,
    b: str,
    as_json: bool,
    columns: tuple[str, ...],
    config_name: str,
    neighbors: int,
    seed: int,
    cache_dir: Path | None,
) -> int:
    from builders.curate.comparing import compare
    from builders.curate.retrieve import Searcher
    from builders.curate.vectors import open_dataset

    if len(columns) > 2:
        raise ConfigError("--column: give it once, for both, or twice, for A and for B")
    try:
        names = (columns[0], columns[-1]) if columns else (None, None)
        datasets = [
            open_dataset(x, column=name, config_name=config_name) for x, name in zip((a, b), names, strict=True)
        ]
        first, second = (Searcher.open(one, None, cache_dir) for one in datasets)
        found = list(compare(first, second, neighbors, seed))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    states = {x: str(one.progress) for x, one in zip((a, b), datasets, strict=True)}
    if as_json:
        click.echo(
            json.dumps({"a": a, "b": b, "k": neighbors, "state": states, "groups": [g.to_dict() for g in found]})
        )
        return 0
    for name, state in states.items():
        click.echo(f"{name} is {state}")
    for line in _table(found):
        click.echo(line)
    return 0


def _table(found: list[Agreement]) -> Iterator[str]:
    yield f"{'':<{NAME_CHARS}} {'rows':>9} {'cosine':>7} {'5 %':>7} {'CKA':>6} {'overlap':>8} {'chance':>7}"
    for one in found:
        mean, low = (f"{x:.3f}" for x in one.cosine) if one.cosine else ("-", "-")
        name = "".join(c if c.isprintable() else " " for c in one.name)[:NAME_CHARS]
        figures = f"{mean:>7} {low:>7} {one.cka:>6.3f} {one.overlap:>8.3f} {one.chance:>7.3f}"
        yield f"{name:<{NAME_CHARS}} {one.num_rows:>9,} {figures}"
