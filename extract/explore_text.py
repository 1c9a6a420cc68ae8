"""What `stillroom explore` prints: the figures of a dataset, and one record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import click

from builders.histogram import QUANTILES, Histogram, quantile_name
from builders.logits_stats import LogitsStats, bar_lines
from builders.options import ConfigError
from builders.token_view import TokenView
from extract.logits_output import Found, LogitsOutput
from extract.paint import Piece, paint, printable
from extract.token_text import TokenText, visible

COLORS = (114, 185, 208, 203)  # of the 256: green, yellow, orange, red, by TokenView.level
PROMPT_COLOR = 245  # grey
CONTEXT = 40  # characters before a token
BAR = 30
ABOUT = ("id", "dataset_source", "truncated")  # columns that a row is introduced by


def dataset_facts(output: LogitsOutput, stats: LogitsStats, num_bytes: float) -> dict[str, str]:
    """Return what a dataset is, as (name, text), in order."""
    job, form, facts = output.job, output.form, stats.facts()
    at_least = "at least " if facts["entropy_is_lower_bound"] else ""
    out = {
        "dataset": f"{output.repo.name}, {output.state}",
        "source": f"{job.source}, split {job.split}",
        "model": f"{job.model} at {job.model_revision}",
        "rows": f"{facts['rows']:,}",
        "tokens": f"{facts['tokens']:,}",
        "encoding": f"{form.encoding}, {form.vocab_size:,} ids, top_p {form.top_p:g}, {form.num_sampled} sampled",
        "bytes": f"{num_bytes / max(1, facts['tokens']):.1f} a token, all columns",
        "kept": f"{facts['entries_per_token']:.1f} ids and {facts['samples_per_token']:.1f} samples a token",
        "at the cap": f"{facts['share_at_cap']:.1%} of tokens have {form.top_p_max_elements} ids or more",
        "entropy": f"{at_least}{stats.entropy.mean:.3f} nats a token",
    }
    if facts["perplexity"] is not None:
        stored, of_stored = facts["share_text_stored"], facts["perplexity_of_stored"]
        least = "at least " if stored < 1 else ""
        out["perplexity of the text"] = f"{least}{facts['perplexity']:.2f}; {stored:.1%} of its tokens are stored"
        out["perplexity of the text"] += f", and theirs is {of_stored:.2f}" if of_stored else ""
    return out


def show_dataset(facts: dict[str, str], stats: LogitsStats) -> Iterator[str]:
    """Yield the lines of a dataset."""
    yield from (f"{name:<{max(map(len, facts))}}  {printable(text)}" for name, text in facts.items())
    for histogram in stats.histograms:
        if histogram.num_values:
            yield f"\n{histogram.name}: {summary(histogram)}"
            yield from bar_lines(histogram)


def summary(histogram: Histogram) -> str:
    """Mean and quantiles on one line."""
    digits = 0 if histogram.is_whole else 4 if histogram.high == 1 else 2
    parts = [f"{quantile_name(q)} {histogram.quantile(q):.{digits}f}" for q in QUANTILES]
    return f"mean {histogram.mean:.{max(1, digits)}f} {histogram.unit}; {', '.join(parts)}"


def show_record(
    found: Found, views: Sequence[TokenView], text: TokenText, chosen: Sequence[TokenView], *, color: bool
) -> Iterator[str]:
    """Yield the lines of one record: what it is, the conversation, and the candidates of some tokens."""
    assert found.logits.input_ids is not None
    ids = found.logits.input_ids.tolist()
    yield f"row {found.about['index']} of {found.path}"
    yield about(found, views) + (f"; {text.hint}" if text.hint else "")
    yield legend(color=color)
    pieces = text.pieces(ids)
    yield "\n" + paint(_pieces(pieces, views), color=color)
    for view in chosen:
        before = "".join(pieces[max(0, view.position - CONTEXT) : view.position])[-CONTEXT:]
        yield from _show_token(view, text, printable(visible(before)), color=color)


def about(found: Found, views: Sequence[TokenView]) -> str:
    """Say what a record is, and how the teacher finds its text."""
    assert found.logits.input_ids is not None
    parts = [f"{name} {value}" for name, value in found.about.items() if name in ABOUT and value is not None]
    parts += [f"{len(found.logits.input_ids):,} tokens, {len(views):,} captured"]
    if views:
        least = "" if all(view.is_stored for view in views) else "at least "
        perplexity = math.exp(-sum(math.log(view.p) for view in views) / len(views))
        parts += [f"perplexity {least}{perplexity:.2f}"]
        parts += [f"entropy {sum(view.entropy for view in views) / len(views):.2f} nats a token"]
    return printable(", ".join(parts))


def legend(*, color: bool) -> str:
    """Say what colours or marks mean."""
    if not color:
        return "marked: tokens of a probability below 10 %"
    names = ("p ≥ 50 %", "≥ 10 %", "≥ 1 %", "below")
    parts = [click.style(name, fg=c) for name, c in zip(names, COLORS, strict=True)]
    return f"{' '.join(parts)} {click.style('prompt', fg=PROMPT_COLOR)}"


def choose(views: Sequence[TokenView], numbers: Sequence[int], top: int) -> list[TokenView]:
    """Return the tokens of these numbers, or else the most surprising ones, in their order.

    Raises:
        ConfigError: there is no such token.
    """
    for number in numbers:
        if not -len(views) <= number < len(views):
            raise ConfigError(f"--token {number}: the row has {len(views)} captured tokens, from 0")
    if numbers:
        return [views[number] for number in numbers]
    return sorted(sorted(views, key=lambda view: view.p)[:top], key=lambda view: view.number)


def percent(p: float, *, is_stored: bool = True) -> str:
    """A probability as people read it."""
    text = f"{100 * p:.1f}%" if p >= 0.001 else f"{100 * p:.1g}%"
    return text if is_stored else f"<{text}"


def _pieces(texts: Sequence[str], views: Sequence[TokenView]) -> Iterator[Piece]:
    here = 0
    for view in views:
        yield Piece("".join(texts[here : view.position]), PROMPT_COLOR)
        note = percent(view.p, is_stored=view.is_stored) if view.level >= 2 else None
        yield Piece(texts[view.position], COLORS[view.level], note)
        here = view.position + 1
    yield Piece("".join(texts[here:]), PROMPT_COLOR)


def _show_token(view: TokenView, text: TokenText, before: str, *, color: bool) -> Iterator[str]:
    shown = printable(visible(text.name(view.id)))
    p = percent(view.p, is_stored=view.is_stored)
    painted = paint([Piece(shown, COLORS[view.level], "")], color=color)
    yield f"\ntoken {view.number}, position {view.position}: …{before}{painted}"
    yield f"  p {p}, entropy {view.entropy:.2f} nats, {view.size} ids hold {percent(1 - view.rest)}"
    for token_id, q in view.candidates:
        mark = " ← the text" if token_id == view.id else ""
        yield _bar(q, printable(visible(text.name(token_id))) + mark, "█")
    others = 1 - sum(q for _, q in view.candidates)
    yield _bar(max(0.0, others), "all others", "░")
    if view.id not in [token_id for token_id, _ in view.candidates]:
        yield f"  {p:>7} {'':<{BAR}} {shown} ← the text"


def _bar(p: float, name: str, block: str) -> str:
    return f"  {percent(p):>7} {block * round(BAR * p):<{BAR}} {name}"


def record_dict(found: Found, views: Sequence[TokenView], text: TokenText) -> dict[str, Any]:
    """One record for JSON: what it is, and its tokens with their candidates."""
    assert found.logits.input_ids is not None
    tokens = [
        {
            **{name: getattr(view, name) for name in ("number", "position", "id", "p", "is_stored")},
            **{name: getattr(view, name) for name in ("entropy", "size", "rest")},
            "text": text.name(view.id),
            "candidates": [{"id": i, "text": text.name(i), "p": p} for i, p in view.candidates],
        }
        for view in views
    ]
    return found.about | {"text": "".join(text.pieces(found.logits.input_ids.tolist())), "captured": tokens}
