"""What the receipts of a dataset add up to: totals, distributions, rows by source, time. Nothing is read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from builders.tally import PER_OCTAVE, PER_OCTAVE_NORM, SOURCES, TALLIES, Bin, Tally
from cards.plots import PlotBar, bars_svg
from hub.pending import Receipt

SKIPPED = "skipped_"  # prefix of the counts of skipped rows by reason
FACTS = ("dimension", "milliseconds", "loading_milliseconds", "microdollars")  # counts that are no sums of rows
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SHOWN_SOURCES = 20
RATE_SECONDS = 3600  # of the newest units, from which the rest is reckoned
MIN_PLOTTED = 10  # values; fewer make no distribution


class About(NamedTuple):
    """What a tally counts: the value, a title of its plot, whether values are whole numbers, bins per octave."""

    value: str
    title: str
    is_whole: bool = True
    per_octave: int = PER_OCTAVE


TALLIED = {
    "tokens": About("tokens of a record", "Records by number of tokens"),
    "exact": About("ids kept for certain, of a token", "Tokens by number of ids that are kept for certain"),
    "norm": About("length of a vector", "Vectors by length", False, PER_OCTAVE_NORM),
}


class SourceLine(NamedTuple):
    """Records and tokens of one source."""

    name: str
    records: int
    tokens: int


@dataclass(frozen=True)
class Figures:
    """Sums over the receipts of a dataset's units."""

    receipts: Sequence[Receipt]
    is_normalized: bool = False  # vectors of length 1, whose lengths nobody wants to see

    @cached_property
    def totals(self) -> Counter[str]:
        """Counts of all units together."""
        totals: Counter[str] = Counter()
        for receipt in self.receipts:
            totals.update({k: v for k, v in receipt.counts.items() if isinstance(v, int) and k not in FACTS})
        return totals

    @property
    def dimension(self) -> int:
        """Dimensions of the vectors, or ids that the teacher knows; 0 before the first chunk."""
        return next((r.counts["dimension"] for r in self.receipts if "dimension" in r.counts), 0)

    @property
    def reasons(self) -> dict[str, int]:
        """Rows that gave no record, by reason."""
        return {k.removeprefix(SKIPPED): v for k, v in sorted(self.totals.items()) if k.startswith(SKIPPED)}

    @cached_property
    def tallies(self) -> dict[str, Tally]:
        """Distributions by name; those that every unit with records has: a part of them would mislead."""
        counted = [r.counts for r in self.receipts if r.counts.get("records")]
        found = {}
        for name, about in TALLIED.items():
            if name == "norm" and self.is_normalized:
                continue
            parts = [counts.get(TALLIES, {}).get(name) for counts in counted]
            if parts and all(parts):
                found[name] = Tally(about.is_whole, about.per_octave)
                for part in parts:
                    found[name].add(part)
        return found

    def distributions(self) -> list[tuple[str, list[str]]]:
        """What is counted, quantiles and greatest value of each distribution, as text."""
        return [
            (TALLIED[name].value, [_figure(value) for value in (*map(tally.quantile, QUANTILES), tally.most)])
            for name, tally in self.tallies.items()
        ]

    def plots(self) -> dict[str, tuple[str, str]]:
        """Title and SVG of each distribution by file name."""
        wanted = {n: t for n, t in self.tallies.items() if t.num_values >= MIN_PLOTTED}
        return {f"{name}.svg": (TALLIED[name].title, _plot(name, tally)) for name, tally in wanted.items()}

    @cached_property
    def sources(self) -> list[SourceLine]:
        """Records and tokens of each source, most first; none where the rows name no source or too many."""
        found: dict[str, list[int]] = {}
        for receipt in self.receipts:
            parts = receipt.counts.get(SOURCES, {}) if receipt.counts.get("records") else {}
            if parts is None:
                return []
            for name, (records, tokens) in parts.items():
                sums = found.setdefault(name, [0, 0])
                sums[0], sums[1] = sums[0] + records, sums[1] + tokens
        lines = sorted(
            (SourceLine(n, *sums) for n, sums in found.items()), key=lambda line: (-line.records, line.name)
        )
        if sum(line.records for line in lines) < self.totals["records"]:  # receipts of before there were sources
            return []
        rest = lines[SHOWN_SOURCES:]
        other = SourceLine(f"{len(rest)} others", sum(o.records for o in rest), sum(o.tokens for o in rest))
        return lines[:SHOWN_SOURCES] + ([other] if rest else [])

    @property
    def hours(self) -> float:
        """Hours that workers took for the units, all workers together."""
        return self._sum("milliseconds") / 3.6e6

    @property
    def loading_hours(self) -> float:
        """Hours that workers took before their first unit, all workers of all runs together."""
        return self._sum("loading_milliseconds") / 3.6e6

    @property
    def cost(self) -> float:
        """Of both, USD, where runs were given a price; see `priced_hours`."""
        return self._sum("microdollars") / 1e6

    @property
    def priced_hours(self) -> float:
        """Hours of the units whose run was given a price."""
        priced = [r.counts for r in self.receipts if "microdollars" in r.counts]
        return sum(c.get("milliseconds", 0) + c.get("loading_milliseconds", 0) for c in priced) / 3.6e6

    def _sum(self, name: str) -> int:
        return sum(receipt.counts.get(name, 0) for receipt in self.receipts)

    @property
    def devices(self) -> list[str]:
        """What computed them."""
        return sorted({str(r.counts["device"]) for r in self.receipts if r.counts.get("device")})

    @property
    def built(self) -> tuple[str, str] | None:
        """The days of the first and the last unit."""
        days = sorted(str(r.counts["finished"])[:10] for r in self.receipts if r.counts.get("finished"))
        return (days[0], days[-1]) if days else None

    def eta(self, num_left: int) -> datetime | None:
        """When `num_left` more units are done at the rate of the last hour; None of too few units to tell."""
        ends = sorted(_time(r.counts) for r in self.receipts if r.counts.get("finished"))
        recent = [end for end in ends if (ends[-1] - end).total_seconds() <= RATE_SECONDS]
        if len(recent) < 3 or recent[0] == recent[-1]:
            return None
        return recent[-1] + timedelta(seconds=num_left * (recent[-1] - recent[0]).total_seconds() / (len(recent) - 1))


def _time(counts: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(counts["finished"])


def _plot(name: str, tally: Tally) -> str:
    about = TALLIED[name]
    bars = [PlotBar(_figure(one.low), _span(one, is_whole=about.is_whole), one.number) for one in tally.bins()]
    return bars_svg(about.title, bars)


def _span(one: Bin, *, is_whole: bool) -> str:
    return _figure(one.low) if is_whole and one.low == one.high else f"{_figure(one.low)} to {_figure(one.high)}"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
