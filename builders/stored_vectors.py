"""Vector columns between Arrow and numpy, and what a reader of quantised ones needs beside them.

stored = open_vectors("user/x-embeddings")  # or a folder: "./out"
dataset = load_dataset("user/x-embeddings", split="train").with_format("numpy")
vectors = stored.dequantize(dataset[:1000]["embedding"])  # float32 [1000, D]
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builders.quantize import VectorFormat
from builders.stored import open_stored


def open_vectors(name: str, *, config_name: str = "default", revision: str | None = None) -> VectorFormat:
    """Read from the footer of a dataset's first chunk how its vectors are quantised.

    `name` is a Hub dataset (user/name) or a folder, as `load_dataset` takes it.

    Raises:
        ValueError: none of stillroom's, no chunk yet, or no quantised vectors.
        OSError: no answer.
    """
    stored = open_stored(name, config_name=config_name, revision=revision)
    with stored.filesystem.open(stored.chunks()[0], "rb") as file:
        return VectorFormat.from_metadata(pq.read_schema(file).metadata)


def stored_array(column: pa.Array) -> np.ndarray:
    """Values of a vector column without nulls: [N, D] of its dtype, or uint8 [N, bytes] of bits."""
    if not pa.types.is_fixed_size_binary(column.type):
        values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    width = column.type.byte_width
    values = np.frombuffer(column.buffers()[1], np.uint8)
    return values[column.offset * width : (column.offset + len(column)) * width].reshape(len(column), width)


def vector_column(stored: np.ndarray, kind: pa.DataType, missing: np.ndarray) -> pa.Array:
    """A vector column of a type, from `VectorFormat.quantize`; null where `missing` (bool [N])."""
    if pa.types.is_fixed_size_binary(kind):
        bits = pa.Array.from_buffers(kind, len(stored), [None, pa.py_buffer(np.ascontiguousarray(stored))])
        return pc.if_else(pa.array(missing), pa.scalar(None, kind), bits) if missing.any() else bits
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), type=kind, mask=mask)
