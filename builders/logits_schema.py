"""The columns of a logits dataset, and what a reader must know of it beyond them: `LogitsFormat`, kept in file metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from builders.logits_options import check_encoding
from builders.packing import TAIL_COLUMN, TEMPERATURE_COLUMN
from builders.rank_table import RankTable, rank_bytes
from builders.schema import Column

METADATA_KEY = b"stillroom_logits"
ELEMENT_TYPES: dict[str, pa.DataType] = {
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "int32": pa.int32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}


@dataclass(frozen=True)
class ListColumn(Column):
    """A column of lists of any length."""

    @property
    def arrow_type(self) -> pa.DataType:
        """Type in Arrow and Parquet."""
        return pa.list_(pa.field("element", ELEMENT_TYPES[self.dtype]))

    @property
    def feature(self) -> dict[str, Any]:
        """The JSON of `List(Value(dtype))`."""
        return {"feature": {"dtype": self.dtype, "_type": "Value"}, "_type": "List"}


@dataclass(frozen=True)
class BytesColumn(Column):
    """A column of bytes; `dtype` is "binary"."""

    @property
    def arrow_type(self) -> pa.DataType:
        """Type in Arrow and Parquet."""
        return pa.binary()


@dataclass(frozen=True)
class LogitsFormat:
    """What every chunk of a logits dataset says of its records."""

    encoding: Literal["default", "compact"]
    vocab_size: int  # width of the model's logits
    tokenizer: str  # `vocabulary_hash` of the teacher's tokenizer
    num_sampled: int
    top_p: float = 0.98
    top_p_max_elements: int = 100
    select: Literal["top-p", "global"] = "top-p"
    threshold: float | None = None  # of `global`: ids with p above it are exact, others weigh it
    temperatures: tuple[float, ...] = (1.0,)
    ranks_sha256: str = ""  # of the compact encoding's rank table

    def __post_init__(self) -> None:
        check_encoding(self.encoding, self.select, self.temperatures)

    def to_metadata(self) -> dict[bytes, bytes]:
        """For the metadata of an Arrow schema or a Parquet file. ValueError: compact records, and no rank table named."""
        if self.encoding == "compact" and not self.ranks_sha256:
            raise ValueError("--encoding compact needs a rank table")
        return {METADATA_KEY: json.dumps(asdict(self), sort_keys=True).encode()}

    @staticmethod
    def from_metadata(metadata: Mapping[bytes, bytes] | None) -> LogitsFormat:
        """Read `to_metadata`. ValueError: the file is no chunk of a logits dataset."""
        if not metadata or METADATA_KEY not in metadata:
            raise ValueError("no teacher logits here: the file's metadata has no `stillroom_logits`")
        values = json.loads(metadata[METADATA_KEY])
        return LogitsFormat(**values | {"temperatures": tuple(values["temperatures"])})

    def check_ranks(self, ranks: RankTable | None) -> None:
        """Raise ValueError unless this is the rank table that the records were packed with."""
        if self.encoding == "compact" and (ranks is None or ranks.sha256 != self.ranks_sha256):
            found = "none" if ranks is None else f"one of {len(ranks.ids):,} ids, {ranks.sha256[:12]}"
            raise ValueError(f"the records need the rank table {self.ranks_sha256[:12]}; this is {found}")

    def check_temperature(self, temperature: float) -> None:
        """Raise ValueError unless the records serve this temperature."""
        if temperature not in self.temperatures:
            served = ",".join(f"{t:g}" for t in sorted(self.temperatures))
            raise ValueError(
                f"temperature {temperature:g}: the dataset serves {served} alone; build one with --temperatures"
            )


def logits_columns(form: LogitsFormat) -> list[Column]:
    """Columns of a logits dataset, in order; `index` first. `id` and `dataset_source` are the caller's to put after it."""
    columns = [
        Column("index", "int64", "Position of the row in the source split at its pinned revision, from 0."),
        Column("num_tokens", "int32", "Assistant tokens, T; each has the distribution that predicts it."),
    ]
    columns += _compact_columns(form) if form.encoding == "compact" else _default_columns(form)
    columns += [
        ListColumn("input_ids", "int32", "Tokens of the conversation as the teacher read it."),
        ListColumn("positions", "int32", "Which of `input_ids` the T distributions predict."),
    ]
    if len(form.temperatures) > 1:
        columns += [
            ListColumn(f"{TEMPERATURE_COLUMN}{t:g}", "float64", f"logsumexp(logits / {t:g}), one per token.")
            for t in form.temperatures
            if t != 1
        ]
        columns += [
            ListColumn(f"{TAIL_COLUMN}{t:g}", "float32", f"Mass outside the nucleus at temperature {t:g}, per token.")
            for t in form.temperatures
        ]
    return columns


