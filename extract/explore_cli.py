"""`stillroom explore`: the options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from extract.command import RunCommand, guarded, set_up_logging


@click.command("explore", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("output")
@click.option("--config-name", default="default", help="configuration within the output [default]")
@click.option("--rows", type=click.IntRange(min=1), help="look at the first N rows only [all]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="compute with torch there [numpy, on one core]")
@click.option("--sample", "indices", multiple=True, type=click.IntRange(min=0), help="show the row of this index")
@click.option("--id", "ids", multiple=True, help="show the row of this id")
@click.option(
    "--token", "tokens", multiple=True, type=int, help="candidates of the N-th token that is captured, from 0"
)
@click.option(
    "--top", default=5, type=click.IntRange(1, 255), help="candidates shown; tokens shown without --token [5]"
)
@click.option("--compare", "other", help="a second logits dataset over the same rows")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="write one page with figures and rows")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object [off]")
def explore_command(output: str, **options: Any) -> None:
    """Show what a dataset of teacher logits holds: its figures, single rows, or how it differs from another.

    \b
    stillroom explore ./out                    figures, in one pass
    stillroom explore ./out --sample 3         a chat coloured by probability
    stillroom explore ./out --html page.html   one page of both, to open anywhere
    stillroom explore ./out --compare other    KL, and where they differ most
    """  # noqa: D301  # \b is click's mark of lines that it must not join
    set_up_logging(is_debug=False)
    sys.exit(guarded(lambda: _explore(output, **options)))


def _explore(output: str, **options: Any) -> int:
    from extract.explore import Request, explore

    request = Request(output, **options, color=_has_colors())
    for text in explore(request):
        click.echo(text)
    return 0


def _has_colors() -> bool:
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
