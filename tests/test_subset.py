"""A subset of the source as a dataset of its own: python -m pytest tests/test_subset.py."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from huggingface_hub import DatasetCard, HfApi, snapshot_download
from PIL import Image as Pixels

from builders.job import Job
from builders.source import open_source
from tests.embeddings_folder import write_embeddings
from tests.hubserver import HubServer
from tests.runs import use_hub
from tests.test_density import clustered, run

ROWS = 300
FEATURES = Features(
    {
        "id": Value("string"),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "kind": ClassLabel(names=["small", "large"]),
        "picture": Image(),
    }
)


def source_of(path):
    """A source with chats, labels and pictures; of JSON lines, with a key that the first 1,000 rows have as a whole number."""
    rows = [
        {"id": f"row-{i}", "messages": [{"role": "user", "content": f"say {i}"}] * (i % 3), "kind": i % 2}
        for i in range(ROWS)
    ]
    if path.suffix == ".jsonl":
        Dataset.from_list([{**row, "score": i if i < 200 else i + 0.5} for i, row in enumerate(rows)]).to_json(path)
    else:
        pictures = [Pixels.new("RGB", (2, 2), (i % 256, 0, 0)) for i in range(ROWS)]
        Dataset.from_list([{**r, "picture": p} for r, p in zip(rows, pictures, strict=True)], FEATURES).to_parquet(
            path
        )
    return path


def embeddings_of(path, folder):
    revision = open_source(Job(source=str(path)), folder).revision
    return write_embeddings(folder, clustered(ROWS)[0], source=str(path), revision=revision, chunk_rows=100)


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    return embeddings_of(source_of(tmp_path / "rows.parquet"), tmp_path / "out")


def test_the_chosen_rows_of_the_source_are_a_dataset_with_its_features(out, tmp_path, monkeypatch):
    monkeypatch.setattr("builders.curate.chosen.BATCH_ROWS", 7)
    monkeypatch.setattr("builders.curate.chosen.PART_BYTES", 2000)
    to = tmp_path / "subset"
    said = run("sample", out, "--budget", 60, "--out", tmp_path / "rows.npy", "--to", to)
    assert said.splitlines()[-1] == f'load_dataset("{to}", split="train")'
    found = load_dataset(str(to), split="train", cache_dir=str(tmp_path / "hf"))
    indices = np.load(tmp_path / "rows.npy")
    assert found.features == Features({"index": Value("int64"), **FEATURES})
    assert found["index"] == indices.tolist()
    assert [r["content"] for m in found["messages"] for r in m] == [f"say {i}" for i in indices for _ in range(i % 3)]
    assert all(row["picture"].getpixel((0, 0))[0] == row["index"] % 256 for row in found)
    files = sorted(to.rglob("*.parquet"))
    ends = [[int(n) for n in file.stem.split("-")] for file in files]
    assert len(files) > 2 and ends[0][0] == 0 and ends[-1][1] == 60 and all(a[1] == b[0] for a, b in pairwise(ends))
    compressed = pq.read_metadata(files[0]).row_group(0)
    assert {compressed.column(i).compression for i in range(compressed.num_columns)} == {"ZSTD"}
    card = (to / "README.md").read_text()
    assert "| 60 of 300 rows | coverage radius" in card and "| by | density |" in card

    run("sample", out, "--budget", 20, "--by", "uniform", "--to", to)  # in the place of the older one
    assert len(load_dataset(str(to), split="train", cache_dir=str(tmp_path / "hf2"))) == 20
    assert (to / "README.md").read_text().count("# A subset of") == 1


def test_lines_of_json_have_the_types_of_all_rows(tmp_path):
    out = embeddings_of(source_of(tmp_path / "rows.jsonl"), tmp_path / "out")
    run("sample", out, "--budget", 200, "--to", tmp_path / "subset")
    found = load_dataset(str(tmp_path / "subset"), split="train", cache_dir=str(tmp_path / "hf"))
    assert found["score"] == [i if i < 200 else i + 0.5 for i in found["index"]]


def test_on_the_hub(out, tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub)
        HfApi().create_repo("tester/x", repo_type="dataset")
        HfApi().upload_folder(repo_id="tester/x", folder_path=out, repo_type="dataset")
        run("sample", "tester/x", "--budget", 30, "--to", "tester/few", "--public")
        assert not HfApi().dataset_info("tester/few").private
        assert DatasetCard.load("tester/few").data.to_dict()["configs"][0]["config_name"] == "default"
        copy = snapshot_download("tester/few", repo_type="dataset", local_dir=tmp_path / "few")
        found = load_dataset(copy, split="train", cache_dir=str(tmp_path / "hf"))
        assert len(found) == 30 and found["id"] == [f"row-{i}" for i in found["index"]]
        assert "holds data of something else" in run("sample", "tester/x", "--budget", 9, "--to", "tester/x", code=2)


def test_what_cannot_be_is_one_line(out, tmp_path):
    before = sorted(out.rglob("*"))
    for command in ("sample", "--budget", 9), ("map", "--method", "pca", "--no-png", "--no-text"):
        said = run(command[0], out, *command[1:], "--to", out, code=2)
        assert said.splitlines()[-1].endswith("it holds data of something else: give a new dataset or folder")
    assert sorted(out.rglob("*")) == before
    source_of(tmp_path / "rows.parquet").write_bytes((next(out.rglob("*.parquet"))).read_bytes())
    assert "and the dataset was made of sha256:" in run("sample", out, "--budget", 9, "--to", tmp_path / "x", code=2)
    assert not (tmp_path / "x").exists()
