"""`stillroom explore`: what people see of stored teacher logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builders.logits_stats import LogitsStats
from builders.options import ConfigError
from builders.token_view import TokenView, token_views
from cards.explore_page import PageRow, render_page
from extract.explore_compare import compare_outputs
from extract.explore_text import about, choose, dataset_facts, record_dict, show_dataset, show_record, summary
from extract.logits_output import Found, LogitsOutput
from extract.paint import printable
from extract.token_text import TokenText, load_token_text, visible

PAGE_ROWS = 3  # on a page that is asked for no row
PAGE_TOP = 8  # candidates of a token on a page


@dataclass(frozen=True)
class Request:
    """What was asked for: the options of the command."""

    output: str
    config_name: str = "default"
    rows: int | None = None
    device: str | None = None
    indices: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    top: int = 5
    other: str | None = None
    html: Path | None = None
    as_json: bool = False
    color: bool = False


@dataclass(frozen=True)
class Shown:
    """One record with its tokens."""

    found: Found
    views: list[TokenView]


def explore(request: Request) -> Iterator[str]:
    """Yield what is printed.

    Raises:
        ConfigError: no such output, row, token or device.
        OSError, RuntimeError: the output does not answer.
    """
    output = LogitsOutput.open(request.output, request.config_name)
    if request.tokens and not (request.indices or request.ids):
        raise ConfigError("--token needs a row: give --sample INDEX or --id ID")
    if request.other is not None:
        other = LogitsOutput.open(request.other, request.config_name)
        yield from compare_outputs(output, other, request.rows, request.top, as_json=request.as_json)
    elif (request.indices or request.ids) and request.html is None:
        yield from _records(output, request)
    else:
        yield from _dataset(output, request)


def _dataset(output: LogitsOutput, request: Request) -> Iterator[str]:
    stats, num_bytes = gather(output, request.rows, request.device)
    facts = dataset_facts(output, stats, num_bytes)
    if request.html is not None:
        shown = _find(output, request, PAGE_TOP)
        write_page(request.html, output, facts, stats, shown)
        yield f"{request.html}: {stats.num_rows:,} rows in figures, {len(shown)} to read"
    elif request.as_json:
        about = {"output": output.repo.name, "revision": output.revision, "is_complete": output.is_complete}
        yield json.dumps({**about, "bytes": num_bytes, **stats.to_dict(), "about": facts}, indent=1)
    else:
        yield from show_dataset(facts, stats)


def write_page(
    path: Path, output: LogitsOutput, facts: dict[str, str], stats: LogitsStats, shown: list[Shown]
) -> None:
    """Write one HTML page.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = load_token_text(output.job, output.form)
    figures = {histogram.name: (histogram, summary(histogram)) for histogram in stats.histograms}
    rows = [_page_row(one, text) for one in shown]
    try:
        path.write_text(render_page(output.repo.name, facts, figures, rows, text.hint), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html {path}: {error.strerror}") from error


def _page_row(one: Shown, text: TokenText) -> PageRow:
    input_ids = one.found.logits.input_ids
    assert input_ids is not None
    ids = {i for view in one.views for i, _ in view.candidates} | {view.id for view in one.views}
    return PageRow(
        f"row {one.found.about['index']}",
        about(one.found, one.views),
        [printable(piece) for piece in text.pieces(input_ids.tolist())],
        one.views,
        {i: printable(visible(text.name(i))) for i in ids},
    )


def _records(output: LogitsOutput, request: Request) -> Iterator[str]:
    text = load_token_text(output.job, output.form)
    shown = _find(output, request, request.top)
    if request.as_json:
        yield json.dumps({"rows": [record_dict(one.found, one.views, text) for one in shown]}, indent=1)
        return
    for one in shown:
        chosen = choose(one.views, request.tokens, request.top)
        yield from show_record(one.found, one.views, text, chosen, color=request.color)


def _find(output: LogitsOutput, request: Request, top: int) -> list[Shown]:
    """The rows that were asked for, or else some from all over the dataset."""
    found = [output.find(index=index) for index in request.indices] + [output.find(id=i) for i in request.ids]
    found = found or [output.find(index=index) for index in output.some_indices(PAGE_ROWS)]
    return [Shown(one, token_views(one.logits, top)) for one in found]


def gather(output: LogitsOutput, rows: int | None, device: str | None) -> tuple[LogitsStats, float]:
    """Pass over a dataset once; return its figures, and its bytes.

    Raises:
        ConfigError: there is no such device.
    """
    from tqdm import tqdm

    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch finds no GPU here; leave it out")
    stats, num_bytes = LogitsStats(output.form), 0.0
    with tqdm(unit=" tokens", unit_scale=True, disable=None, leave=False) as bar:  # none where stderr is a file
        for batch, size in output.batches(rows):
            stats.add(batch.logits, batch.targets, len(batch), device or "")
            num_bytes += size
            bar.update(int(batch.num_tokens.sum()))
    return stats, num_bytes
