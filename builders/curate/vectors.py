"""The vectors of an embeddings dataset, on the Hub or in a folder: in blocks, or as one matrix that is mapped into memory.

    dataset = open_dataset("user/x-embeddings")  # or "./out"; it may still grow: see dataset.progress
    for block in dataset.blocks():  # one pass, a block in memory
        block.indices, block.ids, block.vectors
    matrix = dataset.matrix()  # read once, then from the cache folder
    matrix.indices, matrix.ids, matrix.vectors

Only the columns that are asked for are read. Vectors come as float32 whatever the dataset stores; records without a vector (a
field that the row lacks) are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.curate.matrix import Matrix, write_matrix
from builders.curate.progress import Progress, read_progress
from builders.quantize import VectorFormat
from builders.schema import embedding_names
from builders.stored import StoredDataset, open_stored
from builders.stored_vectors import stored_array

BLOCK_ROWS = 8192  # 12 MB of 384 dimensions


@dataclass(frozen=True)
class Block:
    """B records: `indices` int64 [B], `ids` (None where the dataset has none), `vectors` float32 [B, D]."""

    indices: np.ndarray
    ids: list[str | None] | None
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class VectorDataset:
    """An embeddings dataset at one revision (None for a folder). `chunks` are in the order of the rows."""

    stored: StoredDataset
    revision: str | None
    column: str
    form: VectorFormat
    schema: pa.Schema
    chunks: tuple[str, ...]
    key: str  # a hash of the content of all chunks and of the column

    @property
    def name(self) -> str:
        """What it was opened by."""
        return self.stored.name

    @property
    def dimension(self) -> int:
        """D."""
        return self.form.dimension

    @property
    def has_ids(self) -> bool:
        """Whether it has the column `id`."""
        return "id" in self.schema.names

    @cached_property
    def progress(self) -> Progress:
        """How complete it is."""
        return read_progress(self.stored, self.chunks)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        """Yield all records in the order of the rows, at most `rows` at a time."""
        columns = ["index", *["id"] * self.has_ids, self.column]
        for batch in self.batches(columns, rows):
            ids = batch["id"].to_pylist() if self.has_ids else None
            stored = stored_array(batch[self.column])
            yield Block(batch["index"].to_numpy(), ids, np.ascontiguousarray(self.form.dequantize(stored)))

    def batches(self, columns: Sequence[str], rows: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield some columns of the records that have a vector, in the order of `blocks`.

        Raises:
            ValueError: there is no such column.
        """
        unknown = sorted(set(columns) - set(self.schema.names))
        if unknown:
            raise ValueError(f"{self.name} has no column {', '.join(unknown)}: it has {', '.join(self.schema.names)}")
        lacks = _may_lack(self.stored, self.column)
        wanted = list(dict.fromkeys([*columns, *[self.column] * lacks]))
        for path in self.chunks:
            with self.stored.filesystem.open(path, "rb") as file:
                for batch in pq.ParquetFile(file, pre_buffer=True).iter_batches(rows, columns=wanted):
                    kept = batch.filter(batch[self.column].is_valid()) if lacks else batch
                    if len(kept):
                        yield kept.select(columns)

    def matrix(self, cache: Path | None = None) -> Matrix:
        """Return all vectors as files that are mapped into memory; N * D * 4 bytes of disk, made once per content.

        `cache` is stillroom's cache folder, by default as `cache_folder` gives it.

        Raises:
            OSError: the disk is full, or the dataset does not answer.
        """
        folder = cache_folder(cache) / "vectors" / self.key
        if not (folder / "vectors.npy").exists():
            write_matrix(folder, self.blocks(), self.dimension)
        return Matrix.open(folder)


def open_dataset(
    name: str, *, column: str | None = None, config_name: str = "default", revision: str | None = None
) -> VectorDataset:
    """Open the vectors of a Hub dataset (user/name) or a folder at its newest revision, which may still grow.

    `column` is only needed where there are several (a job with --fields).

    Raises:
        ValueError: no such dataset, none of stillroom's, no embeddings, no chunk yet, or no such column.
        OSError: no answer.
    """
    name, revision = _pin(name, revision)
    stored = open_stored(name, config_name=config_name, revision=revision)
    if stored.job.build != "embeddings":
        raise ValueError(f"{name} is a dataset of {stored.job.build}: there are no vectors in it")
    chunks = stored.chunks()
    with stored.filesystem.open(chunks[0], "rb") as file:
        schema = pq.read_schema(file)
    names = embedding_names(stored.job)
    if column is None and len(names) > 1:
        raise ValueError(f"{name} has several vectors for each row: name one of {', '.join(names)} as the column")
    column = column or names[0]
    if column not in names:
        raise ValueError(f"{name} has no vectors {column!r}: it has {', '.join(names)}")
    return VectorDataset(stored, revision, column, _form(schema, column), schema, chunks, _key(stored, chunks, column))


def cache_folder(named: Path | str | None = None) -> Path:
    """The cache folder: the one named, else $STILLROOM_CACHE, else ~/.cache/stillroom."""
    return Path(os.path.expanduser(named or os.environ.get("STILLROOM_CACHE") or "~/.cache/stillroom"))


def _pin(name: str, revision: str | None) -> tuple[str, str | None]:
    """The whole name, and the sha of a Hub dataset: commits made from here on are not seen."""
    if os.path.isdir(os.path.expanduser(name)):
        return name, None
    if name.startswith((".", "/", "~")):
        raise ValueError(f"{name}: there is no such folder")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        whole = name if "/" in name else f"{api.whoami()['name']}/{name}"
        return whole, str(api.dataset_info(whole, revision=revision, expand=["sha"]).sha)
    except (OSError, ValueError) as error:  # of the Hub: no such dataset, no access, no token; or not a name
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # of whichever HTTP library the Hub's client uses
        raise OSError(f"the Hub cannot be reached: {error}") from error


def _form(schema: pa.Schema, column: str) -> VectorFormat:
    kind = schema.field(column).type
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_int8(kind.value_type):
        return VectorFormat.from_metadata(schema.metadata)
    return VectorFormat(str(np.dtype(kind.value_type.to_pandas_dtype())), kind.list_size)


def _may_lack(stored: StoredDataset, column: str) -> bool:
    return column in [f"embedding_{name}" for name in stored.job.fields]


def _key(stored: StoredDataset, chunks: Sequence[str], column: str) -> str:
    """Hash of what identifies the content: on the Hub its own hashes, so that a commit of something else changes nothing."""

    def identity(path: str) -> object:
        about = stored.filesystem.info(path)
        return (about.get("lfs") or {}).get("sha256") or about.get("blob_id") or [about["size"], about["mtime"]]

    said = [stored.root.partition("@")[0], column, [[path.rpartition("/")[2], identity(path)] for path in chunks]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]
