"""An embeddings dataset as files for training and for other programs: `stillroom export OUTPUT DEST --to KIND`.

    safetensors  all/ and by_source/NAME/, each with embeddings.safetensors (`embeddings`, `index`) and metadata.parquet
    pt           embeddings.pt: {"ids": [...], "emb": tensor [N, D]}, for torch.load(weights_only=True)
    npy          embeddings.npy and metadata.parquet
    parquet      embeddings.parquet: all columns in one file
    faiss        index.faiss, a flat index of cosines, and metadata.parquet
    chroma, lancedb   a database with the table `embeddings`

Row i of a matrix is row i of its metadata. Vectors are float16 where the dataset stores that, else float32. Chunks are read
one after the other, 8,192 rows at a time. Every file is read back and its hash compared; SHA256SUMS comes last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.curate.matrix_files import CorruptError, MatrixFile, NpyFile, SafetensorsFile, TorchFile, file_sha256
from builders.curate.safe_names import SafeNames
from builders.curate.vector_stores import FaissFile, write_chroma, write_lancedb
from builders.curate.vectors import VectorDataset
from builders.schema import embedding_names, text_names
from builders.stored_vectors import stored_array

GROUP_ROWS = 25_000  # of a row group at most, as in the chunks
GROUP_BYTES = 24 << 20  # of its vectors; a writer takes some five times as much
MAX_SOURCES = 400  # files that are open at once; a process may have 1,024
SUMS = "SHA256SUMS"


@dataclass
class Export:
    """What was written: rows, files with their SHA-256 by path in `folder`, and the folder of each source."""

    folder: Path
    num_rows: int = 0
    sums: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str | None] = field(default_factory=dict)


def export_vectors(dataset: VectorDataset, kind: str, folder: Path) -> Export:
    """Write the dataset to a new folder.

    Raises:
        ValueError: the folder holds something, or there are too many sources.
        CorruptError: a file does not hold what was written to it.
        MissingExtraError: the kind needs a package that is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not empty: give a new folder")
    out = Export(folder)
    if kind in ("chroma", "lancedb"):
        folder.mkdir(parents=True, exist_ok=True)
        _to_database(dataset, kind, out)
        return out
    if kind == "parquet":
        _to_parquet(dataset, out)
    else:
        _to_matrix(dataset, kind, out)
    about = {
        "dataset": dataset.name,
        "revision": dataset.revision,
        "column": dataset.column,
        "state": str(dataset.progress),
    }
    _write(out, "export.json", {**about, "rows": out.num_rows, "dimension": dataset.dimension, "sources": out.sources})
    (folder / SUMS).write_text("".join(f"{sha256}  {path}\n" for path, sha256 in sorted(out.sums.items())))
    return out


def other_columns(dataset: VectorDataset) -> list[str]:
    """Names of all columns but vectors."""
    vectors = embedding_names(dataset.stored.job)
    return [name for name in dataset.schema.names if name not in vectors]


def pieces(dataset: VectorDataset) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """Vectors [B, D], float16 where they are stored so, else float32, with the other columns of the same records."""
    others = other_columns(dataset)
    schema = pa.schema([dataset.schema.field(name) for name in others])
    for batch in dataset.batches([*others, dataset.column]):
        stored = stored_array(batch[dataset.column])
        vectors = stored if stored.dtype == np.float16 else dataset.form.dequantize(stored)
        yield vectors, pa.RecordBatch.from_arrays([batch[name] for name in others], schema=schema)


