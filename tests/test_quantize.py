"""Vectors in fewer bytes: python -m pytest tests/test_quantize.py."""

import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sentence_transformers import quantize_embeddings

from builders.quantize import VectorFormat, calibrate, dequantize, quantize, ranges_from_bytes, ranges_to_bytes, recall
from builders.stored_vectors import open_vectors, stored_array, vector_column
from extract.embedder import Embedder
from extract.engines import EngineError
from extract.engines.fake import FakeEngine
from extract.settings import Settings
from extract.verify import verify as prove
from tests.runs import CHECKOUT, MINILM, Bench, download, hub_process


def unit_vectors(rows, dimension, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(2, 20), st.integers(1, 20)),
    elements=st.floats(-4, 4, width=32).map(lambda value: round(value, 3)),
)


@given(VECTORS, st.data())
def test_int8_is_the_librarys_and_off_by_half_a_bucket_at_most(vectors, data):
    num = data.draw(st.integers(1, len(vectors)))
    ranges = calibrate(vectors[:num])  # what comes after may lie outside
    stored = quantize(vectors, "int8", ranges)
    np.testing.assert_array_equal(stored, quantize_embeddings(vectors, "int8", ranges=ranges))
    restored = dequantize(stored, "int8", ranges=ranges)
    assert restored.dtype == np.float32
    buckets = (ranges[1] - ranges[0]) / 255
    inside = np.clip(vectors, ranges[0], ranges[1])
    assert (np.abs(restored - inside) <= buckets * 0.51 + 1e-6)[:, buckets > 0].all()
    np.testing.assert_array_equal(restored[:num, buckets == 0], vectors[:num, buckets == 0])
    again = quantize(restored, "int8", ranges)  # carried over, nothing drifts
    np.testing.assert_array_equal(again[:, buckets > 0], stored[:, buckets > 0])


