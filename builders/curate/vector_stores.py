"""Vectors in the form of other programs: a FAISS file, and the databases Chroma and LanceDB."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builders.curate.extras import needed
from builders.curate.matrix_files import Body, CorruptError

# of a flat index, by faiss 1.15 write_index_header and WRITEXBVECTOR
FAISS_HEADER = struct.Struct("<4s i q q q ? i q")
FAISS_DUMMY = 1 << 20  # in two fields that faiss has no use for
INNER_PRODUCT = 0
TABLE = "embeddings"  # of both databases
CHROMA_TYPES = (str, int, float, bool)


class FaissFile:
    """A flat index of cosines (inner products of unit vectors): position i is row i of metadata.parquet.

    Written from blocks, where faiss itself would hold all vectors in memory; `faiss.read_index` opens it like its own.
    """

    def __init__(self, path: Path) -> None:
        self.body, self.num_rows, self.dims = Body(path, FAISS_HEADER.size), 0, 0

    def write(self, block: np.ndarray, index: np.ndarray) -> None:
        """See MatrixFile."""
        values = block.astype(np.float32)
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        self.num_rows, self.dims = self.num_rows + len(block), block.shape[1]
        self.body.append(values)

    def close(self) -> str:
        """See MatrixFile."""
        numbers = self.num_rows * self.dims
        about = (self.dims, self.num_rows, FAISS_DUMMY, FAISS_DUMMY, True, INNER_PRODUCT, numbers)
        return self.body.close(FAISS_HEADER.pack(b"IxFI", *about))


def write_lancedb(
    folder: Path, batches: Iterator[tuple[np.ndarray, pa.RecordBatch]], schema: pa.Schema, dims: int
) -> int:
    """Write a LanceDB table `embeddings` with the vectors in `vector`, and return its rows.

    Raises:
        MissingExtraError: lancedb is not installed.
        CorruptError: the table does not hold as many rows as were written.
    """
    lancedb = needed("lancedb", "pip install lancedb")
    kind = pa.list_(pa.float32(), dims)
    whole = pa.schema([*schema.remove_metadata(), pa.field("vector", kind)])
    counts = []

    def rows() -> Iterator[pa.RecordBatch]:
        for vectors, others in batches:
            counts.append(len(others))
            values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), dims)
            yield pa.RecordBatch.from_arrays([*others.columns, values], schema=whole)

    table = lancedb.connect(folder).create_table(TABLE, data=pa.RecordBatchReader.from_batches(whole, rows()))
    return _checked(folder, sum(counts), table.count_rows())


def write_chroma(folder: Path, batches: Iterator[tuple[np.ndarray, pa.RecordBatch]], text: str | None) -> int:
    """Write a Chroma collection `embeddings` (cosine) and return its rows: ids are those of rows in the source.

    Columns of one value become metadata, and `text`, where there is such a column, the documents.

    Raises:
        MissingExtraError: chromadb is not installed.
        CorruptError: the collection does not hold as many rows as were written.
    """
    chromadb = needed("chromadb", "pip install chromadb")
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(path=str(folder), settings=settings)
    collection = client.create_collection(TABLE, metadata={"hnsw:space": "cosine"}, embedding_function=None)
    limit, count = client.get_max_batch_size(), 0
    for vectors, others in batches:
        for start in range(0, len(others), limit):
            part = others.slice(start, limit)
            records = part.to_pylist()
            collection.add(
                ids=[str(record["index"]) for record in records],
                embeddings=vectors[start : start + limit].astype(np.float32),
                metadatas=[_scalars(record, text) for record in records],
                documents=[record[text] or "" for record in records] if text else None,
            )
            count += len(records)
    found = collection.count()
    client.close()  # of several clients of one folder in a process, all must have the same settings
    return _checked(folder, count, found)


def _scalars(record: dict[str, Any], text: str | None) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != text and isinstance(value, CHROMA_TYPES)}


def _checked(folder: Path, written: int, found: int) -> int:
    if written != found:
        raise CorruptError(f"{folder}: {found} rows are there, and {written} were written")
    return written