class Metadata:
    """metadata.parquet beside a matrix."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.num_rows, self.held = path, 0, list[pa.RecordBatch]()
        self.num_held = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writer = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, rows: pa.RecordBatch) -> None:
        """Append records; they are held until they make a row group."""
        self.num_rows += len(rows)
        self.num_held += len(rows)
        self.held.append(rows)
        if self.num_held >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.held:
            self.writer.write_table(pa.Table.from_batches(self.held), row_group_size=GROUP_ROWS)
        self.held, self.num_held = [], 0

    def close(self) -> str:
        """Finish the file and return its SHA-256. CorruptError: it has lost rows."""
        self._flush()
        self.writer.close()
        return checked(self.path, self.num_rows)


def checked(path: Path, num_rows: int) -> str:
    """Read a Parquet file back and return its SHA-256. CorruptError: it cannot be read, or has other rows."""
    try:
        found = 0
        with pq.ParquetFile(path) as file:  # one row group after the other: iter_batches keeps what it has read
            for group in range(file.num_row_groups):
                found += len(file.read_row_group(group, use_threads=False))
                pa.default_memory_pool().release_unused()
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path} cannot be read back: {error}") from error
    if found != num_rows:
        raise CorruptError(f"{path}: {found} rows are there, and {num_rows} were written")
    return file_sha256(path)


def _to_matrix(dataset: VectorDataset, kind: str, out: Export) -> None:
    """One matrix of all rows, and with safetensors one of each source."""
    about = {"dataset": dataset.name, "revision": str(dataset.revision), "column": dataset.column}
    names, parts = SafeNames(), dict[str, tuple[MatrixFile, Metadata | None]]()
    source = dataset.stored.job.source_column and "dataset_source"
    with ExitStack() as stack:
        for vectors, rows in pieces(dataset):
            targets = [("all" if kind == "safetensors" else "", np.ones(len(rows), bool))]
            if kind == "safetensors" and source in rows.schema.names:
                targets += _by_source(rows[source], names)
            for place, chosen in targets:
                if place not in parts:
                    parts[place] = _part(out.folder / place, kind, rows.schema, about)
                    if (metadata := parts[place][1]) is not None:
                        stack.callback(metadata.writer.close)
                _append(parts[place], vectors[chosen], rows.filter(pa.array(chosen)))
            out.num_rows += len(rows)
        for place, (matrix, metadata) in parts.items():
            _note(out, matrix_path(out.folder / place, kind), matrix.close())
            if metadata is not None:
                _note(out, metadata.path, metadata.close())
    out.sources = {folder: name for name, folder in names.items()}


def _by_source(column: pa.Array, names: SafeNames) -> list[tuple[str, np.ndarray]]:
    values = np.array(column.to_pylist(), object)
    found = [(f"by_source/{names[name]}", values == name) for name in dict.fromkeys(values)]
    if len(names.items()) > MAX_SOURCES:
        raise ValueError(f"there are more than {MAX_SOURCES} sources: --to npy or --to parquet writes one matrix")
    return found


def matrix_path(folder: Path, kind: str) -> Path:
    """Where the matrix of a kind stands."""
    return folder / ("index.faiss" if kind == "faiss" else f"embeddings.{kind}")


def _part(folder: Path, kind: str, schema: pa.Schema, about: dict[str, str]) -> tuple[MatrixFile, Metadata | None]:
    path = matrix_path(folder, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pt":
        return TorchFile(path), None
    rows = Metadata(folder / "metadata.parquet", schema)
    if kind == "safetensors":
        return SafetensorsFile(path, about), rows
    return (FaissFile(path) if kind == "faiss" else NpyFile(path)), rows


def _append(part: tuple[MatrixFile, Metadata | None], vectors: np.ndarray, rows: pa.RecordBatch) -> None:
    matrix, metadata = part
    matrix.write(vectors, rows["index"].to_numpy())
    if metadata is not None:
        metadata.write(rows)
    elif isinstance(matrix, TorchFile):
        matrix.ids += rows["id" if "id" in rows.schema.names else "index"].to_pylist()


def _to_parquet(dataset: VectorDataset, out: Export) -> None:
    path = out.folder / "embeddings.parquet"
    out.folder.mkdir(parents=True, exist_ok=True)
    names = [*other_columns(dataset), dataset.column]
    schema = pa.schema([dataset.schema.field(name) for name in names], metadata=dataset.schema.metadata)
    leaf = f"{dataset.column}.list.element"
    is_float = schema.field(dataset.column).type == pa.list_(pa.field("element", pa.float32()), dataset.dimension)
    options: dict[str, Any] = {"column_encoding": {leaf: "BYTE_STREAM_SPLIT"}} if is_float else {}
    strings = [f.name for f in schema if pa.types.is_string(f.type)]
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=strings, write_page_index=True, **options
    ) as file:
        held: list[pa.RecordBatch] = []
        for batch in dataset.batches(names):
            held.append(batch)
            out.num_rows += len(batch)
            if sum(map(len, held)) * 4 * dataset.dimension >= GROUP_BYTES or sum(map(len, held)) >= GROUP_ROWS:
                file.write_table(pa.Table.from_batches(held).cast(schema))
                held = []
        if held:
            file.write_table(pa.Table.from_batches(held).cast(schema))
    _note(out, path, checked(path, out.num_rows))


def _to_database(dataset: VectorDataset, kind: str, out: Export) -> None:
    others = other_columns(dataset)
    if kind == "lancedb":
        schema = pa.schema([dataset.schema.field(name) for name in others])
        out.num_rows = write_lancedb(out.folder, pieces(dataset), schema, dataset.dimension)
    else:
        text = next((name for name in text_names(dataset.stored.job) if name in others), None)
        out.num_rows = write_chroma(out.folder, pieces(dataset), text)


def _note(out: Export, path: Path, sha256: str) -> None:
    out.sums[path.relative_to(out.folder).as_posix()] = sha256


def _write(out: Export, name: str, content: dict[str, Any]) -> None:
    path = out.folder / name
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    _note(out, path, file_sha256(path))
