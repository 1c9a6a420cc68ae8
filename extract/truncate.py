"""Which tokens of a text that is too long are kept. Works on counts and ranges; no text, no decode round trip."""

from __future__ import annotations

from collections.abc import Sequence

Range = tuple[int, int]  # tokens [start, stop)


def keep_end_cut(num_tokens: int, room: int) -> list[Range]:
    """Keep the beginning."""
    return [(0, min(room, num_tokens))]


def keep_start_cut(num_tokens: int, room: int) -> list[Range]:
    """Keep the end."""
    return [(max(0, num_tokens - room), num_tokens)]


def keep_middle_cut(num_tokens: int, room: int) -> list[Range]:
    """Keep both ends, the beginning one token longer where `room` is odd."""
    if num_tokens <= room:
        return [(0, num_tokens)]
    head = -(-room // 2)
    return [(0, head), (num_tokens - (room - head), num_tokens)]


def keep_balanced(num_tokens: int, room: int, parts: Sequence[Range]) -> list[Range]:
    """Keep the beginning of each part, in proportion to its length, and all tokens between the parts.

    `parts` are sorted, disjoint token ranges. Where the tokens between them alone exceed `room`, the end is cut.
    """
    in_parts = sum(stop - start for start, stop in parts)
    budget = room - (num_tokens - in_parts)
    if num_tokens <= room or budget < 0 or not in_parts:
        return keep_end_cut(num_tokens, room)
    shares = _shares([stop - start for start, stop in parts], budget)
    ranges, position = [], 0
    for (start, stop), share in zip(parts, shares, strict=True):
        ranges += [(position, start), (start, start + share)]
        position = stop
    ranges.append((position, num_tokens))
    return [(start, stop) for start, stop in ranges if start < stop]


def _shares(sizes: Sequence[int], budget: int) -> list[int]:
    """Split `budget` in proportion to `sizes` by largest remainder; no share exceeds its size as budget <= sum."""
    total = sum(sizes)
    shares = [size * budget // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * budget % total))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares
