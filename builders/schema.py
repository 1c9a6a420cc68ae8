"""The columns of every dataset stillroom writes: Arrow type, `datasets` feature and a sentence each, defined once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from builders.job import Job

ARROW_TYPES: dict[str, pa.DataType] = {
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
}
BITS = "bits"


@dataclass(frozen=True)
class Column:
    """One column. `length` makes it a fixed-size list of `dtype`, as for vectors; `bits` are packed, eight in a byte.

    `split`: Parquet splits numbers by byte.
    """

    name: str
    dtype: str
    about: str
    length: int | None = None
    split: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of packed bits."""
        return -(-(self.length or 0) // 8)

    @property
    def arrow_type(self) -> pa.DataType:
        """Type in Arrow and Parquet."""
        if self.dtype == BITS:
            return pa.binary(self.num_bytes)
        value = ARROW_TYPES[self.dtype]
        return value if self.length is None else pa.list_(pa.field("element", value), self.length)

    @property
    def field(self) -> pa.Field:
        """Name, type, and how Parquet is to encode it, where that is not the writer's to choose."""
        encoding = {"parquet_encoding": "BYTE_STREAM_SPLIT"} if self.split else None
        return pa.field(self.name, self.arrow_type, metadata=encoding)

    @property
    def feature(self) -> dict[str, Any]:
        """The same as the JSON of a `datasets` feature (`Value`, `List`), which load_dataset reads from the schema."""
        dtype = f"fixed_size_binary[{self.num_bytes}]" if self.dtype == BITS else self.dtype
        value = {"dtype": dtype, "_type": "Value"}
        if self.dtype == BITS:
            return value
        return value if self.length is None else {"feature": value, "length": self.length, "_type": "List"}


@dataclass(frozen=True)
class MessagesColumn(Column):
    """A chat: a list of `{role, content}`, which the Hub's viewer and Embedding Atlas show as one."""

    @property
    def arrow_type(self) -> pa.DataType:
        """Type in Arrow and Parquet."""
        return pa.list_(pa.field("element", pa.struct({"role": pa.string(), "content": pa.string()})))

    @property
    def feature(self) -> dict[str, Any]:
        """The JSON of `List({"role": Value("string"), "content": Value("string")})`."""
        text = {"dtype": "string", "_type": "Value"}
        return {"feature": {"role": text, "content": text}, "_type": "List"}


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema, with the features that `datasets` looks for under the key `huggingface`."""
    features = {column.name: column.feature for column in columns}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([column.field for column in columns], metadata=metadata)


def embedding_names(job: Job) -> list[str]:
    """Names of the vector columns: `embedding`, or one for each of the job's fields, as in `embedding_think`."""
    return [f"embedding_{name}" for name in job.fields] or ["embedding"]


def text_names(job: Job) -> list[str]:
    """Names of the text columns, beside the vectors; none unless the job keeps text."""
    if not job.keep_text:
        return []
    return [f"text_{name}" for name in job.fields] or ["text"]


def embeddings_columns(job: Job, source_columns: Sequence[str], dimension: int) -> list[Column]:
    """Columns of an embeddings dataset; `id` and `dataset_source` where the source has them."""
    columns = [Column("index", "int64", "Position of the row in the source split at its pinned revision, from 0.")]
    if job.id_column in source_columns:
        columns.append(Column("id", "string", f"`{job.id_column}` of the source row."))
    if job.source_column in source_columns:
        columns.append(Column("dataset_source", "string", f"`{job.source_column}` of the source row."))
    content = "and the images" if job.image_column else "alone"
    columns += [
        Column(
            "content_hash", "string", f"Hash of the text {content} (BLAKE2b, 128 bits): equal in exact duplicates."
        ),
        Column("num_tokens", "int32", "Tokens that the model saw, special tokens included."),
        Column("truncated", "bool", f"Whether the text was longer than {job.max_length} tokens and was cut."),
    ]
    if job.image_column:
        columns.append(Column("num_images", "int32", "Images of the row, which the model saw before its text."))
    columns += [Column(name, "string", "The text before it was cut to length.") for name in text_names(job)]
    norm = "of length 1" if job.normalize else "as the model gave it"
    about = f"Vector of {dimension} dimensions, {norm}."
    if job.storage_dtype in ("int8", "binary"):
        about = f"Vector of {dimension} dimensions, quantised: `builders/quantize.py` restores it."
    dtype = BITS if job.storage_dtype == "binary" else job.storage_dtype
    columns += [Column(name, dtype, about, length=dimension) for name in embedding_names(job)]
    return columns


SKIPPED_COLUMNS = [
    Column("index", "int64", "Position of the row in the source split at its pinned revision, from 0."),
    Column("reason", "string", "Why the row gives no record, one word."),
    Column("detail", "string", "What was found instead, one line."),
]
