"""What a build does with a row: the samples that the model gets, the columns that come out, and the work between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from builders.columns import check_messages, logits_format, record_columns
from builders.compact import compact_bytes
from builders.distill import vocabulary_hash
from builders.images import row_view
from builders.job import Job
from builders.lengths_schema import counting
from builders.logits_schema import LogitsFormat
from builders.options import ConfigError
from builders.packing import record_bytes
from builders.quantize import BYTES, VectorFormat
from builders.rank_table import RankTable
from builders.row import Row
from builders.schema import Column
from builders.source import Source
from builders.units import Unit
from extract.carry import OldRecords, carry
from extract.chats import chats, open_encoder
from extract.engines import Engine
from extract.lengths import LengthsWork, chat_lengths, text_lengths
from extract.logits import LogitsWork
from extract.model_files import NO_LIMIT, ModelFiles
from extract.processor import VisionProcessor, load_processor
from extract.sample import Sample
from extract.stages import samples, scenes, texts
from extract.tokens import TextTokenizer, load_text_tokenizer, load_tokenizer
from extract.vectors import VectorWork
from extract.work import Work

ROW_BYTES = 64  # of a record beside its vectors and text


class Build(Protocol):
    """One kind of dataset. The spine asks it for all that differs between them."""

    needed_columns: Sequence[str]  # of the source

    def work(self, unit: Unit) -> Work:
        """Begin a unit."""

    def samples(self, rows: Iterable[Row], work: Work) -> Iterator[Sample]:
        """Make samples of the rows that no earlier run has finished; account for every row in `work`."""

    def columns(self, engine: Engine) -> list[Column]:
        """Columns of the records."""

    def row_bytes(self, work: Work, engine: Engine) -> float:
        """Bytes of a record, from a unit that is finished: what sizes chunks."""


class EmbeddingsBuild:
    """Texts of a row, a vector for each; or its text and images, and a vector of all."""

    def __init__(
        self,
        job: Job,
        source: Source,
        tokenizer: TextTokenizer | VisionProcessor,
        old: OldRecords | None = None,
        ranges: np.ndarray | None = None,
    ) -> None:
        self.job, self.source, self.tokenizer, self.old, self.ranges = job, source, tokenizer, old, ranges
        self.form: VectorFormat | None = None
        wanted = (job.id_column, job.source_column, *([job.messages_column] if job.keep_messages else []))
        carried = [name for name in wanted if name in source.columns]
        self.view = row_view(job)
        self.needed_columns: Sequence[str] = list(dict.fromkeys([*self.view.columns(source.columns), *carried]))

    def work(self, unit: Unit) -> VectorWork:
        """See Build."""
        return VectorWork(unit, self.job, form=self.form)

    def samples(self, rows: Iterable[Row], work: Work) -> Iterator[Sample]:
        """See Build: an update carries texts over that the older generation has."""
        assert isinstance(work, VectorWork)
        wanted = carry(texts(rows, self.view, work), self.old, work)
        if isinstance(self.tokenizer, VisionProcessor):
            return scenes(wanted, self.tokenizer, work)
        return samples(wanted, self.tokenizer, work)

    def columns(self, engine: Engine) -> list[Column]:
        """See Build. ConfigError: the vectors have other dimensions than the dataset's ranges."""
        if self.ranges is not None and self.ranges.shape[1] != engine.dimension:
            raise ConfigError(
                f"--model {self.job.model} gives {engine.dimension} dimensions, and the ranges have {self.ranges.shape[1]}"
            )
        self.form = VectorFormat(self.job.storage_dtype, engine.dimension, self.ranges)
        return record_columns(self.job, self.source.columns, engine.dimension)

    def row_bytes(self, work: Work, engine: Engine) -> float:
        """See Build."""
        assert isinstance(work, VectorWork)
        value_bytes = BYTES[self.job.storage_dtype]
        text_bytes = sum(len(t.text) for row in work.texts.values() for t in row) / max(1, len(work.texts))
        vector_bytes = engine.dimension * value_bytes * max(1, len(self.job.fields))
        return ROW_BYTES + vector_bytes + text_bytes + work.message_bytes


