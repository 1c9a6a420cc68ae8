"""Chunks: what stands in the file, and that a file is whole or not there."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from builders.schema import Column, arrow_schema
from hub.chunk import MAX_GROUP_BYTES, MAX_GROUP_ROWS, chunk_metadata, group_rows, write_chunk, write_whole

CHECKOUT = Path(__file__).resolve().parents[1]
COUNTS = {"rows": 7, "note": "ä\n\x00"}


def table(num_rows: int, dimension: int = 8, dtype: str = "float32") -> pa.Table:
    columns = [
        Column("index", "int64", ""),
        Column("id", "string", ""),
        Column("embedding", dtype, "", length=dimension),
    ]
    values = np.random.default_rng(0).standard_normal(num_rows * dimension).astype(dtype)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), type=columns[2].arrow_type)
    return pa.Table.from_arrays(
        [pa.array(range(num_rows)), pa.array([f"r{n % 3}" for n in range(num_rows)]), vectors],
        schema=arrow_schema(columns),
    )


def leaf(path: Path, name: str):
    group = pq.ParquetFile(path).metadata.row_group(0)
    return next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.startswith(name))


def test_float32_vectors_are_split_by_byte_without_a_dictionary(tmp_path):
    path = tmp_path / "deep" / "a.parquet"
    sha256 = write_chunk(path, table(1000), {"counts": COUNTS})
    column = leaf(path, "embedding")
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert not any("DICTIONARY" in encoding for encoding in column.encodings)
    assert column.compression == "ZSTD"
    assert any("DICTIONARY" in encoding for encoding in leaf(path, "id").encodings)
    assert column.has_offset_index and column.has_column_index
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_float16_vectors_are_plain(tmp_path):
    write_chunk(path := tmp_path / "a.parquet", table(100, dtype="float16"), {})
    assert not {"BYTE_STREAM_SPLIT", "RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(leaf(path, "embedding").encodings)
    assert pq.read_table(path).equals(table(100, dtype="float16"))


def test_row_groups_are_small_for_big_vectors():
    assert group_rows(table(30_000, 8)) == MAX_GROUP_ROWS
    assert group_rows(table(0)) >= 1
    big = table(40, 2**20)  # 4 MB a row
    assert 1 <= group_rows(big) <= MAX_GROUP_BYTES // 2**22


def test_metadata_comes_back_and_the_features_stay(tmp_path):
    write_chunk(path := tmp_path / "a.parquet", table(7), {"counts": COUNTS})
    assert chunk_metadata(path) == {"counts": COUNTS}
    assert b"huggingface" in pq.read_schema(path).metadata
    pq.write_table(pa.table({"a": [1]}), other := tmp_path / "b.parquet")
    assert chunk_metadata(other) == {}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_load_dataset_reads_it(tmp_path, dtype):
    written = table(30, dtype=dtype)
    write_chunk(tmp_path / "data/train/0000/a.parquet", written, {})
    loaded = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["index", "id", "embedding"]
    assert loaded.features["embedding"].length == 8
    vectors = np.array(written["embedding"].to_pylist())
    assert np.array_equal(loaded.with_format("numpy")["embedding"][:], vectors.astype(dtype))


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path):
    """Killed at many moments of a loop that writes the same chunk: the name is either not there or whole."""
    path = tmp_path / "a.parquet"
    code = (
        "import sys; from pathlib import Path; from tests.test_chunk import table; from hub.chunk import write_chunk\n"
        "big = table(20_000, 64); print('go', flush=True)\n"
        "while True: write_chunk(Path(sys.argv[1]), big, {'counts': {}})"
    )
    for delay in (0.0, 0.02, 0.05, 0.3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=CHECKOUT, stdout=subprocess.PIPE)
        process.stdout.readline()
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not path.exists() or pq.read_table(path).num_rows == 20_000
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} <= {"a.parquet"}


def test_a_small_file_is_replaced_whole(tmp_path):
    write_whole(path := tmp_path / "x/y.json", b"1")
    write_whole(path, b"22")
    assert path.read_bytes() == b"22"
    assert list(path.parent.iterdir()) == [path]
