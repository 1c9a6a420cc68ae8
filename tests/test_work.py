"""The unit in hand: python -m pytest tests/test_work.py."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.content import content_hash
from builders.job import Job
from builders.quantize import VectorFormat
from builders.row import Row, RowError
from builders.schema import arrow_schema, embeddings_columns
from builders.text import Text
from builders.units import Unit
from extract.sample import Batch, Sample
from extract.vectors import VectorWork

SOURCE_COLUMNS = ("id", "dataset_source")


def work_of(job, num_rows):
    work = VectorWork(Unit(3, 30, 30 + num_rows), job, form=VectorFormat(job.storage_dtype, 2))
    for position in range(num_rows):
        texts = tuple(Text(name, f"text {position}") for name in job.fields or ("",))
        work.add_texts(position, Row(1000 + position, {"id": position, "dataset_source": None}), texts)
    return work


def put(work, position, field, vector, num_tokens=3, truncated=False):
    work.put([Sample(position, field, [0] * num_tokens, truncated)], np.array([vector], np.float32), num_tokens + 1)


def records(work, dimension=2):
    return work.records(embeddings_columns(work.job, SOURCE_COLUMNS, dimension))


def test_records_come_out_in_row_order_with_the_schema_of_the_dataset():
    job = Job(max_length=8, keep_text=True)
    work = work_of(job, 3)
    for position in (2, 0, 1):
        put(work, position, 0, [position, -position], num_tokens=position + 1, truncated=position == 2)
    work.finish()
    table = records(work)
    assert table.schema.equals(arrow_schema(embeddings_columns(job, SOURCE_COLUMNS, 2)), check_metadata=True)
    assert table.to_pylist() == [
        {
            "index": 1000 + p,
            "id": str(p),
            "dataset_source": None,
            "content_hash": content_hash((Text("", f"text {p}"),)),
            "num_tokens": p + 1,
            "truncated": p == 2,
            "text": f"text {p}",
            "embedding": [p, -p],
        }
        for p in range(3)
    ]


def test_the_source_may_have_neither_id_nor_source():
    work = work_of(Job(), 1)
    put(work, 0, 0, [1, 2])
    assert work.records(embeddings_columns(work.job, (), 2)).column_names == [
        "index",
        "content_hash",
        "num_tokens",
        "truncated",
        "embedding",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_field_without_text_is_a_null_vector_beside_the_others(dtype):
    work = work_of(Job(fields=("think", "response"), storage_dtype=dtype), 3)
    for position, field in [(0, 0), (0, 1), (1, 1), (2, 0)]:
        put(work, position, field, [1, field], truncated=position == 1)
    work.finish()
    table = records(work)
    table.validate(full=True)
    assert table["embedding_think"].to_pylist() == [[1, 0], None, [1, 0]]
    assert table["embedding_response"].to_pylist() == [[1, 1], [1, 1], None]
    assert table["num_tokens"].to_pylist() == [6, 3, 3]
    assert table["truncated"].to_pylist() == [False, True, False]


def test_a_field_that_no_row_has_is_null_throughout():
    work = work_of(Job(fields=("think", "response")), 2)
    put(work, 0, 1, [1, 2])
    put(work, 1, 1, [3, 4])
    work.finish()
    assert records(work)["embedding_think"].to_pylist() == [None, None]


def test_a_row_without_any_vector_is_listed():
    work = work_of(Job(), 3)
    put(work, 1, 0, [1, 2])
    work.finish()
    assert records(work)["index"].to_pylist() == [1001]
    assert work.skipped_table()["index"].to_pylist() == [1000, 1002]
    assert work.skipped_table()["reason"].to_pylist() == ["empty_text"] * 2


def test_a_unit_of_skipped_rows_alone():
    work = VectorWork(Unit(0, 0, 2), Job())
    work.skip(1, RowError("messages_missing", "no \udcff"))
    work.skip(0, RowError("invalid_json"))
    work.finish()
    assert work.skipped_table().to_pylist() == [
        {"index": 0, "reason": "invalid_json", "detail": ""},
        {"index": 1, "reason": "messages_missing", "detail": "no \ufffd"},
    ]
    assert records(work).num_rows == 0
    assert work.counts() == {
        "rows": 2,
        "records": 0,
        "carried": 0,
        "skipped": 2,
        "truncated": 0,
        "tokens": 0,
        "padding": 0,
        "skipped_invalid_json": 1,
        "skipped_messages_missing": 1,
        "sources": {},
        "tallies": {"tokens": {}},
    }


@given(st.lists(st.sampled_from(["record", "skip", "no tokens"]), min_size=1, max_size=40))
def test_records_and_skipped_rows_are_all_rows(kinds):
    work = VectorWork(Unit(0, 0, len(kinds)), Job())
    for position, kind in enumerate(kinds):
        if kind == "skip":
            work.skip(position, RowError("empty_text"))
            continue
        work.add_texts(position, Row(position), (Text("", "x"),))
        if kind == "record":
            put(work, position, 0, [position, 0])
    work.finish()
    counts = work.counts()
    assert counts["rows"] == counts["records"] + counts["skipped"] == len(kinds)
    kept = records(work)["index"].to_pylist()
    assert sorted(kept + work.skipped_table()["index"].to_pylist()) == list(range(len(kinds)))
    assert records(work)["embedding"].to_pylist() == [[float(p), 0.0] for p in kept]


def test_counts_say_what_was_run_and_what_was_padding():
    work = work_of(Job(), 2)
    work.put([Sample(0, 0, [0] * 5), Sample(1, 0, [0] * 3, True)], np.ones((2, 4), np.float32), 10)
    work.finish()
    assert work.counts() | {"dimension": 4} == work.counts()
    assert {name: work.counts()[name] for name in ("tokens", "padding", "truncated")} == {
        "tokens": 8,
        "padding": 2,
        "truncated": 1,
    }


def test_a_batch_of_nothing_changes_nothing():
    work = work_of(Job(), 1)
    work.put([], np.empty((0, 2), np.float32), 0)
    assert work.vectors is None


def test_records_are_one_arrow_chunk_of_the_right_type():
    work = work_of(Job(storage_dtype="float16"), 1)
    put(work, 0, 0, [0.5, 0.25])
    assert records(work).schema.field("embedding").type == pa.list_(pa.field("element", pa.float16()), 2)


def old_records(job, vectors, num_tokens=5, truncated=True):
    """Records of an older generation, as hub/carried.py gives them: one list of vectors for each field."""
    columns = {column.name: column.arrow_type for column in embeddings_columns(job, (), 2)}
    data = {"num_tokens": [num_tokens] * len(vectors[0]), "truncated": [truncated] * len(vectors[0])}
    data |= dict(zip((name for name in columns if name.startswith("embedding")), vectors, strict=True))
    return pa.table({name: pa.array(values, columns[name]) for name, values in data.items()})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_carried_records_stand_among_computed_ones(dtype):
    job = Job(storage_dtype=dtype)
    work = work_of(job, 4)
    put(work, 1, 0, [0, 1])
    work.carried.append((np.array([3, 0]), old_records(job, [[[0.3, 3], [0.1, 0]]])))
    work.finish()
    table = records(work)
    assert table["index"].to_pylist() == [1000, 1001, 1003]
    expected = np.array([[0.1, 0], [0, 1], [0.3, 3]], dtype).tolist()
    assert table["embedding"].to_pylist() == expected
    assert table["num_tokens"].to_pylist() == [5, 3, 5]
    assert table["truncated"].to_pylist() == [True, False, True]
    counts = work.counts()
    assert {name: counts[name] for name in ("records", "carried", "skipped", "tokens", "padding")} == {
        "records": 3,
        "carried": 2,
        "skipped": 1,
        "tokens": 13,
        "padding": 1,
    }


def test_a_vector_that_an_old_record_lacks_is_not_made_up():
    """Not even where an earlier run left one of the row in its partial file."""
    job = Job(fields=("think", "response"))
    work = work_of(job, 2)
    put(work, 0, 0, [9, 9])
    work.carried.append((np.array([0, 1]), old_records(job, [[None, [1, 2]], [[3, 4], None]])))
    work.finish()
    table = records(work)
    assert table["embedding_think"].to_pylist() == [None, [1, 2]]
    assert table["embedding_response"].to_pylist() == [[3, 4], None]
    assert table["num_tokens"].to_pylist() == [5, 5]


def test_the_end_of_a_unit_weighs_as_much_as_what_is_carried():
    work = work_of(Job(), 1)
    assert Batch(work, is_last=True).weight == 1
    work.carried.append((np.arange(500_000), old_records(Job(), [[[1, 2]] * 500_000])))
    assert Batch(work).weight == 1
    assert Batch(work, is_last=True).weight == 1 + work.carried[0][1].nbytes // 10**6 > 5
