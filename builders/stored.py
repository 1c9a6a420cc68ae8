"""Open a dataset of teacher logits, in a folder or on the Hub: what loading it does not tell, and its records one by one.

stored = open_logits("user/x-logits")
stored.form  # vocabulary, encoding, temperatures
for record in stored.records():
    logits = stored.unpack(record)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.compact import RankTable
from builders.job_files import stored_job
from builders.layout import Layout
from builders.logits_schema import LogitsFormat
from builders.packing import Logits, unpack
from builders.source import is_local

BATCH_ROWS = 16  # a conversation of 10,000 assistant tokens takes about 3 MB


@dataclass(frozen=True)
class StoredLogits:
    """A dataset of teacher logits. `chunks`: its files in the order of the rows, paths on `filesystem` (of fsspec)."""

    name: str
    form: LogitsFormat
    ranks: RankTable | None  # of the compact encoding
    chunks: tuple[str, ...]
    filesystem: Any

    def records(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, pa.Scalar]]:
        """Yield the records as `unpack` takes them, or some columns of them; a few rows are in memory at a time."""
        for path in self.chunks:
            with self.filesystem.open(path, "rb") as file:
                yield from _records(pq.ParquetFile(file), columns)

    def unpack(self, record: dict[str, Any]) -> Logits:
        """Decode a record, of either encoding."""
        return unpack(record, self.ranks)


def open_logits(output: str, *, config_name: str = "default") -> StoredLogits:
    """Open what a logits build made, by the path of its folder or its id on the Hub. It may still grow.

    ValueError: it is not there, holds no teacher logits or none yet, or its rank table is missing.
    """
    filesystem, root = _filesystem(output)
    layout = Layout(config_name)
    for path in (layout.previous, layout.job):  # while an update runs, readers have what was there before it
        if filesystem.exists(f"{root}/{path}"):
            job = stored_job(json.loads(filesystem.cat_file(f"{root}/{path}"))["job"])
            break
    else:
        raise ValueError(f"{output}: no dataset of stillroom here (there is no {layout.job})")
    layout = Layout.of(job)
    chunks = tuple(sorted(filesystem.glob(f"{root}/{layout.glob(layout.data)}")))
    if job.build != "logits" or not chunks:
        raise ValueError(f"{output}: {'no chunk yet' if job.build == 'logits' else f'a dataset of {job.build}'}")
    with filesystem.open(chunks[0], "rb") as file:
        form = LogitsFormat.from_metadata(pq.read_schema(file).metadata)
    ranks, path = None, f"{root}/{layout.meta}/ranks.bin"
    if form.encoding == "compact" and filesystem.exists(path):
        ranks = RankTable.from_bytes(filesystem.cat_file(path))
    form.check_ranks(ranks)
    return StoredLogits(output, form, ranks, chunks, filesystem)


def _filesystem(output: str) -> tuple[Any, str]:
    if is_local(output):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(os.path.expanduser(output))
    from huggingface_hub import HfFileSystem

    return HfFileSystem(), f"datasets/{output}"


def _records(file: pq.ParquetFile, columns: Sequence[str] | None) -> Iterator[dict[str, pa.Scalar]]:
    for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
        names = batch.schema.names
        for values in zip(*batch.columns, strict=True):
            yield dict(zip(names, values, strict=True))
