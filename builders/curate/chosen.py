"""Rows of a job's source, whole: all their columns, and `index`, which is their key to the records."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from builders.files import ArrowFile, ParquetFile
from builders.job import Job
from builders.options import ConfigError
from builders.source import Source, open_source

BATCH_ROWS = 100  # held as objects: a row with images reaches megabytes
PART_BYTES = 100 << 20  # of a file, before compression


def open_unchanged(job: Job, cache: Path) -> Source:
    """Open the source of a settled job, at the revision that the job was made of.

    Raises:
        ConfigError: it is not there any more, or another.
        SourceError: it is there and cannot be read.
    """
    source = open_source(job, cache)
    if source.revision != job.revision:
        raise ConfigError(f"{job.source} is {source.revision} here, and the dataset was made of {job.revision}")
    return source


def chosen_rows(source: Source, indices: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows at sorted `indices` (int64 [N]) in tables of some 100 MB, with the types and features of the source.

    Raises:
        SourceError: a file cannot be read.
    """
    schema, held, size = _schema(source, indices), list[pa.Table](), 0
    for rows in _rows(source, indices):
        held.append(pa.Table.from_pylist(rows, schema))
        size += held[-1].nbytes
        if size >= PART_BYTES:
            yield pa.concat_tables(held)
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)


def _rows(source: Source, indices: np.ndarray) -> Iterator[list[dict[str, object]]]:
    rows = source.read(indices, source.columns)
    while batch := [{"index": row.index, **row.data} for row in islice(rows, BATCH_ROWS)]:
        yield batch


def _schema(source: Source, indices: np.ndarray) -> pa.Schema:
    """Columns of the source behind `index`, unless it has one of that name. Lines of JSON have the types of all rows."""
    from datasets import Features, Value

    file = next(file for file in source.files if file.num_rows)
    if isinstance(file, ParquetFile):
        features = Features.from_arrow_schema(file.reader.schema_arrow)
    elif isinstance(file, ArrowFile):
        features = file.dataset.features
    else:
        tables = (pa.Table.from_pylist(rows) for rows in _rows(source, indices))
        found = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
        features = Features.from_arrow_schema(found)
    return Features({"index": Value("int64"), **features}).arrow_schema
