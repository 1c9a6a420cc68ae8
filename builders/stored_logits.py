"""A dataset of teacher logits, opened: what a reader must know beyond its records, and these one by one.

stored = open_logits("user/x-logits")  # or a folder: "./out"
dataset = load_dataset("user/x-logits", split="train").with_format("numpy")
logits = stored.unpack(dataset[0])
for record in stored.records():  # without `datasets`, a few rows in memory at a time
    logits = stored.unpack(record)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.job_files import stored_job
from builders.layout import Layout
from builders.logits_schema import LogitsFormat
from builders.packing import Logits, unpack
from builders.rank_table import RankTable

BATCH_ROWS = 16  # a conversation of 10,000 assistant tokens takes about 3 MB


@dataclass(frozen=True)
class StoredLogits:
    """A dataset of teacher logits. `chunks`: its files in the order of the rows, paths on `filesystem` (of fsspec)."""

    name: str
    form: LogitsFormat
    ranks: RankTable | None  # None where the encoding needs no table
    chunks: tuple[str, ...]
    filesystem: Any

    def unpack(self, record: Mapping[str, Any]) -> Logits:
        """Return the distributions of one record; see `builders.packing.unpack`."""
        return unpack(record, self.ranks)

    def records(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, pa.Scalar]]:
        """Yield the records as `unpack` takes them, or some columns of them."""
        for path in self.chunks:
            with self.filesystem.open(path, "rb") as file:
                yield from _records(pq.ParquetFile(file), columns)


def open_logits(name: str, *, config_name: str = "default", revision: str | None = None) -> StoredLogits:
    """Open a Hub dataset (user/name) or a folder, as `load_dataset` takes it. It may still grow.

    Raises:
        ValueError: none of stillroom's, no teacher logits, no chunk yet, or no rank table that fits them.
        OSError: there is no such dataset, or no access, or no answer.
    """
    files, root = _filesystem(name, revision)
    layout = _layout(files, root, name, config_name)
    chunks = tuple(sorted(files.glob(f"{root}/{layout.glob(layout.data)}")))
    if not chunks:
        raise ValueError(f"{name} has no chunk in {layout.data}/ yet")
    with files.open(chunks[0], "rb") as file:
        form = LogitsFormat.from_metadata(pq.read_schema(file).metadata)
    ranks = None
    if form.encoding == "compact":
        try:
            ranks = RankTable.from_bytes(files.cat_file(f"{root}/{layout.ranks}"))
        except FileNotFoundError:
            lost = f"{name} has no {layout.ranks}, without which nothing can be read: see `stillroom verify`"
            raise ValueError(lost) from None
        form.check_ranks(ranks)
    return StoredLogits(name, form, ranks, chunks, files)


def _layout(files: Any, root: str, name: str, config_name: str) -> Layout:
    """Where its files are; while an update runs, those of the dataset before it."""
    layout = Layout(config_name)
    path = next((p for p in (layout.previous, layout.job) if files.exists(f"{root}/{p}")), None)
    if path is None:
        raise ValueError(f"{name}: no dataset of stillroom here (there is no {layout.job})")
    job = stored_job(json.loads(files.cat_file(f"{root}/{path}"))["job"])
    if job.build != "logits":
        raise ValueError(f"{name} is a dataset of {job.build}: there are no teacher logits in it")
    return Layout.of(job)


def _filesystem(name: str, revision: str | None) -> tuple[Any, str]:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(path)
    from huggingface_hub import HfFileSystem

    files = HfFileSystem()
    files.invalidate_cache()  # it may have grown since this process looked
    return files, f"datasets/{name}" + (f"@{revision}" if revision else "")


def _records(file: pq.ParquetFile, columns: Sequence[str] | None) -> Iterator[dict[str, pa.Scalar]]:
    for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
        names = batch.schema.names
        for values in zip(*batch.columns, strict=True):
            yield dict(zip(names, values, strict=True))
