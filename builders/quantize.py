"""Vectors in fewer bytes: int8 and single bits, and back. numpy alone: one file that can be copied.

vectors = dequantize(dataset[:1000]["embedding"], "int8", dimension=384, ranges=np.load("ranges.npy"))

Both are those of sentence-transformers' `quantize_embeddings` (6.2): `int8` counts 255 buckets from the least to the largest
value that a dimension had in a calibration, which is done once per dataset; what lies outside goes into the last bucket.
`binary` is its `ubinary`: `np.packbits(vectors > 0)`, the first dimension in the highest bit of the first byte.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

METADATA_KEY = b"stillroom_vectors"  # in the Arrow schema of each chunk of quantised vectors
BUCKETS = 255
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "binary": 0.125}  # of a value


def quantize(vectors_ND: np.ndarray, dtype: str, ranges: np.ndarray | None = None) -> np.ndarray:  # axes: N, D
    """Return vectors as they are stored: [N, D] of the dtype, or for `binary` uint8 [N, ceil(D / 8)].

    `ranges` are float32 [2, D], the least and the largest value of each dimension; only int8 needs them.
    """
    if dtype == "binary":
        return np.packbits(vectors_ND > 0, axis=-1)
    if dtype != "int8":
        return vectors_ND.astype(dtype)
    starts, steps, _ = _steps(ranges)
    buckets = np.clip(np.floor((vectors_ND - starts) / steps), 0, BUCKETS)
    return (buckets - 128).astype(np.int8)


def dequantize(
    stored: np.ndarray, dtype: str, *, dimension: int | None = None, ranges: np.ndarray | None = None
) -> np.ndarray:
    """Return float32 [N, D] of what `quantize` gave, or of a column as `datasets` reads it.

    A value of int8 becomes the middle of its bucket. Bits become -1 and 1 over the root of D, so that vectors have length 1;
    they need `dimension`. Quantising the result again gives the same, where a bucket is wider than float32's rounding.

    Raises:
        ValueError: int8 without its ranges, or bits without a dimension.
    """
    if dtype == "binary":
        if dimension is None:
            raise ValueError("bits need the dimension of the vectors: the last byte may be filled up")
        bits = np.unpackbits(_bytes(np.asarray(stored), -(-dimension // 8)), axis=-1)[:, :dimension]
        return (bits * np.float32(2) - 1) / np.float32(np.sqrt(dimension))
    if dtype != "int8":
        return np.asarray(stored).astype(np.float32)
    starts, steps, middles = _steps(ranges)
    restored: np.ndarray = starts + (np.asarray(stored).astype(np.float32) + 128 + middles) * steps
    return restored


def calibrate(vectors_ND: np.ndarray) -> np.ndarray:
    """Return the ranges of vectors, float32 [2, D]."""
    return np.stack([vectors_ND.min(0), vectors_ND.max(0)]).astype(np.float32)


def recall(vectors_ND: np.ndarray, stored: np.ndarray, *, queries: int = 200, k: int = 10) -> tuple[int, int]:
    """Return (found, asked): of the k nearest neighbours by cosine among N vectors, how many are so by the stored ones.

    Evenly spread vectors ask, as float32, and are no neighbours of themselves. `stored` are dequantised, float32 [N, D].
    A neighbour as near as the k-th is as good. Not asked of so few vectors that chance would find many: (0, 0).
    """
    num = len(vectors_ND)
    if num < 10 * k:
        return 0, 0
    asking = np.unique(np.linspace(0, num - 1, min(queries, num)).astype(np.int64))
    true = _unit(vectors_ND[asking]) @ _unit(vectors_ND).T
    seen = _unit(vectors_ND[asking]) @ _unit(stored).T
    rows = np.arange(len(asking))
    true[rows, asking] = seen[rows, asking] = -np.inf
    least = np.partition(true, num - k, axis=1)[:, num - k]
    chosen = np.argpartition(seen, num - k, axis=1)[:, num - k :]
    found = true[rows[:, None], chosen] >= least[:, None] - 1e-6
    return int(found.sum()), len(asking) * k


@dataclass(frozen=True, eq=False)
class VectorFormat:
    """How the vectors of a dataset are stored. `ranges` is float32 [2, D] for int8, else None."""

    dtype: str
    dimension: int
    ranges: np.ndarray | None = None

    def quantize(self, vectors_ND: np.ndarray) -> np.ndarray:  # N, D: axes
        """See the function."""
        return quantize(vectors_ND, self.dtype, self.ranges)

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """See the function."""
        return dequantize(stored, self.dtype, dimension=self.dimension, ranges=self.ranges)

    def to_metadata(self) -> dict[bytes, bytes]:
        """For the schema of a chunk, so that each can be read by itself; nothing for floats, which need none of it."""
        if self.dtype not in ("int8", "binary"):
            return {}
        ranges = None if self.ranges is None else base64.b64encode(self.ranges.astype("<f4").tobytes()).decode()
        said = {"dtype": self.dtype, "dimension": self.dimension, "ranges": ranges}
        return {METADATA_KEY: json.dumps(said, sort_keys=True).encode()}

    @staticmethod
    def from_metadata(metadata: Mapping[bytes, bytes] | None) -> VectorFormat:
        """Read `to_metadata`. ValueError: there is none, or it is damaged."""
        if not metadata or METADATA_KEY not in metadata:
            raise ValueError("no quantised vectors here: the file's metadata has no `stillroom_vectors`")
        said = json.loads(metadata[METADATA_KEY])
        dimension, ranges = int(said["dimension"]), said["ranges"]
        if ranges is not None:
            ranges = np.frombuffer(base64.b64decode(ranges), "<f4").reshape(2, dimension)
        return VectorFormat(str(said["dtype"]), dimension, ranges)


def ranges_to_bytes(ranges: np.ndarray) -> bytes:
    """The file of an output that `np.load` reads."""
    file = io.BytesIO()
    np.save(file, ranges.astype("<f4"), allow_pickle=False)
    return file.getvalue()


def ranges_from_bytes(content: bytes) -> np.ndarray:
    """Read `ranges_to_bytes`, float32 [2, D]. ValueError: it is something else."""
    try:
        ranges: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, EOFError) as error:
        raise ValueError(str(error)) from error
    if ranges.dtype != np.float32 or ranges.ndim != 2 or len(ranges) != 2 or not (ranges[0] <= ranges[1]).all():
        raise ValueError("no float32 ranges of two rows")
    return ranges


def _steps(ranges: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, width and middle (in widths) of the buckets of each dimension; one that never varied has buckets of width 1."""
    if ranges is None:
        raise ValueError("int8 vectors need the ranges that they were stored with")
    ranges = np.asarray(ranges, np.float32)
    widths = (ranges[1] - ranges[0]) / np.float32(BUCKETS)
    is_flat = widths == 0
    return ranges[0], np.where(is_flat, np.float32(1), widths), np.where(is_flat, np.float32(0), np.float32(0.5))


def _bytes(stored: np.ndarray, width: int) -> np.ndarray:
    """uint8 [N, width] of bytes: an array of them, or of numpy's strings or objects, which may lack zeros at the end."""
    if stored.dtype.kind not in "SO":
        return stored.astype(np.uint8)
    whole = b"".join(bytes(value).ljust(width, b"\0") for value in stored.reshape(-1))
    return np.frombuffer(whole, np.uint8).reshape(-1, width)


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit: np.ndarray = vectors_ND / np.maximum(lengths, 1e-12)
    return unit
