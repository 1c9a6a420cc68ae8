"""`stillroom explore A --compare B`: how two teachers differ, in figures and in the places where they differ most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from builders.logits_compare import FORMULA, Comparison, Record, joined
from builders.logits_stats import bar_lines
from builders.options import ConfigError
from builders.token_view import TokenView, token_views
from extract.explore_text import CONTEXT, percent
from extract.logits_output import LogitsOutput
from extract.paint import printable
from extract.token_text import TokenText, load_token_text, visible


def compare_outputs(a: LogitsOutput, b: LogitsOutput, rows: int | None, top: int, *, as_json: bool) -> Iterator[str]:
    """Yield what is printed of two datasets.

    Raises:
        ConfigError: they have other vocabularies, no row in common, or a record says not where its tokens are.
    """
    if a.form.tokenizer != b.form.tokenizer:
        raise ConfigError(f"--compare {b.repo.name}: its ids mean other tokens than those of {a.repo.name}")
    comparison = gather_both(a, b, rows)
    facts = comparison.facts()
    if not comparison.num_rows:
        raise ConfigError(f"--compare {b.repo.name}: no row of {a.repo.name} is in it")
    if as_json:
        yield json.dumps({"a": a.repo.name, "b": b.repo.name, **facts}, indent=1)
        return
    yield from _figures(a, b, facts, comparison)
    rows_, tokens = facts["rows_that_differ_most"][:top], facts["tokens_that_differ_most"][:top]
    if rows_:
        yield "\nrows that differ most, by mean KL"
        yield from (f"  row {row['index']}: {row['kl']:.3g}" for row in rows_)
        yield "\ntokens that differ most, and what each finds likeliest there"
        text = load_token_text(a.job, a.form)
        for token in tokens:
            yield from _token(a, b, token, text)


def gather_both(a: LogitsOutput, b: LogitsOutput, rows: int | None) -> Comparison:
    """Pass over both at once; with `rows`, over the first of A."""
    from tqdm import tqdm

    comparison, left = Comparison(), rows
    with tqdm(unit=" tokens", unit_scale=True, disable=None, leave=False) as bar:
        for index, one, two in joined(_records(a), _records(b)):
            if left == 0:
                break
            try:
                comparison.add(index, one, two)
            except ValueError as error:
                raise ConfigError(f"row {index}: {error}") from None
            bar.update(0 if one is None else len(one.counts))
            left = left if left is None or one is None else left - 1
    return comparison


def _records(output: LogitsOutput) -> Iterator[Record]:
    for batch, _ in output.batches():
        yield from ((int(batch.index[number]), batch.record(number)) for number in range(len(batch)))


def _figures(a: LogitsOutput, b: LogitsOutput, facts: dict[str, Any], comparison: Comparison) -> Iterator[str]:
    yield f"A             {printable(a.repo.name)}, {a.state}: {a.job.model}"
    yield f"B             {printable(b.repo.name)}, {b.state}: {b.job.model}"
    only = f"{facts['rows_only_in_a']:,} in A alone, {facts['rows_only_in_b']:,} in B alone"
    yield f"rows          {facts['rows']:,} in both, {only}"
    unmatched = f"{facts['tokens_unmatched']:,} have no match: captured by one alone, or after other text"
    yield f"tokens        {facts['tokens']:,} in both; {unmatched}"
    yield f"top-1         the same for {facts['same_top']:.2%}"
    for name, key, digits in (("nucleus size", "nucleus_size", 1), ("entropy", "entropy", 4)):
        one, two, gap = facts[key].values()
        yield f"{name:<13} {one:.{digits}f} in A, {two:.{digits}f} in B; mean of |A - B| {gap:.{digits}f}"
    if facts["tokens"]:
        quantiles = ", ".join(f"{name} {kl:.2g}" for name, kl in comparison.kl_quantiles.items())
        yield f"\nKL(A‖B) of a token, {FORMULA}:\nmean {facts['kl']['mean']:.3g} nats; {quantiles}"
    if facts["kl"]["mean"]:
        yield from bar_lines(comparison.log_kl, lambda bar: f"{10**bar.start:.1e}–{10**bar.stop:.1e}")


def _token(a: LogitsOutput, b: LogitsOutput, token: dict[str, Any], text: TokenText) -> Iterator[str]:
    index, position = token["index"], token["position"]
    views, pieces = [], [""]
    for output in (a, b):
        logits = output.find(index=index).logits
        views += [view for view in token_views(logits, 3) if view.position == position]
        assert logits.input_ids is not None
        pieces = pieces if len(pieces) > 1 else text.pieces(logits.input_ids[: position + 1].tolist())
    before = printable(visible("".join(pieces[:position])[-CONTEXT:]))
    yield f"  row {index}, position {position}: KL {token['kl']:.3g}: …{before}⟦{printable(visible(text.name(views[0].id)))}⟧"
    yield from (f"    {name}: {_likeliest(view, text)}" for name, view in zip("AB", views, strict=True))


def _likeliest(view: TokenView, text: TokenText) -> str:
    parts = [f"{printable(visible(text.name(i)))} {percent(p)}" for i, p in view.candidates]
    return f"{'  '.join(parts)}   (the text {percent(view.p, is_stored=view.is_stored)})"
