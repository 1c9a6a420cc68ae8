"""Outputs as other tools and the Hub's viewer read them: python -m pytest tests/test_readers.py.

Each kind of output is opened by `datasets` (regular, streaming), pandas, polars and DuckDB.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from builders.columns import record_columns
from builders.job import Job
from builders.layout import FORMAT
from builders.quantize import VectorFormat, calibrate
from builders.schema import arrow_schema
from builders.stored_logits import open_logits
from builders.stored_vectors import open_vectors, vector_column
from hub import chunk
from hub.chunk import write_chunk
from tests.logits_folder import tiny_chats, tiny_model, write_folder

STORED = ("float32", "float16", "int8", "binary", "chats")  # chats: float32, with --keep-messages
ENCODINGS = ("default", "compact")
SCAN = 300 * 10**6  # bytes that the viewer's /rows reads at most (hub's maxArrowDataInMemory)
GROUP = 100 * 2**20  # of a row group, as `datasets` writes them
FIRST_ROWS, MIN_CELL = 200_000, 100  # bytes of JSON of the first ten rows; what a cell is cut to at least


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Folders by kind, written as builds write them: embeddings in every storage, teacher logits in both encodings."""
    root = tmp_path_factory.mktemp("readers")
    vectors = np.random.default_rng(0).standard_normal((60, 40)).astype(np.float32)
    for dtype in STORED:
        write_vectors(root / dtype, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype)
    chats = tiny_chats(tiny_model(1))
    for encoding in ENCODINGS:
        write_folder(root / encoding, chats.records(encoding), encoding)
    return root


def write_vectors(folder: Path, vectors: np.ndarray, dtype: str) -> None:
    """Two chunks of half of the vectors each, with every third row without a source."""
    kept = {"keep_messages": dtype == "chats", "storage_dtype": "float32" if dtype == "chats" else dtype}
    job = Job(source="./rows.parquet", output=str(folder), normalize=True, max_length=256, **kept)
    form = VectorFormat(job.storage_dtype, vectors.shape[1], calibrate(vectors) if dtype == "int8" else None)
    schema = arrow_schema(record_columns(job, ["id", "messages", "dataset_source"], vectors.shape[1]))
    schema = schema.with_metadata({**schema.metadata, **form.to_metadata()})
    for start in range(0, len(vectors), len(vectors) // 2):
        rows = range(start, start + len(vectors) // 2)
        data = {
            "index": rows,
            "id": [f"row-{i}" for i in rows],
            "dataset_source": [None if i % 3 == 0 else "a" for i in rows],
            "messages": [[{"role": "user", "content": f"What follows {i}?"}] if i % 4 else None for i in rows],
            "content_hash": [f"{i:032x}" for i in rows],
            "num_tokens": [i + 1 for i in rows],
            "truncated": [i % 2 == 0 for i in rows],
        }
        arrays = [pa.array(data[name], schema.field(name).type) for name in data if name in schema.names]
        stored = form.quantize(vectors[rows.start : rows.stop])
        arrays.append(vector_column(stored, schema.field("embedding").type, np.zeros(len(rows), bool)))
        path = folder / f"data/train/0000/{start:012d}-{rows.stop:012d}.parquet"
        write_chunk(path, pa.Table.from_arrays(arrays, schema=schema), {})
    (folder / "_stillroom").mkdir()
    (folder / "_stillroom/job.json").write_text(json.dumps({"format": FORMAT, "job": job.to_dict()}))


def folder_of(outputs: Path, kind: str) -> Path:
    return outputs / kind / "data" / "train"


def arrow(outputs: Path, kind: str) -> pa.Table:
    """What is stored, by pyarrow."""
    chunks = sorted(folder_of(outputs, kind).rglob("*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in chunks])


@pytest.mark.parametrize("kind", [*STORED, *ENCODINGS])
def test_datasets_reads_what_is_stored_regular_and_streaming(outputs, kind, tmp_path):
    stored = arrow(outputs, kind)
    whole = load_dataset(str(outputs / kind), split="train", cache_dir=str(tmp_path))
    stream = load_dataset(str(outputs / kind), split="train", streaming=True)
    assert whole.column_names == stored.column_names and whole.features == stream.features
    assert whole["index"] == [row["index"] for row in stream] == stored["index"].to_pylist()
    assert whole.data.table.combine_chunks().equals(stored.cast(whole.data.schema).combine_chunks())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_datasets_gives_float32_vectors_in_numpy(outputs, dtype, tmp_path):
    found = load_dataset(str(outputs / dtype), split="train", cache_dir=str(tmp_path)).with_format("numpy")
    assert found[:3]["embedding"].dtype == np.float32 and found[:3]["embedding"].shape == (3, 40)


@pytest.mark.parametrize("kind", [*STORED, *ENCODINGS])
@pytest.mark.parametrize("tool", ["pandas", "polars", "duckdb"])
def test_other_tools_read_what_is_stored(outputs, kind, tool):
    module = pytest.importorskip(tool, reason=f"pip install {tool}")
    folder, stored = folder_of(outputs, kind), arrow(outputs, kind)
    read = {
        "pandas": lambda: module.read_parquet(folder).to_dict("list"),
        "polars": lambda: module.read_parquet(folder / "**/*.parquet").to_dict(as_series=False),
        "duckdb": lambda: module.sql(f"FROM '{folder}/**/*.parquet' ORDER BY index").to_arrow_table().to_pydict(),
    }
    found = read[tool]()
    assert set(found) == set(stored.column_names)
    for name in stored.column_names:
        values, wanted = found[name], stored[name].to_pylist()
        if isinstance(wanted[0], list):
            assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(values, wanted, strict=True)), name
        else:
            assert [None if value != value else value for value in values] == wanted, name  # pandas has nan for null


def test_vectors_are_the_same_whatever_reads_them(outputs):
    whole = np.stack(arrow(outputs, "float32")["embedding"].to_numpy())
    half = np.stack(arrow(outputs, "float16")["embedding"].to_numpy())
    np.testing.assert_allclose(half, whole, atol=5e-4)
    for dtype in ("int8", "binary"):
        stored = open_vectors(str(outputs / dtype))
        rows = load_dataset(str(outputs / dtype), split="train", streaming=True).with_format("numpy")
        vectors = stored.dequantize(np.stack([row["embedding"] for row in rows]))
        cosine = (vectors * whole).sum(1) / np.linalg.norm(vectors, axis=1)
        assert vectors.shape == whole.shape and cosine.min() > (0.99 if dtype == "int8" else 0.7)
    for encoding in ENCODINGS:
        record = next(iter(load_dataset(str(outputs / encoding), split="train", streaming=True).with_format("numpy")))
        assert len(open_logits(str(outputs / encoding)).unpack(record).counts) == record["num_tokens"] == 5


def large_tables():
    """A hundredth of what a build can put into a chunk: 3,000 vectors, 30 conversations of 8,000 tokens with 45 ids each.

    And 500 chats of 20 kB.
    """
    rng = np.random.default_rng(0)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(3000 * 768, np.float32)), 768)
    yield pa.table({"index": np.arange(3000), "embedding": vectors})
    offsets = pa.array(np.arange(0, 31 * 8000 * 45, 8000 * 45, dtype=np.int32))
    ids = pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, 60000, 30 * 8000 * 45).astype(np.uint16)))
    yield pa.table({"index": np.arange(30), "top_indices_low": ids})
    chats = [[{"role": "user", "content": "word " * 1000}, {"role": "assistant", "content": "x" * 15_000}]] * 500
    yield pa.table({"index": np.arange(500), "messages": chats})