@given(VECTORS)
def test_bits_are_the_librarys_first_dimension_first(vectors):
    stored = quantize(vectors, "binary")
    np.testing.assert_array_equal(stored, quantize_embeddings(vectors, "ubinary"))
    assert [byte >> 7 for byte in stored[:, 0]] == [value > 0 for value in vectors[:, 0]]
    restored = dequantize(stored, "binary", dimension=vectors.shape[1])
    np.testing.assert_array_equal(restored > 0, vectors > 0)
    np.testing.assert_allclose(np.linalg.norm(restored, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(quantize(restored, "binary"), stored)


def test_what_is_needed_to_read_is_asked_for():
    with pytest.raises(ValueError, match="int8 vectors need the ranges"):
        dequantize(np.zeros((1, 2), np.int8), "int8")
    with pytest.raises(ValueError, match="bits need the dimension"):
        dequantize(np.zeros((1, 2), np.uint8), "binary")


def test_recall_counts_neighbours_that_stored_vectors_find():
    vectors = unit_vectors(500, 32)
    assert recall(vectors, vectors) == (2000, 2000)
    assert recall(vectors, 3 * vectors) == (2000, 2000)  # by cosine
    found, asked = recall(vectors, vectors[::-1])
    assert found < 0.1 * asked
    assert recall(np.repeat(vectors[:50], 10, 0), np.repeat(vectors[:50], 10, 0)) == (2000, 2000)  # ties
    assert recall(vectors[:99], vectors[:99]) == (0, 0)
    shares = [np.divide(*recall(vectors, form.dequantize(form.quantize(vectors)))) for form in forms(vectors)]
    assert shares[0] > 0.95 > shares[1] > 0.2


def forms(vectors):
    return VectorFormat("int8", vectors.shape[1], calibrate(vectors)), VectorFormat("binary", vectors.shape[1])


@pytest.mark.parametrize("number", [0, 1])
def test_what_a_chunk_says_of_its_vectors_is_read_back(number):
    form = forms(unit_vectors(50, 12))[number]
    again = VectorFormat.from_metadata(form.to_metadata())
    assert (again.dtype, again.dimension) == (form.dtype, form.dimension)
    np.testing.assert_array_equal(again.ranges, form.ranges)
    with pytest.raises(ValueError, match="no quantised vectors here"):
        VectorFormat.from_metadata({})
    assert VectorFormat("float32", 3).to_metadata() == {}


def test_ranges_are_a_file_that_numpy_reads(tmp_path):
    ranges = calibrate(unit_vectors(9, 4))
    (tmp_path / "ranges.npy").write_bytes(ranges_to_bytes(ranges))
    np.testing.assert_array_equal(np.load(tmp_path / "ranges.npy"), ranges)
    for damaged in (
        b"",
        b"x",
        ranges_to_bytes(ranges)[:-1],
        ranges_to_bytes(ranges[::-1]),
        ranges_to_bytes(ranges[:1]),
    ):
        with pytest.raises(ValueError):  # numpy's words
            ranges_from_bytes(damaged)


@pytest.mark.parametrize("kind", [pa.list_(pa.field("element", pa.int8()), 12), pa.binary(2)])
def test_a_column_goes_to_arrow_and_back(kind):
    vectors = unit_vectors(6, 12)
    stored = forms(vectors)[pa.types.is_fixed_size_binary(kind)].quantize(vectors)
    missing = np.array([False, True, False, False, True, False])
    column = vector_column(stored, kind, missing)
    column.validate(full=True)
    assert column.null_count == 2 and column.type == kind
    np.testing.assert_array_equal(stored_array(column[2:].drop_null()), stored[[2, 3, 5]])
    np.testing.assert_array_equal(stored_array(vector_column(stored, kind, missing & False)[1:4]), stored[1:4])


# whole runs, of 150 chats through the real tokenizer

OPTIONS = ["--model", MINILM, "--engine", "fake", "--chunk-rows", "130", "--limit", "300", "--resume"]


def make(bench, source, output, *more, workers=1):
    return bench.run("--source", str(source), "--output", str(output), *OPTIONS, *more, workers=workers)


def problems(output):
    """What a proof of all data finds."""
    return prove(str(output), "default", None, Settings(), deep=True).report.problems


@pytest.fixture(scope="module")
def source(chats, tmp_path_factory):
    """Three hundred chats, every tenth without an answer."""
    path = tmp_path_factory.mktemp("source") / "chats.parquet"
    rows = [
        {**row, "messages": [{"role": "user", "content": f"{n} {row['id']}"}, *row["messages"][1:]]}
        for n in range(5)
        for row in chats
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The same job stored in three ways; the fake engine's vectors depend on the text alone."""
    bench = Bench(tmp_path_factory.mktemp("whole"))
    code = """if True:
        import sys
        from builders.job import Job
        from extract.run import run
        from extract.settings import Settings

        for dtype in ("float32", "int8", "binary"):
            about = {"source": sys.argv[1], "model": sys.argv[2], "engine": "fake", "limit": 300, "chunk_rows": 130}
            run(Job(**about, output=f"{sys.argv[3]}/{dtype}", storage_dtype=dtype), Settings(resume=True))
        """
    command = [sys.executable, "-c", code, str(source), MINILM, str(bench.root)]
    subprocess.run(command, env=bench.env | {"PYTHONPATH": str(CHECKOUT)}, cwd=bench.root, check=True, timeout=300)
    return bench


def stored(folder):
    return load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "hf")).with_format("numpy")


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_a_run_stores_what_the_library_would(whole, dtype):
    floats = stored(whole.root / "float32")[:]["embedding"]
    form, dataset = open_vectors(str(whole.root / dtype)), stored(whole.root / dtype)
    column = dataset[:]["embedding"]
    if dtype == "int8":
        held = np.load(whole.root / dtype / "_stillroom" / "ranges.npy")
        np.testing.assert_array_equal(form.ranges, held)
        np.testing.assert_array_equal(held, calibrate(floats))  # all 300 rows are within the pilot's 1,024
        np.testing.assert_array_equal(column, quantize_embeddings(floats, "int8", ranges=held))
    else:
        bits = quantize_embeddings(floats, "ubinary")
        np.testing.assert_array_equal(form.quantize(form.dequantize(column)), bits)
    vectors = form.dequantize(column)
    assert vectors.shape == floats.shape
    assert (vectors * floats).sum(1).min() > {"int8": 0.999, "binary": 0.7}[dtype]
    np.testing.assert_allclose(form.dequantize(dataset[7:8]["embedding"])[0], vectors[7])
    sizes = [sum(p.stat().st_size for p in (whole.root / d).glob("data/**/*.parquet")) for d in ("float32", dtype)]
    assert sizes[1] < sizes[0] / 2  # chunks of 130 rows, with 12 kB of metadata each
    assert problems(whole.root / dtype) == []


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_the_card_says_how_to_read_and_what_it_costs(whole, dtype):
    card = (whole.root / dtype / "README.md").read_text()
    assert "from builders.stored_vectors import open_vectors" in card
    assert "recall@10" in card and "quantised" in card
    code = card.split("```python\n")[1].split("```")[0]
    scope = {}
    exec(code.replace("load_dataset(", f"load_dataset(cache_dir={str(whole.root / 'hf')!r}, path="), scope)
    assert scope["vectors"].shape == (min(1000, len(scope["dataset"])), 384)
    assert scope["vectors"].dtype == np.float32


def test_a_damaged_or_lost_file_of_ranges_is_found_and_written_from_the_chunks(whole, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(whole.root / "int8", output)
    ranges = output / "_stillroom" / "ranges.npy"
    content = ranges.read_bytes()
    ranges.write_bytes(ranges_to_bytes(2 * np.load(ranges)))
    assert [problem.what for problem in problems(output)] == ["has not the ranges of the chunks"]
    ranges.unlink()
    (problem,) = problems(output)
    assert (problem.path, problem.what, problem.repair) == ("_stillroom/ranges.npy", "missing", "table")
    code = "from extract.cli import main; main()"
    command = [sys.executable, "-c", code, "verify", str(output), "--repair"]
    subprocess.run(command, env=whole.env, cwd=CHECKOUT, check=True, timeout=300)
    assert problems(output) == []
    assert ranges.read_bytes() == content


def test_a_chunk_with_other_ranges_is_damage(whole, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(whole.root / "int8", output)
    path = sorted(output.glob("data/**/*.parquet"))[-1]
    table = pq.read_table(path)
    form = VectorFormat.from_metadata(table.schema.metadata)
    other = VectorFormat(form.dtype, form.dimension, 4 * form.ranges)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **other.to_metadata()}), path)
    whats = [problem.what for problem in problems(output)]
    assert "its metadata tells of other records than that of the other chunks" in whats
    assert "embedding has vectors that are not of length 1 with the ranges of the chunk" in whats


