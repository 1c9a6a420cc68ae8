"""The reasoning trace of an answer, taken apart from the answer itself."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
JOINER = "\n\n"  # between pieces that a tag had separated, so that no two words ever grow together

_TAG = re.compile(f"({OPEN}|{CLOSE})")


def split_think(text: str) -> tuple[str, str]:
    """Take `text` apart into `(response, think)`; each piece is stripped, and only the tags are lost.

    A piece between two tags is reasoning if it stands inside a matched pair, right after an opening tag or
    right before a closing one. That one rule covers what a pattern for whole pairs gets wrong: a generation cut
    while it reasoned (no closing tag), a block that the chat template opened in the prompt (no opening tag, as
    with DeepSeek-R1 and QwQ), a tag said twice, nested blocks, an answer that begins before its first block.
    Time is linear.
    """
    if OPEN not in text and CLOSE not in text:  # nearly all texts, in a third of the time
        return text.strip(), ""
    parts = _TAG.split(text)  # piece, tag, piece, tag, …, piece
    pieces, tags = parts[::2], parts[1::2]
    depths = _depths(tags)
    kept: dict[bool, list[str]] = {False: [], True: []}
    for i, piece in enumerate(pieces):
        after_open = i > 0 and tags[i - 1] == OPEN
        before_close = i < len(tags) and tags[i] == CLOSE
        if stripped := piece.strip():
            kept[depths[i] > 0 or after_open or before_close].append(stripped)
    return JOINER.join(kept[False]), JOINER.join(kept[True])


def _depths(tags: list[str]) -> list[int]:
    """How many matched pairs enclose each of the `len(tags) + 1` pieces; a tag without its partner counts for none."""
    steps = [0] * (len(tags) + 1)
    opened: list[int] = []
    for i, tag in enumerate(tags):
        if tag == OPEN:
            opened.append(i)
        elif opened:
            steps[opened.pop() + 1] += 1
            steps[i + 1] -= 1
    depth = 0
    for i, step in enumerate(steps):
        depth += step
        steps[i] = depth
    return steps
