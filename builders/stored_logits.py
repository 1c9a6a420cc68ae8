"""A dataset of teacher logits, opened: what a reader must know beyond its records, and these one by one.

stored = open_logits("user/x-logits")  # or a folder: "./out"
dataset = load_dataset("user/x-logits", split="train").with_format("numpy")
logits = stored.unpack(dataset[0])
for record in stored.records():  # without `datasets`, a few rows in memory at a time
    logits = stored.unpack(record)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.logits_schema import LogitsFormat
from builders.packing import Logits, unpack
from builders.rank_table import RankTable
from builders.stored import open_stored

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
        OSError: no answer.
    """
    stored = open_stored(name, config_name=config_name, revision=revision)
    if stored.job.build != "logits":
        raise ValueError(f"{name} is a dataset of {stored.job.build}: there are no teacher logits in it")
    files, layout, chunks = stored.filesystem, stored.layout, stored.chunks()
    with files.open(chunks[0], "rb") as file:
        form = LogitsFormat.from_metadata(pq.read_schema(file).metadata)
    ranks = None
    if form.encoding == "compact":
        try:
            ranks = RankTable.from_bytes(files.cat_file(f"{stored.root}/{layout.ranks}"))
        except FileNotFoundError:
            lost = f"{name} has no {layout.ranks}, without which nothing can be read: see `stillroom verify`"
            raise ValueError(lost) from None
        form.check_ranks(ranks)
    return StoredLogits(name, form, ranks, chunks, files)


def _records(file: pq.ParquetFile, columns: Sequence[str] | None) -> Iterator[dict[str, pa.Scalar]]:
    for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
        names = batch.schema.names
        for values in zip(*batch.columns, strict=True):
            yield dict(zip(names, values, strict=True))
