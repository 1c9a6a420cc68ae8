"""What a run has done, and what an output holds, in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SKIPPED = "skipped_"  # prefix of the counts of skipped rows by reason


def describe(status: Mapping[str, Any]) -> str:
    """Put the status of a run that goes on into one line."""
    parts = [
        f"{status['rows']:,} rows",
        f"{status['tokens_per_second']:,.0f} tokens/s",
        f"{status.get('pending', 0)} units to upload",
    ]
    if status.get("commits_left") is not None:
        parts.append(f"{status['commits_left']:.0f} commits left this hour")
    if status["seconds_left"] is not None:
        parts.append(f"{duration(status['seconds_left'])} left")
    return ", ".join(parts)


def summarize(status: Mapping[str, Any]) -> str:
    """Put the last status of a run into one line; what went well is not in it."""
    parts = [
        f"{status['rows']:,} rows in {duration(status['seconds'])}",
        f"{status['tokens_per_second']:,.0f} tokens/s",
        f"{status['padding']:.1%} padding",
        f"{status['skipped']:,} rows skipped",
    ]
    if "cost_usd" in status:
        parts.append(f"{status['cost_usd']:.2f} USD")
    if status.get("uploaded_bytes"):
        parts.append(f"{size(status['uploaded_bytes'])} uploaded")
    if status["stall_seconds"] >= 1:
        parts.append(f"{duration(status['stall_seconds'])} waited for the output")
    if status.get("pending"):
        parts.append(f"{status['pending']} units still to upload")
    parts += [f"{number} {kind} faults" for kind, number in sorted(status.get("faults", {}).items())]
    return ", ".join(parts)


def describe_totals(totals: Mapping[str, Any]) -> str:
    """Put the sums of an output's receipts into one line."""
    parts = [f"{totals.get('records', 0):,} records of {totals.get('rows', 0):,} rows"]
    parts += [f"skipped: {why}"] if (why := skipped_by_reason(totals)) else []
    parts += [f"{totals['truncated']:,} truncated"] if totals.get("truncated") else []
    parts += [f"{totals.get('tokens', 0):,} tokens", size(totals.get("bytes", 0))]
    if milliseconds := totals.get("milliseconds", 0) + totals.get("loading_milliseconds", 0):
        parts.append(f"{duration(milliseconds / 1000)} of workers")
    parts += [f"{totals['microdollars'] / 1e6:,.2f} USD"] if totals.get("microdollars") else []
    return ", ".join(parts)


def skipped_by_reason(totals: Mapping[str, int]) -> str:
    """Rows without a record by reason, the most frequent first; "" where there are none."""
    reasons = {name.removeprefix(SKIPPED): count for name, count in totals.items() if name.startswith(SKIPPED)}
    return ", ".join(f"{name} {count:,}" for name, count in sorted(reasons.items(), key=lambda item: -item[1]))


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: 45 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them: 12 kB, 3.4 MB, 5.6 GB."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= length:
            return f"{num_bytes / length:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
