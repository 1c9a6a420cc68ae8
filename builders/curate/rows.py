"""What stands beside the vectors of a dataset, in the same order, mapped into memory: other columns, the vectors' lengths."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from builders.curate.matrix import Matrix
from builders.curate.vectors import VectorDataset
from builders.schema import embedding_names

BLOCK_ROWS = 8192


def open_rows(dataset: VectorDataset, matrix: Matrix) -> pa.Table:
    """All columns but vectors, a row for each row of the matrix; read once, then from the cache beside the matrix.

    Raises:
        OSError: the disk is full, or the dataset does not answer.
    """
    path = matrix.folder / "rows.arrow"
    names = embedding_names(dataset.stored.job)
    columns = [name for name in dataset.schema.names if name not in names]
    if not path.exists():
        schema = pa.schema([dataset.schema.field(name).remove_metadata() for name in columns])
        partial = _partial(path)
        try:
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
                for batch in dataset.batches(columns):
                    file.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def open_lengths(matrix: Matrix) -> np.ndarray:
    """Euclidean lengths of the vectors, float32 [N]: 1 but for what storing them rounds, or where the job says otherwise."""
    path = matrix.folder / "lengths.npy"
    if not path.exists():
        parts = range(0, len(matrix), BLOCK_ROWS)
        lengths = [np.linalg.norm(matrix.vectors[start : start + BLOCK_ROWS], axis=1) for start in parts]
        partial = _partial(path)
        with partial.open("wb") as file:
            np.save(file, np.concatenate([np.empty(0, np.float32), *lengths]).astype(np.float32))
        os.replace(partial, path)
    found: np.ndarray = np.load(path, mmap_mode="r")
    return found


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
