"""Many logits records at once: whole batches decoded in one pass, over values that Arrow keeps end to end.

Columns of a record are flat over its tokens, so that records end to end are one long record, and `unpack` reads that. Nothing
is copied but the nucleus ids' high bits, which start at a byte in each record. A record cut out of it is views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from builders.packing import HIGH_BITS, Array, Logits, unpack
from builders.rank_table import RankTable

BATCH_BYTES = 1 << 22  # of a batch, uncompressed: 8,000 tokens, which stay in a core's caches
NEEDLESS = ("id", "dataset_source", "content_hash", "truncated")  # columns that no statistic needs


@dataclass(frozen=True)
class LogitsBatch:
    """R records whose T tokens lie end to end in `logits`; `input_ids` and `positions` of it are those of each, end to end."""

    index: Array  # int64 [R]
    num_tokens: Array  # int64 [R]
    num_inputs: Array  # int64 [R]: length of each conversation; 0 where the columns are not there
    logits: Logits

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.index)

    @cached_property
    def token_starts(self) -> Array:
        """Where each record's tokens begin, int64 [R + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_tokens)])

    @cached_property
    def entry_starts(self) -> Array:
        """Where each record's entries begin, int64 [R + 1]."""
        return np.concatenate([[0], np.cumsum(self.logits.counts)])[self.token_starts]

    @cached_property
    def input_starts(self) -> Array:
        """Where each conversation begins, int64 [R + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_inputs)])

    @property
    def targets(self) -> Array | None:
        """The tokens that the distributions predict, int32 [T]; None where the columns are not there."""
        if self.logits.input_ids is None or self.logits.positions is None:
            return None
        return self.logits.input_ids[self.logits.positions + np.repeat(self.input_starts[:-1], self.num_tokens)]

    def record(self, number: int) -> Logits:
        """Return one record, as `unpack` would."""
        return self._part(number, number + 1)

    def head(self, rows: int) -> LogitsBatch:
        """Return the first records."""
        if rows >= len(self):
            return self
        return LogitsBatch(self.index[:rows], self.num_tokens[:rows], self.num_inputs[:rows], self._part(0, rows))

    def _part(self, start: int, stop: int) -> Logits:
        tokens, entries, inputs = (
            slice(starts[start], starts[stop]) for starts in (self.token_starts, self.entry_starts, self.input_starts)
        )
        parts = {"ids": entries, "logits": entries, "input_ids": inputs}
        values = {spec.name: getattr(self.logits, spec.name) for spec in fields(Logits)}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = value[parts.get(name, tokens)]
            elif isinstance(value, Mapping):
                values[name] = {key: array[tokens] for key, array in value.items()}
        return Logits(**values)


def read_batch(batch: pa.RecordBatch, ranks: RankTable | None = None) -> LogitsBatch:
    """Decode all records of a batch, of either encoding. ValueError: a compact one without its `RankTable`."""
    names = [name for name in batch.schema.names if name not in NEEDLESS]
    record: dict[str, Any] = {name: _flat(batch[name]) for name in names}
    if "sample_weight" in names and len(batch):  # one threshold for the whole dataset
        record["sample_weight"] = record["sample_weight"][0]
    for name in {"top_indices", "sampled_indices"} & {name.removesuffix("_low") for name in names}:
        record[f"{name}_high"] = join_high(record[f"{name}_high"], _lengths(batch[f"{name}_low"]))
    num_inputs = _lengths(batch["input_ids"]) if "input_ids" in names else np.zeros(len(batch), np.int64)
    return LogitsBatch(record["index"], record["num_tokens"].astype(np.int64), num_inputs, unpack(record, ranks))


def read_logits(file: Any, ranks: RankTable | None = None) -> Iterator[LogitsBatch]:
    """Decode a Parquet file (`pyarrow.parquet.ParquetFile`), about BATCH_BYTES of it at a time, on one core."""
    columns = [name for name in file.schema_arrow.names if name not in NEEDLESS]
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        rows = max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))
        for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            yield read_batch(batch, ranks)


def join_high(high: Array, sizes: Array) -> Array:
    """Put the high bits of records of `sizes` ids, which begin at a byte each, end to end without the gaps between them."""
    if not high.any() or not (sizes[:-1] % 4).any():
        return high
    gaps = -sizes % 4  # after each record
    places = np.arange(sizes.sum()) + np.repeat(np.cumsum(gaps) - gaps, sizes)
    four: Array = np.zeros((-(-len(places) // 4), 4), np.uint8)
    four.ravel()[: len(places)] = HIGH_BITS[high].ravel()[places]
    return four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6


def _flat(column: pa.Array) -> Array:
    """All values of a column, end to end: of numbers, lists of numbers, or bytes."""
    if pa.types.is_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False)
    if not pa.types.is_binary(column.type):
        return column.to_numpy(zero_copy_only=False)
    _, _, data = column.buffers()
    starts = _offsets(column)
    return np.frombuffer(data or b"", np.uint8)[starts[0] : starts[-1]]


def _lengths(column: pa.ListArray) -> Array:
    return np.diff(_offsets(column)).astype(np.int64)


def _offsets(column: pa.Array) -> Array:
    return np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
