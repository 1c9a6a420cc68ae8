"""The columns of the datasets: python -m pytest tests/test_schema.py."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value, load_dataset

from builders.job import Job
from builders.schema import SKIPPED_COLUMNS, arrow_schema, embeddings_columns

JOBS = [
    Job(max_length=256),
    Job(storage_dtype="float16", keep_text=True),
    Job(fields=("think", "response"), keep_text=True),
]
CHAT_COLUMNS = ("id", "messages", "dataset_source")


def schema_of(job, source_columns=CHAT_COLUMNS):
    return arrow_schema(embeddings_columns(job, source_columns, 8))


@pytest.mark.parametrize("schema", [*map(schema_of, JOBS), arrow_schema(SKIPPED_COLUMNS)])
def test_metadata_and_types_are_those_that_datasets_writes(schema):
    features = Features.from_arrow_schema(schema)
    theirs = features.arrow_schema
    assert json.loads(schema.metadata[b"huggingface"]) == json.loads(theirs.metadata[b"huggingface"])
    assert schema.names == theirs.names
    assert [field.type for field in schema] == [field.type for field in theirs]


def test_features_are_what_one_would_write_by_hand():
    assert Features.from_arrow_schema(schema_of(JOBS[0])) == Features(
        {
            "index": Value("int64"),
            "id": Value("string"),
            "dataset_source": Value("string"),
            "content_hash": Value("string"),
            "num_tokens": Value("int32"),
            "truncated": Value("bool"),
            "embedding": List(Value("float32"), length=8),
        }
    )


@pytest.mark.parametrize("job", JOBS)
def test_a_file_loads_and_is_what_datasets_itself_would_have_written(job, tmp_path):
    schema = schema_of(job)
    rows = {
        field.name: np.arange(16).reshape(2, 8).tolist()
        if field.name.startswith("embedding")
        else pa.nulls(2, field.type).fill_null({"string": "x", "bool": True}.get(str(field.type), 7))
        for field in schema
    }
    pq.write_table(pa.table(rows, schema=schema), tmp_path / "ours.parquet")
    loaded = load_dataset("parquet", data_files=str(tmp_path / "ours.parquet"), split="train", cache_dir=str(tmp_path))
    assert loaded.features == Features.from_arrow_schema(schema)
    assert loaded.with_format("numpy")["num_tokens"][:].tolist() == [7, 7]
    loaded.to_parquet(str(tmp_path / "theirs.parquet"))
    assert pq.read_schema(tmp_path / "theirs.parquet").equals(pq.read_schema(tmp_path / "ours.parquet"))


def test_vectors_of_numpy_come_back_as_they_went_in():
    vectors = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    kind = schema_of(JOBS[0]).field("embedding").type
    column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), type=kind)
    back = Dataset(pa.table({"embedding": column})).with_format("numpy")["embedding"][:]
    np.testing.assert_array_equal(back, vectors)


def test_carried_columns_are_there_only_where_the_source_has_them():
    assert schema_of(JOBS[0], ["text"]).names == ["index", "content_hash", "num_tokens", "truncated", "embedding"]
    job = Job(id_column="key", source_column="origin")
    assert schema_of(job, ["key", "origin"]).names[:3] == ["index", "id", "dataset_source"]


def test_several_fields_have_a_vector_and_a_text_each():
    assert schema_of(JOBS[2]).names[-4:] == ["text_think", "text_response", "embedding_think", "embedding_response"]


@pytest.mark.parametrize("job", JOBS)
def test_every_column_has_a_sentence(job):
    for column in [*embeddings_columns(job, CHAT_COLUMNS, 8), *SKIPPED_COLUMNS]:
        assert column.about.endswith("."), column.name
