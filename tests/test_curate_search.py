"""Search: exact, filtered, cached: python -m pytest tests/test_curate_search.py."""

import numpy as np
import pyarrow as pa
import pytest

from builders.curate.retrieve import Searcher
from builders.curate.search import Filter, top_k
from builders.curate.vectors import open_dataset
from tests.embeddings_folder import write_embeddings

DRAW = np.random.default_rng(7)


def unit(rows, dims):
    vectors = DRAW.standard_normal((rows, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Fixed:
    """An embedder that knows one answer."""

    def __init__(self, vector):
        self.vector, self.asked = vector, []

    def embed_text(self, text):
        self.asked.append(text)
        return self.vector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows = 900
    texts = [f"row {i} is about {('primes', 'soup', 'birds')[i % 3]}" for i in range(rows)]
    sources = [("math", "food", "birds")[i % 3] for i in range(rows)]
    where = tmp_path_factory.mktemp("search") / "out"
    return write_embeddings(where, unit(rows, 16), sources=sources, texts=texts, chunk_rows=200)


def test_of_50000_rows_the_nearest_are_those_of_a_full_sort():
    vectors = unit(50_000, 48)
    vectors[41_000] = vectors[17]  # equal ones keep their order
    queries = np.concatenate([vectors[[17, 49_999]] + 0.05 * unit(2, 48), unit(6, 48)])
    products = queries @ vectors.T
    expected = np.lexsort((np.broadcast_to(np.arange(50_000), products.shape), -products), axis=1)[:, :10]
    positions, scores = top_k(vectors, queries, 10)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), atol=1e-6)
    assert positions[0, :2].tolist() == [17, 41_000] and positions[1, 0] == 49_999


def test_rows_that_are_left_out_are_not_found_and_lengths_make_cosines():
    vectors = unit(300, 8) * DRAW.uniform(0.1, 9, (300, 1)).astype(np.float32)
    vectors[5] = 0
    keep = np.arange(300) % 2 == 1
    lengths = np.linalg.norm(vectors, axis=1)
    query = unit(1, 8)
    positions, scores = top_k(vectors, query, 300, keep, lengths)
    assert sorted(positions[0].tolist()) == list(range(1, 300, 2))
    assert np.abs(scores).max() <= 1 + 1e-6 and scores[0, positions[0].tolist().index(5)] == 0
    assert (np.diff(scores[0]) <= 0).all()
    assert top_k(vectors, query, 3, np.zeros(300, bool))[0].shape == (1, 0)


def test_a_query_finds_records_with_their_scores(folder, tmp_path):
    dataset = open_dataset(str(folder))
    query = dataset.matrix(tmp_path).vectors[123] * 3  # of any length
    embedder = Fixed(np.array(query))
    searcher = Searcher.open(dataset, embedder, tmp_path)
    hits = searcher.retrieve("which row is it?", k=4)
    assert embedder.asked == ["which row is it?"]
    assert hits[0].index == 123 and hits[0].score == pytest.approx(1, abs=1e-6)
    assert hits[0].record["id"] == "row-123" and hits[0].record["text"] == "row 123 is about primes"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True) and len(hits) == 4
    assert "embedding" not in hits[0].record


def test_conditions_leave_rows_out(folder, tmp_path):
    searcher = Searcher.open(open_dataset(str(folder)), None, tmp_path)
    query = np.ones(16, np.float32)
    sources = {hit.record["dataset_source"] for hit in searcher.nearest(query, 50, ["dataset_source=food"])}
    assert sources == {"food"}
    both = searcher.nearest(query, 900, ["index>=890", "text~BIRDS"])
    assert sorted(hit.index for hit in both) == [890, 893, 896, 899]
    assert not searcher.nearest(query, 5, ["id=row-5", "id!=row-5"])


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("dataset_source", "write COLUMN=VALUE"),
        ("sauce=food", "--where sauce: no such column; there are index, id, dataset_source"),
        ("num_tokens>many", "num_tokens is int32, and 'many' is none"),
    ],
)
def test_a_wrong_condition_is_told_in_one_line(folder, tmp_path, condition, problem):
    searcher = Searcher.open(open_dataset(str(folder)), None, tmp_path)
    with pytest.raises(ValueError, match=problem) as error:
        searcher.nearest(np.ones(16), 5, [condition])
    assert "\n" not in str(error.value)


def test_a_null_fulfils_no_condition():
    rows = pa.table({"source": ["a", None, "b"]})
    assert Filter.parse("source!=a").mask(rows).tolist() == [False, False, True]
    assert Filter.parse("source = a ").mask(rows).tolist() == [True, False, False]


def test_the_index_is_read_once_and_mapped(folder, tmp_path, monkeypatch):
    first = Searcher.open(open_dataset(str(folder)), None, tmp_path)
    dataset = open_dataset(str(folder))
    monkeypatch.setattr(type(dataset), "batches", lambda *_: pytest.fail("it was read again"))
    again = Searcher.open(dataset, None, tmp_path)
    assert isinstance(again.matrix.vectors, np.memmap)
    assert again.nearest(np.ones(16), 3) == first.nearest(np.ones(16), 3)


def test_a_dataset_that_still_grows_says_how_much_is_there(tmp_path):
    folder = write_embeddings(tmp_path / "out", unit(50, 4), texts=["text"] * 50, chunk_rows=10, units=2)
    searcher = Searcher.open(open_dataset(str(folder)), None, tmp_path / "cache")
    assert len(searcher.rows) == 20 and str(searcher.progress) == "still being built: 20 of 50 rows (40.0%)"
    write_embeddings(tmp_path / "more", unit(50, 4), texts=["text"] * 50, chunk_rows=10, units=3)
    (tmp_path / "more" / "data").rename(tmp_path / "out" / "data2")
    (tmp_path / "out" / "data2" / "train" / "0000" / "000000000020-000000000030.parquet").rename(
        tmp_path / "out" / "data" / "train" / "0000" / "000000000020-000000000030.parquet"
    )
    assert len(Searcher.open(open_dataset(str(folder)), None, tmp_path / "cache").rows) == 30