class OtherModel(FakeEngine):
    """Vectors of another model."""

    def _vector(self, sample):
        return np.roll(super()._vector(sample), 1)


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_queries_are_floats_and_another_model_is_told_from_quantised_vectors(whole, source, dtype):
    embedder = Embedder.from_dataset(str(whole.root / dtype))
    texts = [embedder.job.view.render(row)[0].text for row in pq.read_table(source).slice(0, 5).to_pylist()]
    floats = stored(whole.root / "float32")[:5]["embedding"]
    np.testing.assert_allclose(embedder.embed_batch(texts), floats, atol=1e-6)
    embedder.check()
    with pytest.raises(EngineError, match="other vectors"):
        Embedder(embedder.job, embedder.files, OtherModel(384)).check()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_an_update_carries_stored_vectors_over_as_they_are(whole, source, tmp_path, dtype):
    bench = Bench(tmp_path)
    rows = pq.read_table(source).slice(0, 240)
    first = tmp_path / "source.parquet"
    pq.write_table(rows, first)
    make(bench, first, tmp_path / "out", "--storage-dtype", dtype, "--fields", "prompt,think")
    before = stored(tmp_path / "out")[:]
    pq.write_table(pq.read_table(source), first)
    log = make(bench, first, tmp_path / "out", "--storage-dtype", dtype, "--fields", "prompt,think", "--update")
    assert "carried" in (tmp_path / "out" / "README.md").read_text(), log
    after = stored(tmp_path / "out")[:]
    assert len(after["index"]) > len(before["index"]) > 150
    for name in ("embedding_prompt", "embedding_think"):
        same = [
            a is b is None or np.array_equal(a, b)
            for a, b in zip(before[name], after[name][: len(before["index"])], strict=True)
        ]
        assert all(same)
    assert problems(tmp_path / "out") == []


@pytest.mark.slow
def test_jobs_that_share_nothing_and_several_workers_use_one_file_of_ranges(source, tmp_path):
    with hub_process(tmp_path / "hub") as hub:
        bench = Bench(tmp_path / "bench", hub)
        bench.root.mkdir()
        more = ["--storage-dtype", "int8"]
        make(bench, source, "user/x", *more, "--num-jobs", "2", "--job-index", "1", workers=2)
        folder = download(hub, "user/x", tmp_path / "half")
        ranges = (folder / "_stillroom" / "ranges.npy").read_bytes()
        bench.lose_disk()
        make(bench, source, "user/x", *more, "--num-jobs", "2", "--job-index", "0")
        folder = download(hub, "user/x", tmp_path / "whole")
    assert (folder / "_stillroom" / "ranges.npy").read_bytes() == ranges
    forms = [VectorFormat.from_metadata(pq.read_schema(p).metadata) for p in folder.glob("data/**/*.parquet")]
    assert len(forms) == 3
    assert all(ranges_to_bytes(form.ranges) == ranges for form in forms)
