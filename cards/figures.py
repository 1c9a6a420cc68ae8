"""What the receipts of a dataset add up to: totals, distributions, rows by source, time. Nothing is read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from builders.tally import PER_OCTAVE, PER_OCTAVE_NORM, SOURCES, TALLIES, Bin, Tally
from cards.plots import PlotBar, bars_svg
from hub.pending import Receipt

SKIPPED = "skipped_"  # prefix of the counts of skipped rows by reason
TIMES = ("milliseconds", "loading_milliseconds", "microdollars")
FACTS = ("dimension", *TIMES)  # counts that are no sums of rows
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


class Figures:
    """Sums over the receipts of a dataset's units, which are gone through once."""

    def __init__(self, receipts: Iterable[Receipt], *, is_normalized: bool = False) -> None:
        self.is_normalized = is_normalized  # vectors of length 1, whose lengths nobody wants to see
        self.totals: Counter[str] = Counter()  # counts of all units together
        self.dimension = 0  # of the vectors, or ids that the teacher knows; 0 before the first chunk
        self._times: Counter[str] = Counter()
        self._num_counted = 0  # units with records
        self._tallies = {name: Tally(about.is_whole, about.per_octave) for name, about in TALLIED.items()}
        self._sources: dict[str, list[int]] | None = {}
        self._devices = set[str]()
        self._ends: list[str] = []
        for receipt in receipts:
            self._add(receipt.counts)

    def _add(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of a unit."""
        self.totals.update({k: v for k, v in counts.items() if isinstance(v, int) and k not in FACTS})
        self.dimension = self.dimension or counts.get("dimension", 0)
        times = {name: counts[name] for name in TIMES if name in counts}
        self._times.update(times)
        if "microdollars" in times:
            self._times["priced"] += times.get("milliseconds", 0) + times.get("loading_milliseconds", 0)
        if counts.get("device"):
            self._devices.add(str(counts["device"]))
        if counts.get("finished"):
            self._ends.append(counts["finished"])
        if counts.get("records"):
            self._num_counted += 1
            self._add_tallies(counts.get(TALLIES, {}))
            self._add_sources(counts.get(SOURCES, {}))

    def _add_tallies(self, parts: Mapping[str, Any]) -> None:
        for name, tally in self._tallies.items():
            if parts.get(name):
                tally.add(parts[name])

    def _add_sources(self, parts: Mapping[str, Sequence[int]] | None) -> None:
        if parts is None or self._sources is None:
            self._sources = None
            return
        for name, (records, tokens) in parts.items():
            sums = self._sources.setdefault(name, [0, 0])
            sums[0], sums[1] = sums[0] + records, sums[1] + tokens

    @property
    def reasons(self) -> dict[str, int]:
        """Rows that gave no record, by reason."""
        return {k.removeprefix(SKIPPED): v for k, v in sorted(self.totals.items()) if k.startswith(SKIPPED)}

    @cached_property
    def tallies(self) -> dict[str, Tally]:
        """Distributions by name; those that every unit with records has: a part of them would mislead."""
        return {
            name: tally
            for name, tally in self._tallies.items()
            if tally.num_units == self._num_counted > 0 and not (name == "norm" and self.is_normalized)
        }

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
        lines = sorted(
            (SourceLine(n, *sums) for n, sums in (self._sources or {}).items()),
            key=lambda line: (-line.records, line.name),
        )
        if sum(line.records for line in lines) < self.totals["records"]:  # receipts of before there were sources
            return []
        rest = lines[SHOWN_SOURCES:]
        other = SourceLine(f"{len(rest)} others", sum(o.records for o in rest), sum(o.tokens for o in rest))
        return lines[:SHOWN_SOURCES] + ([other] if rest else [])

    @property
    def hours(self) -> float:
        """Hours that workers took for the units, all workers together."""
        return self._times["milliseconds"] / 3.6e6

    @property
    def loading_hours(self) -> float:
        """Hours that workers took before their first unit, all workers of all runs together."""
        return self._times["loading_milliseconds"] / 3.6e6

    @property
    def cost(self) -> float:
        """Of both, USD, where runs were given a price; see `priced_hours`."""
        return self._times["microdollars"] / 1e6

    @property
    def priced_hours(self) -> float:
        """Hours of the units whose run was given a price."""
        return self._times["priced"] / 3.6e6

    @property
    def devices(self) -> list[str]:
        """What computed them."""
        return sorted(self._devices)

    @property
    def built(self) -> tuple[str, str] | None:
        """The days of the first and the last unit."""
        return (min(self._ends)[:10], max(self._ends)[:10]) if self._ends else None

    def eta(self, num_left: int) -> datetime | None:
        """When `num_left` more units are done at the rate of the last hour; None of too few units to tell."""
        ends = sorted(map(datetime.fromisoformat, self._ends))
        recent = [end for end in ends if (ends[-1] - end).total_seconds() <= RATE_SECONDS]
        if len(recent) < 3 or recent[0] == recent[-1]:
            return None
        return recent[-1] + timedelta(seconds=num_left * (recent[-1] - recent[0]).total_seconds() / (len(recent) - 1))


def _plot(name: str, tally: Tally) -> str:
    about = TALLIED[name]
    bars = [PlotBar(_figure(one.low), _span(one, is_whole=about.is_whole), one.number) for one in tally.bins()]
    return bars_svg(about.title, bars)


def _span(one: Bin, *, is_whole: bool) -> str:
    return _figure(one.low) if is_whole and one.low == one.high else f"{_figure(one.low)} to {_figure(one.high)}"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
