"""`stillroom status`: the options."""

from __future__ import annotations

import sys

import click

from extract.command import RunCommand, guarded, set_up_logging
from extract.settings import Settings


@click.command("status", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("output")
@click.option("--config-name", default="default", help="configuration within the output [default]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object [off]")
@click.option("--cache-dir", help="folder of unfinished and pending work [$STILLROOM_CACHE or ~/.cache/stillroom]")
def status_command(output: str, config_name: str, as_json: bool, cache_dir: str | None) -> None:
    """Show how far an output is: units, rows, time left, commits, what is pending, whether a run goes on here.

    Exit code 0 if that can be told, whatever it is; 2 if there is no such output.
    """
    set_up_logging(is_debug=False)
    sys.exit(guarded(lambda: _status(output, config_name, as_json, Settings(cache_dir=cache_dir))))


def _status(output: str, config_name: str, as_json: bool, settings: Settings) -> int:
    from extract.status import as_text, look

    status = look(output, config_name, settings)
    click.echo(status.to_json() if as_json else "\n".join(as_text(status)))
    return 0
