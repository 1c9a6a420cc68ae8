"""`stillroom search`: the options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builders.options import ConfigError
from extract.command import RunCommand, guarded, set_up_logging

if TYPE_CHECKING:
    from builders.curate.retrieve import Hit

SHOWN_CHARS = 300


@click.command("search", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("output")
@click.argument("query", default="")
@click.option("--image", multiple=True, type=Path, help="image of the query, for a dataset made of images [none]")
@click.option("--top-k", default=5, type=click.IntRange(min=1), help="rows to show [5]")
@click.option("--where", multiple=True, help="condition on a column: COLUMN=VALUE, or != < <= > >= ~; all must hold")
@click.option("--column", help="vectors to search in, where records have several [the only one]")
@click.option("--config-name", default="default", help="configuration within the output [default]")
@click.option("--prompt-name", help="prompt of the model for the query, as in query [the dataset's own]")
@click.option("--model", help="where a local model is on this machine [as in the dataset's job]")
@click.option("--engine", help="what runs the model [as in the dataset's job]")
@click.option("--endpoint", multiple=True, help="server that runs it, for a dataset made by a server")
@click.option("--device", help="device, as in cuda:1 or cpu [the accelerator]")
@click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="folder of the index [$STILLROOM_CACHE or ~/.cache/stillroom]"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object a row, with all its columns [off]")
def search_command(output: str, query: str, **options: Any) -> None:
    """Find the rows of an embeddings dataset that are nearest to QUERY, by cosine, exactly.

    The query is embedded by the dataset's own model with its own prompt. The first search reads the dataset into the cache.

    \b
    stillroom search ./out "how does photosynthesis work"
    stillroom search user/x-embeddings "prime numbers" \\
        --where dataset_source=math --where "num_tokens<500"
    """  # noqa: D301  # \b is click's mark of lines that it must not join
    set_up_logging(is_debug=False)
    sys.exit(guarded(lambda: _search(output, query, **options)))


def _search(
    output: str,
    query: str,
    top_k: int,
    where: tuple[str, ...],
    image: tuple[Path, ...],
    cache_dir: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    from extract.search import open_search

    given = {name: value for name, value in options.items() if value}
    try:
        searcher = open_search(output, cache=cache_dir, **given)
        hits = searcher.retrieve(query, top_k, where, list(image) or None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not searcher.progress.is_complete:
        click.echo(f"{output} is {searcher.progress}", err=True)
    for number, hit in enumerate(hits, 1):
        found = {"index": hit.index, "score": round(hit.score, 6), **hit.record}
        click.echo(json.dumps(found, ensure_ascii=False, default=str) if as_json else _shown(number, hit))
    if not hits:
        click.echo("no row fulfils all conditions", err=True)
    return 0


def _shown(number: int, hit: Hit) -> str:
    record = hit.record
    names = [str(record[name]) for name in ("id", "dataset_source") if record.get(name)]
    text = " ".join(str(record["text"])[: 2 * SHOWN_CHARS].split())
    line = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS].rstrip()} …"
    return f"{number}. {hit.score:.4f}  row {hit.index}{''.join(f' · {name}' for name in names)}\n   {_plain(line)}"


def _plain(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)
