"""Stored vectors read back, from folders and a Hub: python -m pytest tests/test_curate_vectors.py."""

import json
import tracemalloc

import numpy as np
import pytest
from huggingface_hub import HfApi

from builders.curate.vectors import open_dataset
from builders.quantize import VectorFormat, calibrate
from tests.embeddings_folder import write_embeddings
from tests.hubserver import HubServer
from tests.runs import use_hub


@pytest.fixture(scope="module")
def vectors():
    drawn = np.random.default_rng(0).standard_normal((5000, 24)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def read(dataset, rows=700):
    blocks = list(dataset.blocks(rows))
    assert max(map(len, blocks)) <= rows
    ids = [i for block in blocks for i in block.ids]
    return np.concatenate([b.indices for b in blocks]), ids, np.concatenate([b.vectors for b in blocks])


def test_a_folder_is_read_in_blocks_and_as_a_matrix(vectors, tmp_path):
    dataset = open_dataset(str(write_embeddings(tmp_path / "out", vectors)))
    indices, ids, found = read(dataset)
    assert (indices == np.arange(5000)).all()
    assert ids[4999] == "row-4999"
    assert found.dtype == np.float32 and (found == vectors).all()
    assert str(dataset.progress) == "complete: 5,000 rows"

    matrix = dataset.matrix()
    assert isinstance(matrix.vectors, np.memmap)
    assert (matrix.vectors == vectors).all() and (matrix.indices == indices).all()
    assert matrix.ids.to_pylist() == ids
    assert open_dataset(str(tmp_path / "out")).matrix().folder == matrix.folder


def test_a_dataset_that_grows_says_so_and_is_read_again_when_it_has_grown(vectors, tmp_path):
    growing = open_dataset(str(write_embeddings(tmp_path / "a" / "out", vectors, units=2)))
    assert str(growing.progress) == "still being built: 4,000 of 5,000 rows (80.0%)"
    assert len(growing.matrix()) == 4000
    path = tmp_path / "a" / "out"
    path.rename(tmp_path / "old")
    write_embeddings(path, vectors)
    assert len(open_dataset(str(path)).matrix()) == 5000


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_quantised_vectors_come_back_as_float32(vectors, tmp_path, dtype):
    form = VectorFormat(dtype, 24, calibrate(vectors) if dtype == "int8" else None)
    dataset = open_dataset(str(write_embeddings(tmp_path / "out", vectors, form=form)))
    _, _, found = read(dataset)
    assert found.dtype == np.float32
    assert (found == form.dequantize(form.quantize(vectors))).all()


def test_a_hub_dataset_is_pinned_and_its_matrix_outlives_other_commits(vectors, tmp_path, monkeypatch):
    write_embeddings(tmp_path / "out", vectors)
    with HubServer(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub)
        HfApi().create_repo("tester/x", repo_type="dataset")
        HfApi().upload_folder(repo_id="tester/x", folder_path=tmp_path / "out", repo_type="dataset")
        dataset = open_dataset("tester/x")
        assert dataset.revision == HfApi().dataset_info("tester/x").sha
        key = dataset.matrix().folder
        _, ids, found = read(dataset)
        assert (found == vectors).all() and ids[17] == "row-17"

        HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="note", repo_id="tester/x", repo_type="dataset")
        later = open_dataset("x")  # of the account that is logged in
        assert later.revision != dataset.revision
        assert later.matrix().folder == key  # its vectors are the same


def test_other_columns_come_beside_and_a_wrong_one_is_named(vectors, tmp_path):
    dataset = open_dataset(str(write_embeddings(tmp_path / "out", vectors, sources=["a", "b"] * 2500)))
    assert [s for b in dataset.batches(["dataset_source"]) for s in b["dataset_source"].to_pylist()][:3] == [
        "a",
        "b",
        "a",
    ]
    with pytest.raises(ValueError, match=r"has no column source: it has index, id, dataset_source"):
        list(dataset.batches(["source"]))
    with pytest.raises(ValueError, match=r"has no vectors 'think': it has embedding"):
        open_dataset(str(tmp_path / "out"), column="think")


def test_what_is_none_of_ours_is_refused_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="no dataset of stillroom here"):
        open_dataset(str(tmp_path))
    with HubServer(tmp_path / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        use_hub(patch, hub)
        with pytest.raises(ValueError, match=r"tester/none: .*404"):
            open_dataset("tester/none")
    with pytest.raises(ValueError, match="there is no such folder"):
        open_dataset(str(tmp_path / "none"))
    (tmp_path / "_stillroom").mkdir()
    job = {"build": "lengths", "source": "./x", "output": "x"}
    (tmp_path / "_stillroom" / "job.json").write_text(json.dumps({"format": 2, "job": job}))
    with pytest.raises(ValueError, match="is a dataset of lengths: there are no vectors in it"):
        open_dataset(str(tmp_path))


def test_a_pass_holds_a_block_and_a_row_group_and_no_more(tmp_path):
    vectors = np.zeros((60_000, 64), np.float32)
    vectors[:, 0] = 1
    dataset = open_dataset(str(write_embeddings(tmp_path / "out", vectors, chunk_rows=20_000)))
    tracemalloc.start()
    for _ in dataset.blocks(2000):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < vectors.nbytes / 5
