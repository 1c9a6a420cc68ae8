"""All vectors of a dataset as files that are mapped into memory: how they are written and opened."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from builders.curate.vectors import Block


@dataclass(frozen=True)
class Matrix:
    """N vectors: `indices` int64 [N] and `vectors` float32 [N, D], both mapped into memory. `folder` holds their files."""

    folder: Path
    indices: np.ndarray
    vectors: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Matrix:
        """Open what `write_matrix` wrote."""
        indices, vectors = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("indices", "vectors"))
        return cls(folder, indices, vectors)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def ids(self) -> pa.ChunkedArray | None:
        """Ids (string [N]), mapped into memory; None where the dataset has none."""
        path = self.folder / "ids.arrow"
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()["id"] if path.exists() else None


def write_matrix(folder: Path, blocks: Iterable[Block], dimension: int) -> None:
    """Write the blocks as vectors.npy, indices.npy and ids.arrow to `folder`, which appears whole.

    Raises:
        OSError: the disk is full.
    """
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    part.mkdir(parents=True)
    schema, indices = pa.schema([("id", pa.string())]), [np.empty(0, np.int64)]
    try:
        with (part / "vectors.npy").open("wb") as file, pa.OSFile(str(part / "ids.arrow"), "wb") as sink:
            _write_header(file, 0, dimension)
            has_ids = False
            with pa.ipc.new_file(sink, schema) as ids:
                for block in blocks:
                    file.write(np.ascontiguousarray(block.vectors, "<f4").data)
                    indices.append(block.indices)
                    if block.ids is not None:
                        has_ids = True
                        ids.write(pa.record_batch([pa.array(block.ids, pa.string())], schema=schema))
            file.seek(0)
            _write_header(file, sum(map(len, indices)), dimension)
        if not has_ids:
            (part / "ids.arrow").unlink()
        np.save(part / "indices.npy", np.concatenate(indices))
        try:
            part.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_header(file: BinaryIO, num_rows: int, dimension: int) -> None:
    """The header of float32 [N, D]; numpy leaves room for the digits of any N, so that it can be written again."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, dimension)}
    np.lib.format.write_array_header_1_0(file, header)
