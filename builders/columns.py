"""The columns of a job's records, whatever its build."""

from __future__ import annotations

from collections.abc import Sequence

from builders.job import Job
from builders.lengths_schema import lengths_columns
from builders.logits_schema import LogitsFormat, logits_columns
from builders.options import ConfigError
from builders.schema import Column, MessagesColumn, embeddings_columns

MESSAGES = "messages"  # name of the column of chats


def record_columns(job: Job, source_columns: Sequence[str], dimension: int) -> list[Column]:
    """Columns of the records: `dimension` is that of the vectors, or the number of ids that the model knows."""
    columns = _columns(job, source_columns, dimension)
    if not job.keep_messages:
        return columns
    place = sum(column.name in ("index", "id", "dataset_source") for column in columns)
    about = f"`{job.messages_column}` of the source row, text alone, with reasoning between `<think>` and `</think>`."
    return [*columns[:place], MessagesColumn(MESSAGES, "{role, content}", about), *columns[place:]]


def check_messages(job: Job, source_columns: Sequence[str]) -> None:
    """Raise ConfigError where the job keeps chats and its source has none."""
    if job.keep_messages and job.messages_column not in source_columns:
        raise ConfigError(
            f"--keep-messages: {job.source} has no column {job.messages_column!r}, it has {', '.join(source_columns)}: "
            "--messages-column names the one that holds the chat"
        )


def _columns(job: Job, source_columns: Sequence[str], dimension: int) -> list[Column]:
    if job.build == "embeddings":
        return embeddings_columns(job, source_columns, dimension)
    if job.build == "lengths":
        return lengths_columns(job, source_columns)
    index, *columns = logits_columns(logits_format(job, dimension))
    carried = [
        (job.id_column, Column("id", "string", f"`{job.id_column}` of the source row.")),
        (job.source_column, Column("dataset_source", "string", f"`{job.source_column}` of the source row.")),
    ]
    return [
        index,
        *(column for name, column in carried if name in source_columns),
        Column("content_hash", "string", "Hash of the tokens and of which are captured (BLAKE2b, 128 bits)."),
        Column("truncated", "bool", f"Whether the conversation was longer than {job.max_length} tokens and was cut."),
        *columns,
    ]


def logits_format(job: Job, vocab_size: int, tokenizer: str = "", ranks_sha256: str = "") -> LogitsFormat:
    """What the chunks of a logits job say of their records. `tokenizer` is the hash of the teacher's vocabulary."""
    return LogitsFormat(
        encoding=job.encoding,  # type: ignore[arg-type]
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        num_sampled=job.num_sampled,
        top_p=job.top_p,
        top_p_max_elements=job.top_p_max_elements,
        select=job.select,  # type: ignore[arg-type]
        threshold=job.global_threshold if job.select == "global" else None,
        temperatures=job.temperatures,
        ranks_sha256=ranks_sha256,
    )
