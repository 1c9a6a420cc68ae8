"""`stillroom card`: the options."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from extract.command import RunCommand, guarded, set_up_logging
from extract.settings import Settings


@click.command("card", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("output")
@click.option("--config-name", default="default", help="configuration within the output [default]")
@click.option("--split", help="split [the one that the output's job makes]")
@click.option(
    "--preview",
    type=click.Path(path_type=Path, dir_okay=False),
    help="write the card as this HTML page, and leave the output as it is [commit it]",
)
@click.option("--cache-dir", help="folder of unfinished and pending work [$STILLROOM_CACHE or ~/.cache/stillroom]")
def card_command(
    output: str, config_name: str, split: str | None, preview: Path | None, cache_dir: str | None
) -> None:
    """Make the card of a dataset anew, from the job and the counts that it holds. Your own words in it stay.

    \b
    stillroom card ./out --preview card.html     look at it
    stillroom card user/x-embeddings             commit it, with its plots
    """  # noqa: D301  # \b is click's mark of lines that it must not join
    set_up_logging(is_debug=False)
    sys.exit(guarded(lambda: _card(output, config_name, split, preview, Settings(cache_dir=cache_dir))))


def _card(output: str, config_name: str, split: str | None, preview: Path | None, settings: Settings) -> int:
    from extract.card import write_card

    click.echo(write_card(output, config_name, split, preview, settings))
    return 0
