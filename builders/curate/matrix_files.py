"""Files of one big matrix, written row block by row block: the header is filled in last, and the bytes are read back.

Format facts: safetensors is a length (8 bytes), a JSON header that may end in spaces, then the tensors without a gap;
.npy is 10 bytes, a Python dict padded with spaces, then the values.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "int8": "I8", "uint8": "U8"}
HEADER_BYTES = {"safetensors": 4096, "npy": 128}
READ_BYTES = 1 << 22


class CorruptError(RuntimeError):
    """What was read back is not what was written: a full or broken disk."""


class MatrixFile(Protocol):
    """A file that takes blocks of rows and is whole after `close`."""

    def write(self, block: np.ndarray, index: np.ndarray) -> None:
        """Append rows [B, D] and their indices, int64 [B]."""

    def close(self) -> str:
        """Finish the file and return its SHA-256. CorruptError: it does not hold what was written."""


class Body:
    """Bytes after a header of fixed size, hashed as they are written and as they are read back."""

    def __init__(self, path: Path, header_bytes: int) -> None:
        self.path, self.header_bytes = path, header_bytes
        self.partial = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.partial.write_bytes(bytes(header_bytes))
        self.digest = hashlib.sha256()

    def append(self, values: np.ndarray) -> None:
        """Open, write, close: there may be a file for each of thousands of sources."""
        content = np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")
        self.digest.update(content)
        with self.partial.open("ab") as file:
            file.write(content)

    def close(self, header: bytes) -> str:
        """Put the header in front, read all back, and return the SHA-256 of the whole file."""
        assert len(header) == self.header_bytes
        with self.partial.open("r+b") as file:
            file.write(header)
            file.flush()
            os.fsync(file.fileno())
        whole, body = hashlib.sha256(header), hashlib.sha256()
        with self.partial.open("rb") as file:
            found = file.read(self.header_bytes)
            while content := file.read(READ_BYTES):
                body.update(content)
                whole.update(content)
        if found != header or body.digest() != self.digest.digest():
            raise CorruptError(f"{self.path}: the bytes read back are not those written; is the disk full or broken?")
        os.replace(self.partial, self.path)
        return whole.hexdigest()


class SafetensorsFile:
    """`embeddings` [N, D] as they are stored, and `index` int64 [N], which is held in memory until the end: 8 bytes a row."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.body, self.metadata = Body(path, HEADER_BYTES["safetensors"]), dict(metadata)
        self.indices: list[np.ndarray] = []
        self.dtype, self.dims = np.dtype(np.float32), 0

    def write(self, block: np.ndarray, index: np.ndarray) -> None:
        """See MatrixFile."""
        self.dtype, self.dims = block.dtype, block.shape[1]
        self.body.append(block)
        self.indices.append(index)

    def close(self) -> str:
        """See MatrixFile."""
        index = np.concatenate([np.empty(0, np.int64), *self.indices])
        size = len(index) * self.dims * self.dtype.itemsize
        shapes = [
            ("embeddings", self.dtype.name, [len(index), self.dims], size),
            ("index", "int64", [len(index)], 8 * len(index)),
        ]
        self.body.append(index)
        header: dict[str, Any] = {"__metadata__": self.metadata}
        start = 0
        for name, dtype, shape, num_bytes in shapes:
            offsets = [start, start + num_bytes]
            header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": shape, "data_offsets": offsets}
            start += num_bytes
        room = HEADER_BYTES["safetensors"] - 8
        return self.body.close(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))


class NpyFile:
    """A matrix [N, D], for `np.load(path, mmap_mode="r")`."""

    def __init__(self, path: Path) -> None:
        self.body = Body(path, HEADER_BYTES["npy"])
        self.num_rows, self.dims, self.dtype = 0, 0, np.dtype(np.float32)

    def write(self, block: np.ndarray, index: np.ndarray) -> None:
        """See MatrixFile."""
        self.num_rows, self.dims, self.dtype = self.num_rows + len(block), block.shape[1], block.dtype
        self.body.append(block)

    def close(self) -> str:
        """See MatrixFile."""
        about = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': ({self.num_rows}, {self.dims}), }}"
        room = HEADER_BYTES["npy"] - 10
        return self.body.close(
            b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + about.encode().ljust(room - 1) + b"\n"
        )


class TorchFile:
    """A dict of `ids` (strings of the ids, or ints of the indices) and `emb` [N, D], for torch.load(weights_only=True).

    Vectors go to a file first and are written from its memory map, so that what is in memory are ids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.matrix = NpyFile(path.with_suffix(".npy.partial"))
        self.ids: list[Any] = []

    def write(self, block: np.ndarray, index: np.ndarray) -> None:
        """See MatrixFile."""
        self.matrix.write(block, index)

    def close(self) -> str:
        """See MatrixFile."""
        import torch

        self.matrix.close()
        source = self.matrix.body.path
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            values = np.load(source, mmap_mode="c")  # copy on write: torch wants a map that it could write to
            torch.save({"ids": self.ids, "emb": torch.from_numpy(values)}, partial)
            found = torch.load(partial, mmap=True, weights_only=True)
            if found["ids"] != self.ids or not _equal(found["emb"].numpy(), values):
                raise CorruptError(
                    f"{self.path}: the values read back are not those written; is the disk full or broken?"
                )
        finally:
            source.unlink()
        os.replace(partial, self.path)
        return file_sha256(self.path)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    step = max(1, READ_BYTES // max(1, a[:1].nbytes))
    parts = range(0, len(a), step)
    return a.shape == b.shape and all(a[i : i + step].tobytes() == b[i : i + step].tobytes() for i in parts)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
