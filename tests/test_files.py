"""Rows by position from Parquet, JSON Lines and Arrow files: python -m pytest tests/test_files.py."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.files import BATCH_ROWS, LINES_PER_MARK, ArrowFile, JsonlFile, ParquetFile, SourceError, file_sha256

NUM_ROWS = 2 * BATCH_ROWS + 700  # groups of 1,200 rows end within a batch


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("files") / "rows.parquet")
    table = pa.table(
        {"n": range(NUM_ROWS), "text": [f"row {i}" for i in range(NUM_ROWS)], "wide": ["x" * 50] * NUM_ROWS}
    )
    pq.write_table(table, path, row_group_size=1200)
    return ParquetFile(path, NUM_ROWS)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "rows.jsonl"
    lines = [
        f'{{"n": {i}, "text": "row {i}"}}\n' + "\n" * (i % 3 == 0) + " \t\r\n" * (i % 7 == 0) for i in range(NUM_ROWS)
    ]
    path.write_text("".join(lines))
    return JsonlFile.scan(str(path))


@pytest.fixture(scope="module")
def arrow():
    from datasets import Dataset

    return ArrowFile(Dataset.from_dict({"n": range(NUM_ROWS), "text": [f"row {i}" for i in range(NUM_ROWS)]}))


@pytest.fixture(params=["parquet", "jsonl", "arrow"])
def any_file(request):
    return request.getfixturevalue(request.param)


def read(file, positions, columns=("n", "text"), offset=0):
    return list(file.read(np.array(positions, np.int64), columns, offset))


POSITIONS = st.sets(st.integers(0, NUM_ROWS - 1), max_size=30).map(sorted)


def check_positions(file, positions):
    rows = read(file, positions, offset=10_000)
    assert [row.index for row in rows] == [10_000 + p for p in positions]
    assert [row.data for row in rows] == [{"n": p, "text": f"row {p}"} for p in positions]


@given(positions=POSITIONS)
def test_parquet_rows_are_read_by_position(parquet, positions):
    check_positions(parquet, positions)


@given(positions=POSITIONS)
def test_json_lines_are_read_by_position(jsonl, positions):
    check_positions(jsonl, positions)


@given(positions=POSITIONS)
def test_arrow_rows_are_read_by_position(arrow, positions):
    check_positions(arrow, positions)


def test_all_rows_and_none(any_file):
    check_positions(any_file, list(range(NUM_ROWS)))
    assert read(any_file, []) == []


def test_columns_are_named_and_only_those_asked_for_are_read(any_file):
    assert any_file.num_rows == NUM_ROWS
    assert any_file.columns[:2] == ("n", "text")
    assert read(any_file, [3], ["text"])[0].data == {"text": "row 3"}


def test_only_the_row_groups_that_hold_a_position_are_opened(parquet, monkeypatch):
    opened = []
    plain = pq.ParquetFile.iter_batches

    def spy(self, *args, row_groups, columns):
        opened.append((row_groups, columns))
        return plain(self, *args, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    read(parquet, [5, 2500], ["n"])
    assert opened == [([0], ["n"]), ([2], ["n"])]


def test_a_column_that_one_file_of_several_lacks_is_absent_there(parquet):
    assert [row.data for row in read(parquet, [0, 2000], ["n", "later"])] == [{"n": 0}, {"n": 2000}]
    assert [row.data for row in read(parquet, [0, 2000], ["later"])] == [{}, {}]


def test_a_file_that_is_no_parquet_says_which(tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_text("no parquet")
    with pytest.raises(SourceError, match=r"bad\.parquet is not a readable Parquet file"):
        _ = ParquetFile(str(path), 1).columns


def test_a_damaged_page_names_file_and_row_group(tmp_path):
    path = tmp_path / "torn.parquet"
    pq.write_table(pa.table({"n": np.arange(5000)}), path, row_group_size=2500, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"torn\.parquet, row group 0"):
        read(ParquetFile(str(path), 5000), [0], ["n"])


def test_marks_are_few_and_true(jsonl):
    assert len(jsonl.marks) == -(-NUM_ROWS // LINES_PER_MARK)
    with open(jsonl.path, "rb") as file:
        file.seek(jsonl.marks[2])
        assert file.readline().startswith(b'{"n": 512,')


def test_a_broken_line_is_a_row_with_an_error_and_a_blank_one_is_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 0}\n\n{"n": \n[1, 2]\n"text"\n\xff\xfe\n   \n{"m": 6}\n{"n": 5}')  # and no line end
    file = JsonlFile.scan(str(path))
    rows = read(file, range(file.num_rows), ["n"])
    assert [row.index for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row.error and row.error.reason for row in rows] == [None, *["invalid_json"] * 4, None, None]
    assert [row.data for row in rows] == [{"n": 0}, {}, {}, {}, {}, {"n": None}, {"n": 5}]
    assert rows[2].error.detail == "expected an object, got list"
    assert file.columns == ("n", "m")


def test_nesting_without_end_is_a_broken_line(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text('{"n": ' + "[" * 200_000 + "\n")
    assert read(JsonlFile.scan(str(path)), [0])[0].error.reason == "invalid_json"


def test_the_hash_is_that_of_the_content(tmp_path, jsonl):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    from pathlib import Path

    assert jsonl.sha256 == file_sha256(Path(jsonl.path))
