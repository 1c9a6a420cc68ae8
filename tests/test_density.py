"""Density and the weights that even it out: python -m pytest tests/test_density.py."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import load_dataset
from huggingface_hub import DatasetCard, HfApi

from builders.curate.density import density, inverse_weights
from builders.curate.neighbors import nearest, unit
from builders.curate.sketch import Sketch, merge
from extract.cli import main
from tests.embeddings_folder import write_embeddings
from tests.hubserver import HubServer
from tests.runs import MINILM, Bench, use_hub


def clustered(num, dimension=32, clusters=40, seed=0):
    """Vectors in clusters of very different sizes, and which cluster each is of."""
    draw = np.random.default_rng(seed)
    centres = unit(draw.standard_normal((clusters, dimension)))
    shares = 1 / np.arange(1, clusters + 1)
    which = draw.choice(clusters, num, p=shares / shares.sum())
    return unit(centres[which] + 0.1 * draw.standard_normal((num, dimension))), which


def brute_force(vectors, k):
    """Mean distances and neighbours by numpy alone, in float64."""
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    cosines = wide @ wide.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)[:, :k]
    return (1 - np.take_along_axis(cosines, order, axis=1)).mean(axis=1), order


def run(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def vectors():
    return clustered(5000, 64)[0]


def test_exact_density_is_that_of_brute_force(vectors):
    found = nearest(vectors, 10, method="exact")
    result = density(found)
    distances, order = brute_force(vectors, 10)
    assert np.abs(result.distances - distances).max() < 1e-6
    assert (np.sort(found.positions) == np.sort(order)).all(axis=1).mean() > 0.999  # float32 decides near ties
    raised = np.maximum(distances, np.quantile(distances, 0.01))
    assert np.allclose(result.weights, raised / raised.sum(), rtol=1e-4)
    assert result.weights.sum() == pytest.approx(1, abs=1e-12)


def test_lengths_do_not_matter_and_blocks_do_not_show(vectors, monkeypatch):
    scaled = vectors[:2000] * np.random.default_rng(1).uniform(0.1, 9, (2000, 1)).astype(np.float32)
    monkeypatch.setattr("builders.curate.neighbors.BLOCK_BYTES", 300 * 64 * 4)
    found = density(nearest(scaled, 10, method="exact"))
    assert np.abs(found.distances - brute_force(vectors[:2000], 10)[0]).max() < 1e-6


@pytest.mark.parametrize(("method", "most"), [("cells", "x256"), ("hnsw", "x512")])
def test_what_is_approximate_measures_its_own_recall(vectors, method, most):
    found = nearest(vectors, 10, method=method, seed=3)
    true = brute_force(vectors, 10)[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.positions, true, strict=True)])
    assert found.method.startswith(f"{method}:") and not found.method.endswith(most)
    assert found.recall >= 0.95
    assert abs(found.recall - recall) < 0.02  # 4 standard errors of 400 rows
    assert (found.positions != np.arange(5000)[:, None]).all()


def test_duplicates_do_not_blow_weights_up():
    vectors, _ = clustered(3000)
    vectors[:600] = vectors[0]  # a fifth is one text
    for method in ("exact", "cells", "hnsw"):
        result = density(nearest(vectors, 10, method=method))
        scaled = result.weights * 3000
        assert np.isfinite(scaled).all() and scaled.min() > 0
        assert scaled.max() < 10
        assert result.num_duplicates >= 590  # cells may put none asunder: all are equal
        assert scaled[:600].max() <= np.quantile(scaled[600:], 0.02)
    weights, floor = inverse_weights(np.zeros(5, np.float32))
    assert floor == 1 and (weights == 0.2).all()


def test_a_sketch_ranks_as_neighbours_do_and_adds_up(vectors):
    whole, parts = Sketch.empty(64), [Sketch.empty(64) for _ in range(3)]
    whole.add(vectors)
    for part, rows in zip(parts, np.array_split(vectors, 3), strict=True):
        part.add(rows)
    merged = merge([Sketch.from_bytes(part.to_bytes()) for part in parts])
    assert (merged.counts == whole.counts).all() and merged.num_rows == 5000
    sketched = merged.density(vectors)

    def ranks(values):
        return np.argsort(np.argsort(values))

    angles = np.arccos(np.clip(vectors[:300].astype(np.float64) @ vectors.T, -1, 1))
    true = ((1 - angles / np.pi) ** 12).mean(axis=1)
    assert np.abs(sketched[:300] / true - 1).mean() < 0.1
    assert np.corrcoef(ranks(sketched[:300]), ranks(true))[0, 1] > 0.9
    assert merged.weights(sketched).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="do not add up"):
        merge([whole, Sketch.empty(64, seed=1)])


def test_the_command_stores_a_configuration_beside_the_data(vectors, tmp_path):
    folder = write_embeddings(tmp_path / "out", vectors[:3000])
    said = run("density", folder, "--save", tmp_path / "files")
    assert "complete: 3,000 rows" in said and "recall@10 1.000" in said
    rows = load_dataset(str(folder), "density", split="train", cache_dir=str(tmp_path / "hf")).with_format("numpy")[:]
    distances, order = brute_force(vectors[:3000], 10)
    assert (rows["index"] == np.arange(3000)).all() and rows["id"][7] == "row-7"
    assert np.abs(rows["knn_distance"] - distances).max() < 1e-6
    assert (np.sort(rows["neighbors"]) == np.sort(order)).mean() > 0.999
    assert rows["weight"].sum() == pytest.approx(1)
    assert len(load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "hf"))) == 3000

    saved = np.load(tmp_path / "files/density_weights.npy")
    assert saved.dtype == np.float64 and (saved.astype(np.float32) == rows["weight"]).all()
    assert json.loads((tmp_path / "files/ids.json").read_text())[5] == "row-5"
    about = json.loads((tmp_path / "files/metadata.json").read_text())
    assert (about["n"], about["dim"], about["dtype"], about["k"], about["recall"]) == (3000, 64, "float32", 10, 1.0)
    assert about["mean"] == pytest.approx(1)
    card = (folder / "README.md").read_text()
    run("density", folder, "--method", "sketch")
    again = (folder / "README.md").read_text()
    assert "cosine of random pairs" in card and "recall 1.000" in card
    assert card.count("## Density") == again.count("## Density") == 1 and "kernel_density" in again


def test_a_hub_dataset_that_still_grows(vectors, tmp_path, monkeypatch):
    write_embeddings(tmp_path / "out", vectors[:3000], chunk_rows=1000, units=2)
    with HubServer(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub)
        HfApi().create_repo("tester/x", repo_type="dataset")
        HfApi().upload_folder(repo_id="tester/x", folder_path=tmp_path / "out", repo_type="dataset")
        assert "still being built: 2,000 of 3,000 rows (66.7%)" in run("density", "tester/x")
        files = HfApi().list_repo_files("tester/x", repo_type="dataset")
        assert [f for f in files if f.startswith("density/")] == [
            "density/train/0000/000000000000-000000002000.parquet"
        ]
        commits = HfApi().list_repo_commits("tester/x", repo_type="dataset")
        assert commits[0].title == "density: 2,000 rows"
        run("density", "tester/x", "--no-commit")
        said = run("sample", "tester/x", "--budget", 50, "--out", tmp_path / "ids.txt")
        assert "still being built" in said and len((tmp_path / "ids.txt").read_text().split()) == 50
        assert len(HfApi().list_repo_commits("tester/x", repo_type="dataset")) == len(commits)


@pytest.mark.slow
def test_a_real_output_is_verified_and_keeps_its_section_when_its_run_writes_the_card_again(chat_parquet, tmp_path):
    bench, out = Bench(tmp_path), tmp_path / "out"
    job = [
        "--engine",
        "fake",
        "--model",
        MINILM,
        "--source",
        str(chat_parquet),
        "--output",
        "./out",
        "--chunk-rows",
        "20",
    ]
    bench.run(*job, "--resume")
    assert "complete: 60 rows" in run("density", out)
    assert "nothing is missing, doubled or damaged" in run("verify", out)
    (out / "README.md").write_text((out / "README.md").read_text().replace("**Complete**", "**Old**"))
    (out / "_stillroom/ledger.jsonl").unlink()
    next(out.glob("data/train/*/*.parquet")).unlink()
    bench.run(*job, "--resume")
    card = (out / "README.md").read_text()
    assert "**Old**" not in card and card.count("## Density") == 1
    assert {c["config_name"] for c in DatasetCard(card).data.to_dict()["configs"]} >= {"default", "density"}


def test_what_cannot_be_is_one_line(tmp_path, monkeypatch):
    assert run("density", tmp_path, code=2).startswith(f"stillroom: {tmp_path}: no dataset of stillroom here")
    folder = write_embeddings(tmp_path / "out", np.ones((1, 4), np.float32))
    assert "neighbours need two" in run("density", folder, code=2)
    monkeypatch.setitem(sys.modules, "faiss", None)
    folder = write_embeddings(tmp_path / "two", np.eye(2, dtype=np.float32))
    assert "pip install 'stillroom[curate]'" in run("density", folder, code=2)
    assert "by sketch" in run("density", folder, "--method", "sketch")