def _default_columns(form: LogitsFormat) -> list[Column]:
    # split by byte, three columns take 0.8 of their size; nucleus logits, which fall from 65,535 to 0 in each token, 1.2
    n = form.num_sampled
    drawn = f"the {n} ids per token drawn from outside the nucleus"
    return [
        ListColumn(
            "top_indices_low", "uint16", "Low 16 bits of the nucleus ids, all tokens concatenated.", split=True
        ),
        BytesColumn(
            "top_indices_high", "binary", "Bits 16 and 17 of the nucleus ids, four per byte, the first lowest."
        ),
        ListColumn("top_logits_quantized", "uint16", "(logit - top_min) / (top_max - top_min) * 65535, rounded."),
        ListColumn(
            "top_counts", "uint8", f"Nucleus ids per token: mass >= {form.top_p}, at most {form.top_p_max_elements}."
        ),
        ListColumn("top_min", "float32", "Least nucleus logit of each token."),
        ListColumn("top_max", "float32", "Greatest nucleus logit of each token."),
        ListColumn("sampled_indices_low", "uint16", f"Low 16 bits of {drawn}.", split=True),
        BytesColumn("sampled_indices_high", "binary", f"Bits 16 and 17 of {drawn}, four per byte."),
        ListColumn(
            "sampled_logits_quantized", "uint16", "Their logits, between sampled_min and sampled_max.", split=True
        ),
        ListColumn("sampled_min", "float32", "Least sampled logit of each token."),
        ListColumn("sampled_max", "float32", "Greatest sampled logit of each token."),
        ListColumn("logsumexp", "float64", "logsumexp of all logits of each token: p = exp(logit - logsumexp)."),
    ]


def _compact_columns(form: LogitsFormat) -> list[Column]:
    planes = range(rank_bytes(form.vocab_size))

    def split(name: str, about: str, numbers: range) -> list[Column]:
        return [BytesColumn(f"{name}_{i}", "binary", f"{about}; byte {i} of each, lowest first.") for i in numbers]

    def counts(name: str, about: str) -> list[Column]:
        low: list[Column] = [BytesColumn(name, "binary", f"{about}, per token.")]
        high = BytesColumn(f"{name}_1", "binary", "256 more for each.")
        return [*low, high] if form.select == "global" else low

    columns = counts("exact_counts", "Entries with a probability of their own")
    columns += split("exact_ranks", "Their ids as ranks in the dataset's table, as differences", planes)
    columns += split("exact_values", "Their probabilities in steps of sqrt(p)", range(2))
    columns += counts("sampled_counts", "Ids drawn from the others, which weigh alike")
    columns += split("sampled_ranks", "These ids, as exact_ranks", planes)
    columns += [BytesColumn("rest", "binary", "Mass outside the exact entries, (b / 255)^2, one byte per token.")]
    columns += split("logsumexp", "64 logsumexp, rounded", range(3))
    if form.select == "global":
        columns.append(Column("sample_weight", "float32", "What each drawn id weighs."))
    return columns
