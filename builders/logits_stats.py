"""Figures of teacher logits: of each token, and of a whole dataset in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from builders.histogram import Bar, Histogram
from builders.logits_schema import LogitsFormat
from builders.packing import Array, Logits, group_reduce
from builders.tail import tail_weights

TINY = 1e-30  # in place of 0 in a logarithm
MAX_SURPRISE = 25.0  # nats; a probability of 1e-11
CAP = 255  # entries of a token


@dataclass(frozen=True)
class TokenValues:
    """What is known of T tokens, each array [T].

    `entropy` in nats: -sum p log p over the exact entries, and -sum w log p over the samples, which estimates the tail
    without bias; of compact records, whose samples keep no p, w stands for it, and as p < w it is a lower bound.
    `logprob` of the token that stands in the text: nan where it is neither an exact entry nor a sample that keeps its p.
    There it is at most `bound`, which no id that is not stored exceeds: the rest of the mass, the least exact p, and the
    least weight of a sample (an id with p above the threshold is in the sample for certain).
    """

    size: Array  # int64, exact entries
    mass: Array  # float64, of the exact entries, at most 1
    entropy: Array  # float64
    logprob: Array  # float32
    bound: Array  # float64, a log probability

    @property
    def surprise(self) -> Array:
        """-log p of the text's tokens, or the least that it can be, float64 [T]."""
        return -np.where(np.isnan(self.logprob), self.bound, self.logprob).astype(np.float64)


def token_values(logits: Logits, targets: Array | None, device: str = "") -> TokenValues:
    """Compute the figures of each token.

    `targets` [T]: the ids that stand in the text; None where they are not known. With a `device` the pass over all entries
    is torch's, there; what concerns samples is numpy's.
    """
    entries = torch_entries(logits, targets, device) if device else numpy_entries(logits, targets)
    mass, entropy, least, logprob = entries
    rest = np.clip(1 - mass, 0, None)
    bound = np.minimum(np.exp(least), rest)
    if logits.sampled_ids.shape[1]:
        weights, tail = _tail(logits, rest)
        entropy = entropy - (weights * tail).sum(axis=1)
        if not logits.logsumexp_at:  # samples for several temperatures have no threshold
            bound = np.minimum(bound, np.where(logits.is_sample, weights, 1).min(axis=1))
        if targets is not None and logits.sampled_logits is not None:
            rows, slots = np.nonzero((logits.sampled_ids == targets[:, None]) & logits.is_sample)
            logprob[rows] = tail[rows, slots]
    return TokenValues(logits.counts, 1 - rest, entropy, logprob, np.log(np.maximum(bound, TINY)))


def numpy_entries(logits: Logits, targets: Array | None) -> tuple[Array, Array, Array, Array]:
    """Return of each token's exact entries: mass, -sum p log p, least log p, and the target's log p (nan: not among them)."""
    counts = logits.counts
    logprobs = logits.logprobs()
    p = np.exp(logprobs)
    found = np.full(len(counts), np.nan, np.float32)
    if targets is not None:
        places = np.flatnonzero(logits.ids == np.repeat(targets, counts))
        found[np.searchsorted(np.cumsum(counts), places, side="right")] = logprobs[places]
    mass, least = group_reduce(np.add, p.astype(np.float64), counts), group_reduce(np.minimum, logprobs, counts)
    p *= logprobs
    return mass, -group_reduce(np.add, p, counts).astype(np.float64), least, found


def torch_entries(logits: Logits, targets: Array | None, device: str) -> tuple[Array, Array, Array, Array]:
    """Return what `numpy_entries` returns, computed on a device of torch."""
    import torch

    counts = torch.from_numpy(logits.counts).to(device)
    groups = torch.arange(len(counts), device=device).repeat_interleave(counts)
    logprobs = torch.from_numpy(logits.logits).to(device)
    logprobs = logprobs - torch.from_numpy(logits.logsumexp.astype(np.float32)).to(device)[groups]
    p = logprobs.exp()
    sums = [torch.zeros(len(counts), device=device, dtype=torch.float64) for _ in range(2)]
    mass, entropy = (out.index_add_(0, groups, x.double()) for out, x in zip(sums, (p, -p * logprobs), strict=True))
    least = torch.zeros(len(counts), device=device).scatter_reduce_(0, groups, logprobs, "amin", include_self=False)
    found = torch.full((len(counts),), torch.nan, device=device)
    if targets is not None:
        hit = (
            torch.from_numpy(logits.ids).to(device) == torch.from_numpy(np.array(targets, np.int32)).to(device)[groups]
        )
        found[groups[hit]] = logprobs[hit]
    mass_, entropy_, least_, found_ = (values.cpu().numpy() for values in (mass, entropy, least, found))
    return mass_, entropy_, least_, found_


