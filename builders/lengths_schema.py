"""The columns of a lengths dataset, what was counted, and what is wrong with records of one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from builders.job import Job
from builders.lengths import ROLES
from builders.logits_schema import ListColumn
from builders.options import ConfigError
from builders.schema import Column

METADATA_KEY = b"stillroom_lengths"
PARTS = ("assistant_tokens", *(f"{role}_tokens" for role in ROLES), "markup_tokens")  # sum to num_tokens


def lengths_columns(job: Job, source_columns: Sequence[str]) -> list[Column]:
    """Columns of a lengths dataset; `id` and `dataset_source` where the source has them."""
    columns = [Column("index", "int64", "Position of the row in the source split at its pinned revision, from 0.")]
    carried = ((job.id_column, "id"), (job.source_column, "dataset_source"))
    columns += [
        Column(name, "string", f"`{own}` of the source row.") for own, name in carried if own in source_columns
    ]
    if job.count == "text":
        columns.append(Column("num_tokens", "int32", "Tokens of the text, special tokens included; nothing is cut."))
        about = "Tokens of this field; 0 where it has no text."
        return columns + [Column(f"{name}_tokens", "int32", about) for name in job.fields]
    printed = "Tokens that the template's passes over {} messages print, their headers and ends included."
    return [
        *columns,
        Column("num_tokens", "int32", "Tokens of the conversation as the chat template prints it; nothing is cut."),
        Column("num_turns", "int32", "Messages of the conversation."),
        Column("assistant_tokens", "int32", "Tokens that a logits build captures. Null where `no_mask` says why."),
        *(Column(f"{role}_tokens", "int32", printed.format(role)) for role in ROLES),
        Column("markup_tokens", "int32", "All other tokens: headers of answers, and what the template adds."),
        ListColumn("assistant_runs", "int32", "Positions of the assistant's tokens: start, stop, start, stop, …"),
        Column("no_mask", "string", "Why nobody can tell the assistant's tokens for certain; null where one can."),
    ]


def counting(job: Job, tokenizer: Any) -> dict[str, str]:
    """Return by name what decides the counts of a row under a transformers tokenizer, whichever build counts.

    Two jobs count alike where all of it is equal. For a logits build, these are the facts of conversations; for an
    embeddings build, of texts.
    """
    facts = {"count": counted(job), "tokenizer": _digest(_plain_backend(tokenizer))}
    if facts["count"] == "text":
        names = ("text_template", "fields", "turns", "system", "instruction", "messages_column", "empty_text")
        return facts | {f"--{name.replace('_', '-')}": repr(getattr(job, name)) for name in names}
    asked: tuple[list[Any] | None, ...] = (None, [{}])
    try:
        sources = [tokenizer.get_chat_template(job.chat_template, tools) for tools in asked]
    except ValueError:
        raise ConfigError(f"--model {job.model} has no chat template: --chat-template FILE gives one") from None
    reads_date = any("strftime_now" in source for source in sources)
    return facts | {
        "chat template": _digest([sources, tokenizer.special_tokens_map]),
        "--template-date": str(job.template_date) if reads_date else "",
        "--messages-column": job.messages_column,
        "--tools-column": job.tools_column,
        "--end-of-turn": repr(job.end_of_turn),
    }


def counted(job: Job) -> str:
    """What a job's tokens are counted of: `chat` or `text`."""
    if job.build == "lengths":
        return str(job.count)
    return "chat" if job.build == "logits" else "text"


def to_metadata(facts: Mapping[str, str]) -> dict[bytes, bytes]:
    """`counting` for the metadata of an Arrow schema."""
    return {METADATA_KEY: json.dumps(facts, sort_keys=True).encode()}


def from_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Read `to_metadata`; {} where the file is no chunk of a lengths dataset."""
    return dict(json.loads((metadata or {}).get(METADATA_KEY, b"{}")))


def wrong_lengths(records: pa.RecordBatch) -> Iterator[str]:
    """Say what is wrong with records: a count below zero, or parts that do not sum to their total."""
    total = records["num_tokens"].to_numpy(zero_copy_only=False)
    if len(total) and total.min() < 1:
        yield f"row {records['index'][int(total.argmin())]}: {total.min()} tokens"
    if "assistant_tokens" not in records.schema.names:
        return
    known = records["assistant_tokens"].is_valid().to_numpy(zero_copy_only=False)
    parts = sum(records[name].fill_null(0).to_numpy(zero_copy_only=False) for name in PARTS)
    for row in np.flatnonzero(known & (parts != total))[:1].tolist():
        yield f"row {records['index'][row]}: its parts sum to {parts[row]} tokens, not {total[row]}"
    unexplained = known != records["no_mask"].is_null().to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(unexplained)[:1].tolist():
        yield f"row {records['index'][row]}: assistant_tokens and no_mask contradict each other"


def _plain_backend(tokenizer: Any) -> Any:
    """The tokenizer as JSON, without the cuts and padding that its user sets."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: part for name, part in content.items() if name not in ("truncation", "padding")}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
