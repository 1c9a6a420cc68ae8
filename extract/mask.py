"""The assistant's mask of some rows of a source, printed to be checked by eye."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builders.chat import template_messages
from builders.encoded import ChatEncoder, EncodedChat
from builders.job import Job
from builders.options import ConfigError
from builders.row import Row, RowError
from builders.source import open_source
from builders.template import TemplateError
from extract.model_files import load_problem, read_model_files
from extract.paint import Piece, paint


@dataclass(frozen=True, slots=True)
class Shown:
    """One row as text. `is_refused`: it has no mask, and `text` says why."""

    text: str
    is_refused: bool


def show_masks(
    job: Job, cache: Path, chat_template: Path | None, rows: int, *, color: bool, **options: Any
) -> Iterator[Shown]:
    """Yield the first rows of the job's source; `options` are those of `ChatEncoder`.

    Raises:
        ConfigError: there is no such model, source, column or template file.
    """
    from transformers import AutoTokenizer

    source, files = open_source(job, cache), read_model_files(job)
    if job.messages_column not in source.columns:
        raise ConfigError(f"--messages-column {job.messages_column!r}: {source.name} has {', '.join(source.columns)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=job.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:  # no tokenizer files, or a package that they need
        raise ConfigError(f"--model {job.model}: no tokenizer: {load_problem(error)}") from error
    if chat_template is None and not tokenizer.chat_template:
        raise ConfigError(f"{job.model} has no chat template: --chat-template FILE gives one")
    tokenizer.name_or_path = job.model
    try:
        encoder = ChatEncoder(tokenizer, chat_template.read_text() if chat_template else None, **options)
    except (OSError, TemplateError) as error:
        raise ConfigError(f"--chat-template {chat_template}: {error}") from None
    for row in source.read(np.arange(min(rows, source.num_rows)), (job.messages_column, "tools")):
        yield _show(encoder, row, job.messages_column, color=color)


def _show(encoder: ChatEncoder, row: Row, column: str, *, color: bool) -> Shown:
    try:
        chat = encoder.encode(template_messages(row.data.get(column)), row.data.get("tools"))
    except (RowError, TemplateError) as error:
        detail = str(error) if isinstance(error, TemplateError) else f"{error.detail} ({error.reason})"
        return Shown(f"row {row.index}: no mask: {detail}", is_refused=True)
    notes = [f"{sum(chat.assistant_mask)} of {len(chat.input_ids)} tokens"]
    notes += [f"{chat.crossing} across a border, left out"] * bool(chat.crossing)
    notes += [f"the template does not print: {', '.join(chat.unread)}"] * bool(chat.unread)
    return Shown(f"row {row.index}: {'; '.join(notes)}\n{paint(_pieces(chat), color=color)}", is_refused=False)


def _pieces(chat: EncodedChat) -> Iterator[Piece]:
    """What the assistant generated is green, or between ⟦ and ⟧ where there are no colours."""
    here = 0
    for span in chat.spans:
        yield Piece(chat.text[here : span.start])
        yield Piece(chat.text[span.start : span.stop], "green", "")
        here = span.stop
    yield Piece(chat.text[here:])