def test_a_viewer_can_scan_a_page_of_rows(tmp_path, monkeypatch):
    """/rows reads the row groups that hold 100 rows: two at most, of 100 MB each by Parquet's own count. A limit of 300."""
    monkeypatch.setattr(chunk, "MAX_GROUP_BYTES", GROUP // 20)
    for number, table in enumerate(large_tables()):
        write_chunk(path := tmp_path / f"{number}.parquet", table, {})
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
        assert len(sizes) > 1 and max(sizes) <= GROUP / 20 * 1.02
    assert chunk.MAX_GROUP_ROWS >= 100 and 2 * GROUP < SCAN


@pytest.mark.parametrize("kind", [*STORED, *ENCODINGS])
def test_a_viewer_finds_what_it_needs(outputs, kind):
    """Page indexes, the features, columns of one value for histograms, and ten rows in 200 kB of JSON."""
    for path in folder_of(outputs, kind).rglob("*.parquet"):
        file = pq.ParquetFile(path)
        group = file.metadata.row_group(0)
        columns = [group.column(n) for n in range(group.num_columns)]
        assert all(column.has_offset_index and column.has_column_index for column in columns)
        assert group.num_rows and b"huggingface" in file.schema_arrow.metadata
        scalars = {f.name for f in file.schema_arrow if pa.types.is_primitive(f.type)}
        assert {"index", "num_tokens"} <= scalars
        assert len(file.schema_arrow) <= 1000 and max(map(len, file.schema_arrow.names)) <= 500
        rows = file.read_row_group(0).slice(0, 10).to_pylist()
        cut = [{k: json.dumps(v, default=repr)[:MIN_CELL] for k, v in row.items()} for row in rows]
        assert len(json.dumps(cut)) < FIRST_ROWS
