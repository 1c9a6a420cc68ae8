"""An embeddings dataset of given vectors, written as a run writes it, in a moment and without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from builders.job import Job
from builders.layout import FORMAT, Layout
from builders.quantize import METADATA_KEY, VectorFormat
from builders.schema import arrow_schema, embeddings_columns
from builders.stored_vectors import vector_column
from builders.units import Units
from cards.card import Card
from hub.chunk import write_chunk
from hub.ledger import to_lines
from hub.pending import Entry, Receipt


def write_embeddings(
    folder: Path,
    vectors: np.ndarray,
    *,
    sources: list[str] | None = None,
    texts: list[str] | None = None,
    chunk_rows: int = 2000,
    units: int | None = None,
    form: VectorFormat | None = None,
    source: str = "./rows.parquet",
    revision: str | None = None,
) -> Path:
    """Write vectors [N, D] with ids `row-0`, … ; the first `units` units alone make a dataset that still grows."""
    columns_there = ["id", *["dataset_source"] * (sources is not None)]
    made = {"source": source, "revision": revision, "output": str(folder), "chunk_rows": chunk_rows}
    job = Job(**made, keep_text=texts is not None)
    columns = embeddings_columns(job, columns_there, vectors.shape[1])
    schema = arrow_schema(columns)
    if form is not None:
        kind = pa.binary(-(-form.dimension // 8)) if form.dtype == "binary" else pa.list_(pa.int8(), form.dimension)
        schema = schema.set(len(schema) - 1, pa.field("embedding", kind))
        schema = pa.schema(list(schema), metadata={METADATA_KEY: form.to_metadata()[METADATA_KEY]})
    layout, plan = Layout.of(job), Units(len(vectors), chunk_rows)
    receipts = []
    for unit in list(plan)[:units]:
        rows = slice(unit.start, unit.stop)
        part = vectors[rows]
        data = {
            "index": np.arange(unit.start, unit.stop),
            "id": [f"row-{i}" for i in range(unit.start, unit.stop)],
            "dataset_source": sources and sources[rows],
            "content_hash": [part[i].tobytes().hex()[:32] for i in range(len(part))],
            "num_tokens": np.ones(len(part), np.int32),
            "truncated": np.zeros(len(part), bool),
            "text": texts and texts[rows],
        }
        kind = schema.field("embedding").type
        stored = form.quantize(part) if form else part.astype(kind.value_type.to_pandas_dtype())
        data["embedding"] = vector_column(stored, kind, np.zeros(len(part), bool))
        table = pa.table({name: data[name] for name in schema.names}, schema=schema)
        path = unit.path(layout.data, layout.split_folder)
        counts = {"rows": len(part), "records": len(part), "dimension": vectors.shape[1]}
        sha256 = write_chunk(folder / path, table, {"counts": counts})
        entry = Entry(path, (folder / path).stat().st_size, sha256)
        receipts.append(Receipt(unit.start, unit.stop, (entry,), counts))
    meta = folder / layout.meta
    meta.mkdir(parents=True)
    (folder / layout.job).write_text(json.dumps({"format": FORMAT, "job": job.to_dict()}))
    is_complete = units is None or units >= len(plan)
    if is_complete:
        (folder / layout.ledger).write_bytes(to_lines(receipts))
    card = Card(job, columns_there, len(vectors), len(plan), receipts)
    (folder / "README.md").write_text(card.render("", name=str(folder), is_complete=is_complete))
    return folder
