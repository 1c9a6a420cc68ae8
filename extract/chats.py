"""The stage of a logits build: a row's conversation as token ids, and which of them the assistant generated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from builders.chat import template_messages
from builders.encoded import ChatEncoder
from builders.job import Job
from builders.options import ConfigError
from builders.row import Row, RowError
from builders.template import TemplateError
from extract.logits import LogitsWork
from extract.sample import Sample
from extract.work import Work

T = TypeVar("T")

PROBE = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Blue, I think."}]


def open_encoder(job: Job, tokenizer: Any) -> ChatEncoder:
    """Return what renders, tokenises and masks the job's conversations. A lengths build counts what has no mask, too.

    Raises:
        ConfigError: not even a plain conversation can be rendered, or masked with certainty.
    """
    day = None if job.template_date is None else date.fromisoformat(job.template_date)
    encoder = ChatEncoder(
        tokenizer,
        job.chat_template,
        date=day,
        end_of_turn=job.end_of_turn,
        max_length=job.max_length,
        stops=stop_tokens(tokenizer),
    )
    try:
        if job.build == "lengths":
            encoder.render(PROBE)
        else:
            encoder.encode(PROBE)
    except TemplateError as error:
        other = ", or --count text counts texts" if job.build == "lengths" else ""
        detail = error.detail.removeprefix(f"{tokenizer.name_or_path}: ")
        raise ConfigError(f"--model {job.model}: {detail}{other}") from error
    return encoder


def stop_tokens(tokenizer: Any) -> list[str]:
    """Name the tokens at which the model stops, from the `eos_token_id` of its generation_config.json or config.json.

    A tokenizer knows one end of text; a chat model has others for the end of a turn or of a call (`<|eot_id|>`, `<|eom_id|>`).
    """
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = Path(tokenizer.name_or_path) / name
        try:
            said = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        except (ValueError, AttributeError):  # a broken file is the model's to complain of
            continue
        ids.update(said if isinstance(said, list) else [] if said is None else [said])
    known = (tokenizer.convert_ids_to_tokens(id_) for id_ in sorted(ids) if 0 <= id_ < len(tokenizer))
    return [token for token in known if token]


def conversations(
    rows: Iterable[Row], work: Work, read: Callable[[int, list[dict[str, Any]], Any], T]
) -> Iterator[tuple[int, Row, T]]:
    """Yield (position, row, what `read` makes of its position, messages and tools); one that cannot be read is skipped."""
    for position, row in enumerate(rows):
        try:
            if row.error is not None:
                raise row.error
            messages = template_messages(row.data.get(work.job.messages_column))
            found = read(position, messages, row.data.get(work.job.tools_column) or None)
        except TemplateError as error:
            work.skip(row.index, RowError(error.reason, error.detail))
        except RowError as error:
            work.skip(row.index, error)
        else:
            yield position, row, found


def chats(rows: Iterable[Row], encoder: ChatEncoder, work: LogitsWork) -> Iterator[Sample]:
    """Encode each row; one that cannot be, or whose mask would be a guess, is skipped and listed."""
    for position, row, chat in conversations(rows, work, lambda _, messages, tools: encoder.encode(messages, tools)):
        # nothing predicts the first token
        targets = np.flatnonzero(np.array(chat.assistant_mask[1:], bool)).astype(np.int32) + 1
        work.unread.update(chat.unread)
        work.add_chat(position, row, np.array(chat.input_ids, np.int32), targets)
        if len(targets) and not work.is_done[0, position]:
            yield Sample(position, 0, chat.input_ids, chat.is_truncated, row.index, targets.tolist())