class LogitsBuild:
    """Conversations, and the teacher's distribution of every token that the assistant generated.

    Compact records need the dataset's rank table; a pilot, which writes none, does not.
    """

    def __init__(self, job: Job, source: Source, tokenizer: Any, ranks: RankTable | None = None) -> None:
        self.job, self.source, self.tokenizer, self.ranks = job, source, tokenizer, ranks
        names = (job.messages_column, job.tools_column, job.id_column, job.source_column)
        self.needed_columns: Sequence[str] = [name for name in names if name in source.columns]
        self.encoder = open_encoder(job, tokenizer)
        self.form: LogitsFormat | None = None

    def work(self, unit: Unit) -> LogitsWork:
        """See Build."""
        return LogitsWork(unit, self.job, form=self.form, ranks=self.ranks)

    def samples(self, rows: Iterable[Row], work: Work) -> Iterator[Sample]:
        """See Build."""
        assert isinstance(work, LogitsWork)
        return chats(rows, self.encoder, work)

    def columns(self, engine: Engine) -> list[Column]:
        """See Build. ConfigError: the model has other ids than the rank table."""
        sha256 = ""
        if self.ranks is not None:
            sha256 = self.ranks.sha256
            if len(self.ranks.ids) != engine.dimension:
                raise ConfigError(
                    f"--model {self.job.model}: its logits have {engine.dimension:,} ids, and the rank table has "
                    f"{len(self.ranks.ids):,}: take --encoding default"
                )
        self.form = logits_format(self.job, engine.dimension, vocabulary_hash(self.tokenizer), sha256)
        return record_columns(self.job, self.source.columns, engine.dimension)

    def row_bytes(self, work: Work, engine: Engine) -> float:
        """See Build."""
        counts = work.counts()
        if self.job.is_compact:
            size = compact_bytes(counts["entries"], counts["drawn"], counts["captured"]) + 2 * counts["tokens"]
        else:
            size = record_bytes(counts["entries"], counts["captured"], self.job.num_sampled) + 4 * counts["tokens"]
        return ROW_BYTES + size / max(1, counts["records"]) + work.message_bytes


class LengthsBuild:
    """Rows, and how many tokens each has: of its conversation, or of its texts."""

    def __init__(self, job: Job, source: Source, tokenizer: Any) -> None:
        self.job, self.source = job, source
        is_chat = job.count == "chat"
        self.encoder = open_encoder(job, tokenizer) if is_chat else None
        self.facts = counting(job, tokenizer)
        self.tokenizer = None if is_chat else TextTokenizer(tokenizer, NO_LIMIT, instruction=job.instruction or "")
        own = (job.messages_column, job.tools_column) if is_chat else job.view.columns(source.columns)
        chat = (job.messages_column,) if job.keep_messages else ()
        names = dict.fromkeys([*own, *chat, job.id_column, job.source_column])
        self.needed_columns: Sequence[str] = [name for name in names if name in source.columns]

    def work(self, unit: Unit) -> LengthsWork:
        """See Build."""
        return LengthsWork(unit, self.job, facts=self.facts)

    def samples(self, rows: Iterable[Row], work: Work) -> Iterator[Sample]:
        """See Build."""
        assert isinstance(work, LengthsWork)
        if self.encoder is not None:
            return chat_lengths(rows, self.encoder, work)
        assert self.tokenizer is not None
        return text_lengths(texts(rows, self.job.view, work), self.tokenizer, work)

    def columns(self, engine: Engine) -> list[Column]:
        """See Build."""
        return record_columns(self.job, self.source.columns, 0)

    def row_bytes(self, work: Work, engine: Engine) -> float:
        """See Build."""
        return ROW_BYTES + work.message_bytes


def open_build(
    job: Job,
    source: Source,
    files: ModelFiles,
    old: OldRecords | None = None,
    ranks: RankTable | None = None,
    ranges: np.ndarray | None = None,
) -> Build:
    """Return the job's build, with the model's tokenizer.

    Raises:
        ConfigError: the model has no tokenizer, its chat template gives no certain mask, or there is no chat to keep.
    """
    check_messages(job, source.columns)
    if job.build == "logits":
        return LogitsBuild(job, source, load_tokenizer(job, files), ranks)
    if job.build == "lengths":
        return LengthsBuild(job, source, load_tokenizer(job, files))
    tokens = load_processor(job, files) if job.image_column else load_text_tokenizer(job, files)
    return EmbeddingsBuild(job, source, tokens, old, ranges)
