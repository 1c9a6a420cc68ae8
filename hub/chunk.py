"""A chunk: the Parquet file of one unit. How it is laid out, what its metadata says, and how it comes to be whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

METADATA_KEY = b"stillroom"
ENCODING_KEY = b"parquet_encoding"
LEVEL = 6  # of zstd; vectors of floats keep the default, as their low bytes are noise
MAX_GROUP_ROWS = 25_000
MAX_GROUP_BYTES = 100 * 2**20  # Arrow bytes; the dataset viewer refuses to scan more than 300 MB


def write_chunk(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> str:
    """Write a table as Parquet that appears whole or not at all, and return the file's SHA-256 (64 hex digits).

    Float32 vectors are split by byte and compressed (zstd): 0.85 of their size, and 5 to 9 times faster to read than with
    the dictionary that writers use by default. Float16 is left plain, as DuckDB cannot read it split. Int8, which Parquet
    has as 32 bits, is a byte in a dictionary: 390 bytes of 384 values, read in a third of the time that zstd takes for 357.
    Other columns may name a `parquet_encoding` in their field's metadata; they are compressed at level 6, as readers do not
    pay for it (teacher logits: 195 bytes per token, not 208 at level 1, and 238 at level 1 without splits).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), METADATA_KEY: json.dumps(metadata)})
    splits = dict.fromkeys(_vector_leaves(schema, pa.float32()), "BYTE_STREAM_SPLIT")
    plain = dict.fromkeys(_vector_leaves(schema, pa.float16()), "PLAIN")
    small = _vector_leaves(schema, pa.int8())
    chosen = {
        leaf: field.metadata[ENCODING_KEY].decode()
        for field in schema
        if ENCODING_KEY in (field.metadata or {})
        for leaf in _leaves(field)
    }
    leaves = [leaf for field in schema for leaf in _leaves(field)]
    others = [leaf for leaf in leaves if leaf not in {*splits, *plain, *small}]
    pq.write_table(
        table.replace_schema_metadata(schema.metadata),
        partial,
        row_group_size=group_rows(table),
        compression={**dict.fromkeys(leaves, "zstd"), **dict.fromkeys(small, "none")},
        compression_level=dict.fromkeys(others, LEVEL),
        use_dictionary=[*(field.name for field in schema if pa.types.is_string(field.type)), *small],
        column_encoding=splits | plain | chosen,
        write_page_index=True,
    )
    sha256 = sync_and_hash(partial)
    os.replace(partial, path)
    sync_folder(path.parent)
    return sha256


def _leaves(field: pa.Field) -> list[str]:
    """Parquet leaf names of a column of numbers, strings or bytes, of lists of them, or of lists of structs of them."""
    nested = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    name, kind = (f"{field.name}.list.element", field.type.value_type) if nested else (field.name, field.type)
    return [f"{name}.{part.name}" for part in kind] if pa.types.is_struct(kind) else [name]


def _vector_leaves(schema: pa.Schema, value_type: pa.DataType) -> list[str]:
    """Parquet leaf names (`embedding.list.element`) of the fixed-size lists of a type."""
    return [
        f"{field.name}.list.element"
        for field in schema
        if pa.types.is_fixed_size_list(field.type) and field.type.value_type == value_type
    ]


def group_rows(table: pa.Table) -> int:
    """Rows per row group: at most 25,000 and 100 MB, so that a viewer's scan stays small.

    Parquet has lists of 8 and 16 bits as 32 bits, and its own sizes say so.
    """
    row_bytes = max(1, sum(map(_parquet_bytes, table.columns)) // max(1, table.num_rows))
    return max(1, min(MAX_GROUP_ROWS, MAX_GROUP_BYTES // row_bytes))


def _parquet_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a column without compression."""
    is_small = pa.types.is_list(column.type) and column.type.value_type in (pa.uint8(), pa.uint16())
    return int(column.nbytes * (32 // column.type.value_type.bit_width if is_small else 1))


def chunk_metadata(file: Any) -> dict[str, Any]:
    """Return what the writer said of a chunk (a path or an open binary file); {} where it is none of ours."""
    metadata = pq.read_metadata(file).metadata or {}
    return json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else {}


def sync_and_hash(path: Path) -> str:
    """Flush a file to the disk and return its SHA-256."""
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)