def _tail(logits: Logits, rest: Array) -> tuple[Array, Array]:
    """Weights of the samples, and their log probabilities (of compact ones, those of their weights), both [T, N]."""
    if logits.sampled_logits is None or logits.logsumexp_at or logits.sample_weight is not None:
        _, weights = logits.weights()
    if logits.sampled_logits is None:
        return weights, np.log(np.maximum(weights, TINY))
    logprobs = logits.sampled_logits - logits.logsumexp.astype(np.float32)[:, None]
    if not logits.logsumexp_at and logits.sample_weight is None:
        weights = tail_weights(np.exp(logprobs), rest, logits.sampled_counts)
    return weights, logprobs


class LogitsStats:
    """Figures of a dataset, gathered batch by batch in a few hundred kB."""

    def __init__(self, form: LogitsFormat) -> None:
        self.form = form
        self.num_rows = self.num_tokens = self.num_entries = self.num_samples = 0
        self.num_known = self.num_at_cap = 0
        self.known_surprise = 0.0
        self.size = Histogram.of_integers("nucleus size", "ids", CAP)
        self.mass = Histogram("nucleus mass", "of 1", 0, 1, 10_000)
        self.entropy = Histogram("entropy", "nats", 0, float(np.log(form.vocab_size)), 2_000)
        self.surprise = Histogram("surprise of the text, -log p", "nats", 0, MAX_SURPRISE, 2_500)

    @property
    def histograms(self) -> list[Histogram]:
        """All of them, in the order in which they are shown."""
        return [self.size, self.mass, self.entropy, self.surprise]

    def add(self, logits: Logits, targets: Array | None, num_rows: int, device: str = "") -> None:
        """Count a batch."""
        values = token_values(logits, targets, device)
        self.num_rows += num_rows
        self.num_tokens += len(values.size)
        self.num_entries += len(logits.ids)
        self.num_samples += int(logits.sampled_counts.sum())
        self.num_at_cap += int((values.size >= self.form.top_p_max_elements).sum())
        for histogram in (self.size, self.mass, self.entropy):
            histogram.add(getattr(values, histogram.name.removeprefix("nucleus ")))
        if targets is not None:
            known = ~np.isnan(values.logprob)
            self.num_known += int(known.sum())
            self.known_surprise -= float(values.logprob[known].sum(dtype=np.float64))
            self.surprise.add(values.surprise)

    def facts(self) -> dict[str, Any]:
        """Return the figures beside the histograms. Shares are of tokens, and `perplexity` is at least what it says."""
        tokens = max(1, self.num_tokens)
        return {
            "rows": self.num_rows,
            "tokens": self.num_tokens,
            "entries_per_token": self.num_entries / tokens,
            "samples_per_token": self.num_samples / tokens,
            "share_at_cap": self.num_at_cap / tokens,
            "entropy_is_lower_bound": self.form.encoding == "compact",
            "share_text_stored": self.num_known / tokens,
            "perplexity": float(np.exp(self.surprise.mean)) if self.surprise.num_values else None,
            "perplexity_of_stored": float(np.exp(self.known_surprise / self.num_known)) if self.num_known else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return self.facts() | {"histograms": {h.name: h.to_dict() for h in self.histograms}}


def bar_lines(
    histogram: Histogram, label: Callable[[Bar], str] | None = None, width: int = 40, num_bars: int = 12
) -> Iterator[str]:
    """Draw a histogram for a terminal, a line per bar."""
    bars = histogram.bars(num_bars)
    most = max((bar.number for bar in bars), default=1)
    for bar in bars:
        name, block = label(bar) if label else bar_label(histogram, bar), "█" * round(width * bar.number / most) or "▏"
        yield f"  {name:>15} {block:<{width}} {bar.number / histogram.num_values:6.1%}"


def bar_label(histogram: Histogram, bar: Bar) -> str:
    """Name the values of a bar."""
    start, stop, _ = bar
    if not histogram.is_whole:
        digits = 4 if stop - start < 0.01 else 3 if stop - start < 0.1 else 2
        return f"{start:.{digits}f}–{stop:.{digits}f}"
    return f"{start:.0f}–{stop - 1:.0f}" if stop - start > 1 else f"{start:.0f}"
