"""Demo data: chats about procedurally generated puzzles, made on the spot, with no download and no account.

Questions and answers are reasoning-gym's, and right. The `<think>` blocks are **synthetic**: they list what the
puzzle's own metadata says, at lengths as ragged as those of real traces. No model wrote them; train nothing on them.

    python -m builders.demo demo.parquet
"""

from __future__ import annotations

import logging
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

log = logging.getLogger(__name__)

# 16 of reasoning-gym's 106 families: each makes an item in under 1 ms, names one right answer, and reads no clock
# (`time_intervals` reads it). Questions run from 13 characters (number_sequence) to 3,200 (needle_haystack).
SOURCES = (
    "number_sequence",
    "chain_sum",
    "prime_factorization",
    "calendar_arithmetic",
    "syllogism",
    "family_relationships",
    "caesar_cipher",
    "leg_counting",
    "word_sorting",
    "gsm_symbolic",
    "knights_knaves",
    "circuit_logic",
    "shortest_path",
    "string_manipulation",
    "tower_of_hanoi",
    "needle_haystack",
)
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly. If the question fixes a format, keep to it.",
    "You are a patient tutor. Work the problem out before you answer, and say how sure you are.",
    "Du bist ein hilfreicher Assistent. Antworte in der Sprache der Frage.",
    "You solve puzzles for a weekly column.\n\nRules:\n- no guessing\n- one answer per puzzle\n- plain text only",
)
PHRASINGS = (
    "{}",
    "{}",
    "The answer is {}.",
    "Answer: {}",
    "I get the following.\n\n{}\n\nTell me if a step is unclear.",
)
SYSTEM_SHARE, THINK_SHARE, EMPTY_THINK_SHARE, HISTORY_SHARE = 0.5, 0.5, 0.03, 0.2
MAX_HISTORY = 3  # earlier questions of the same family in one conversation
THINK_STEPS = ((1, 1), (2, 6), (6, 20), (20, 60))  # lines of a trace: one of four equally likely ranges
MAX_LISTED = 24  # entries of one metadata value that a trace walks through
ROW_GROUP_ROWS = 200  # small, so that a short demo still has several units to share out
SEED_STRIDE = 1_000_003  # item k of a family is drawn from seed + k: neighbouring seeds must not share items

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "dataset_source": pa.string(),
    }
)
Item = Mapping[str, Any]  # reasoning-gym's: question, answer, metadata


def write_demo(path: Path, num_rows: int = 2400, seed: int = 0) -> Path:
    """Write the demo chats as Parquet: sources take turns row by row, and the same seed gives the same table."""
    if num_rows < 1:
        raise ValueError(f"num_rows is {num_rows}; a demo has at least 1 row")
    table = pa.Table.from_pylist(list(_rows(num_rows, seed)), schema=SCHEMA)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            pq.write_table(table, file, row_group_size=ROW_GROUP_ROWS, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 is for secrets
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _create_dataset() -> Callable[..., Sequence[Item]]:
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise ImportError('the demo data needs reasoning-gym: pip install "stillroom[demo]"') from error
    return create_dataset


def _rows(num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    create = _create_dataset()
    per_source = -(-num_rows // len(SOURCES))
    families = []
    for position, name in enumerate(SOURCES):
        start = (seed * SEED_STRIDE + position * per_source) % 2**31  # numpy inside takes 32 bits
        made = create(name, size=per_source + MAX_HISTORY, seed=start)
        families.append([made[k] for k in range(per_source + MAX_HISTORY)])
    for i in range(num_rows):
        number, position = divmod(i, len(SOURCES))
        rng = random.Random(f"{seed}:{i}")
        num_earlier = rng.randint(1, MAX_HISTORY) if rng.random() < HISTORY_SHARE else 0
        last = number + MAX_HISTORY
        items = families[position][last - num_earlier : last + 1]
        source = SOURCES[position]
        yield {"id": f"{source}-{number:05d}", "messages": _messages(items, rng), "dataset_source": source}


def _messages(items: Sequence[Item], rng: random.Random) -> list[dict[str, str]]:
    messages = []
    if rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for item in items:
        messages.append({"role": "user", "content": str(item["question"]).strip()})
        messages.append({"role": "assistant", "content": _answer(item, rng)})
    return messages


def _answer(item: Item, rng: random.Random) -> str:
    answer = rng.choice(PHRASINGS).format(item["answer"])
    draw = rng.random()
    if draw < EMPTY_THINK_SHARE:  # what a chat template writes when reasoning is switched off
        return f"<think>\n\n</think>\n\n{answer}"
    if draw < THINK_SHARE:
        return f"<think>\n{_trace(item, rng)}\n</think>\n\n{answer}"
    return answer


def _trace(item: Item, rng: random.Random) -> str:
    """Walk through the question and what the metadata knows, for as many lines as the draw allows."""
    limit = rng.randint(*rng.choice(THINK_STEPS))
    lines = [f"I am asked: {_sentences(str(item['question']))[-1]}"]
    lines += [f"Given: {sentence}" for sentence in _sentences(str(item["question"]))[:-1]]
    for key, value in item["metadata"].items():
        if key not in ("source_dataset", "source_index", "difficulty"):  # about the generator, not the puzzle
            lines += _facts(key.replace("_", " "), value)
    # the end of the list holds the working (states, moves, solution): a short trace thins the middle evenly
    kept = [lines[k * (len(lines) - 1) // max(limit - 1, 1)] for k in range(min(limit, len(lines)))]
    if limit >= THINK_STEPS[-1][0]:
        kept += [f"Wait, let me check that again. {line}" for line in kept[len(kept) // 2 :]]
    return "\n".join([*dict.fromkeys(kept), f"So it comes to {item['answer']}."][: None if limit > 1 else 1])


def _facts(label: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, entry in list(value.items())[:MAX_LISTED]:
            yield f"The {label} has {entry} for {key}."
    elif isinstance(value, list | tuple):
        for position, entry in enumerate(value[:MAX_LISTED], start=1):
            yield f"Entry {position} of the {label} is {entry}."
    elif "\n" in str(value):
        yield from _sentences(str(value))
    else:
        yield f"The {label} is {value}."


def _sentences(text: str) -> list[str]:
    """Cut at line ends and after full stops and question marks; never empty."""
    found = (piece.strip() for piece in re.split(r"\n|(?<=[.?!])\s", text))
    return [piece for piece in found if piece] or [text]


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--num-rows", default=2400, show_default=True, help="conversations to make")
@click.option("--seed", default=0, show_default=True, help="the same seed gives the same table")
def main(path: Path, num_rows: int, seed: int) -> None:
    """Write demo chats to the Parquet file PATH."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.perf_counter()
    try:
        write_demo(path, num_rows, seed)
    except (ImportError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    log.info("%s: %d rows from %d sources in %.1f s", path, num_rows, len(SOURCES), time.perf_counter() - started)


if __name__ == "__main__":
    main()
