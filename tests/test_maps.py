"""Maps: components, points, clusters with names, and what becomes of them: python -m pytest tests/test_maps.py."""

import hashlib
import json
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from datasets import load_dataset
from huggingface_hub import HfApi
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.metrics import adjusted_rand_score

from builders.curate.clusters import assign, far_out, find_clusters, name_clusters
from builders.curate.pca import PCA
from builders.curate.projection import Landmarks, choose_rows, lay_out, place
from extract.cli import main
from tests.embeddings_folder import write_embeddings
from tests.hubserver import HubServer
from tests.runs import use_hub

TOPICS = (
    "prime number factor",
    "onion soup recipe",
    "bird wing feather",
    "planet orbit star",
    "violin string concert",
)
ROWS, DIMS = 600, 24
COLUMNS = "--x projection_x --y projection_y --neighbors neighbors"
WORDS = [TOPICS[i % 5].split() for i in range(ROWS)]


def planted(rows=ROWS, dims=DIMS, seed=0):
    """Vectors of length 1 in five clusters, and which one each is of: row i of cluster i % 5."""
    draw = np.random.default_rng(seed)
    centres = 1.5 * draw.standard_normal((5, dims))
    vectors = (centres[np.arange(rows) % 5] + 0.35 * draw.standard_normal((rows, dims))).astype(np.float32)
    vectors[7] = -vectors[7] * draw.permutation(np.linspace(-1, 1, dims)).astype(
        np.float32
    )  # one that is near nothing
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.arange(rows) % 5


VECTORS, PLANTED = planted()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = [f"the {w[i % 3]} and a {w[(i + 1) % 3]} <script>alert({i})</script>" for i, w in enumerate(WORDS)]
    sources = [("a/one", "two")[i % 2] for i in range(ROWS)]
    where = tmp_path_factory.mktemp("maps") / "out"
    return write_embeddings(where, VECTORS, sources=sources, texts=texts, chunk_rows=150)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path_factory.getbasetemp() / "map-cache"))


def run(*arguments, code=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_components_of_blocks_are_those_of_all_rows_at_once():
    vectors = np.random.default_rng(1).standard_normal((500, 12)).astype(np.float32) @ np.diag(np.arange(1, 13)) + 40
    ours, theirs = PCA.fit(np.array_split(vectors.astype(np.float32), 7)), SklearnPCA().fit(vectors)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, atol=1e-6)
    assert ours.explained.sum() == pytest.approx(1) and ours.dims_for(1.0) == 12
    shares = np.cumsum(theirs.explained_variance_ratio_)
    assert shares[ours.dims_for(0.8) - 1] >= 0.8 > shares[ours.dims_for(0.8) - 2]
    found = ours.transform(vectors, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(theirs.transform(vectors)[:, :3]), atol=1e-2)


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_planted_clusters_are_found_in_some_rows_and_given_to_all(method):
    chosen = choose_rows(ROWS, 300, seed=1)
    found = find_clusters(VECTORS[chosen], method, 5, seed=0)
    everywhere = np.concatenate([*assign(np.array_split(VECTORS, 4), found)])
    assert found.number == 5 and adjusted_rand_score(PLANTED, everywhere) > 0.98
    np.testing.assert_array_equal(everywhere[chosen], found.labels)
    sizes = np.bincount(found.labels[found.labels >= 0])
    assert sizes.tolist() == sorted(sizes, reverse=True)


def test_clusters_are_named_by_words_that_others_lack():
    texts = {c: [f"the {TOPICS[c]} is here" for _ in range(4)] for c in range(4)}
    texts |= {4: ["the and of"], 5: [f"the {TOPICS[0]} is here"]}
    names = name_clusters(texts, 7)
    for cluster in range(4):
        assert set(names[cluster].replace(",", "").split()) == set(TOPICS[cluster].split())
    assert names[4] == "cluster 4" and names[6] == "cluster 6" and len(set(names)) == 7


def test_rows_beside_the_landmarks_are_placed_where_their_cluster_is():
    chosen = choose_rows(ROWS, 200, seed=0)
    points = np.stack([PLANTED[chosen] * 10.0, np.arange(len(chosen)) * 0.001], 1).astype(np.float32)
    placed = np.concatenate([*place(np.array_split(VECTORS, 3), Landmarks(chosen, VECTORS[chosen], points))])
    np.testing.assert_array_equal(placed[chosen], points)
    assert (np.abs(placed[:, 0] - PLANTED * 10) < 1).mean() > 0.99


@pytest.mark.slow
def test_umap_keeps_planted_clusters_apart_and_is_one_map_for_one_seed():
    pytest.importorskip("umap")
    dense = PCA.fit([VECTORS]).transform(VECTORS, 10)
    points = lay_out(dense, 2, "umap", seed=3)
    np.testing.assert_array_equal(points, lay_out(dense, 2, "umap", seed=3))
    near = np.argsort(((points[:, None] - points[None]) ** 2).sum(-1), axis=1)[:, 1:11]
    assert (PLANTED[near] == PLANTED[:, None]).mean() > 0.97
    assert lay_out(dense, 3, "umap", seed=3).shape == (ROWS, 3)


def test_outliers_are_beyond_the_fence_and_copies_are_none():
    distances = np.concatenate([np.linspace(0.1, 0.2, 100), [0.9], np.zeros(50)]).astype(np.float32)
    is_far, fence = far_out(distances)
    assert np.flatnonzero(is_far).tolist() == [100] and 0.2 < fence < 0.3
    assert not far_out(np.zeros(5))[0].any()


def check_map(rows):
    """A configuration as `load_dataset` gives it: what Embedding Atlas takes, in the order of the dataset."""
    assert rows["index"].tolist() == list(range(ROWS))
    assert adjusted_rand_score(PLANTED, rows["cluster"]) > 0.97
    cosines = VECTORS @ VECTORS.T
    np.fill_diagonal(cosines, -1)
    expected = np.argsort(-cosines, axis=1)[:, :10]
    for row in range(ROWS):
        near = rows["neighbors"][row]
        assert set(near["ids"]) == set(expected[row])
        np.testing.assert_allclose(near["distances"], 1 - cosines[row, near["ids"]], atol=1e-5)
    assert rows["outlier"][7] and np.argmax(rows["knn_distance"]) == 7
    for topic in range(5):
        name = rows["cluster_name"][np.flatnonzero(topic == PLANTED)[5]]
        assert set(name.replace(",", "").split()) <= {*TOPICS[topic].split(), "script", "alert"}


def test_a_map_becomes_a_configuration_of_the_folder_with_its_card(folder, tmp_path):
    before = {p: p.read_bytes() for p in (folder / "data").rglob("*.parquet")}
    page = tmp_path / "map.html"
    out = run("map", folder, "--method", "pca", "--num-clusters", 5, "--dims", 6, "--html", page)
    assert "complete: 600 rows" in out and "exact, recall 1.000" in out and "farthest" in out and "row 7:" in out
    rows = load_dataset(str(folder), "projection", split="train", cache_dir=str(tmp_path)).with_format("numpy")[:]
    check_map(rows)
    assert rows["text"][3].startswith("the ") and rows["dataset_source"][1] == "two" and rows["id"][9] == "row-9"
    reduced = load_dataset(str(folder), "pca-6", split="train", cache_dir=str(tmp_path)).with_format("numpy")[:]
    scores = SklearnPCA(6).fit_transform(VECTORS.astype(np.float64))
    np.testing.assert_allclose(np.abs(reduced["embedding"]), np.abs(scores), atol=1e-4)
    readme = (folder / "README.md").read_text()
    assert "## Map (`projection`)" in readme and "variance explained" in readme
    for name in ("clusters", "sources"):
        assert f"_stillroom/projection/{name}.png" in readme
        assert (folder / f"_stillroom/projection/{name}.png").read_bytes().startswith(b"\x89PNG")
    configs = yaml.safe_load(readme.split("---")[1])["configs"]
    assert [c["config_name"] for c in configs] == ["default", "projection", "pca-6"] and configs[0]["default"]
    assert {p: p.read_bytes() for p in (folder / "data").rglob("*.parquet")} == before
    assert len(load_dataset(str(folder), split="train", cache_dir=str(tmp_path))) == ROWS
    html = page.read_text()
    assert (
        "<script>alert(" not in html and "default-src 'none'" in html and "http" not in html.replace("http-equiv", "")
    )


def test_a_second_map_takes_the_place_of_the_first(folder, tmp_path):
    run("map", folder, "--method", "pca", "--num-clusters", 3, "--no-text", "--no-png")
    readme = (folder / "README.md").read_text()
    assert readme.count("## Map (`projection`)") == 1 and "3 by kmeans" in readme
    assert len(list((folder / "projection").rglob("*.parquet"))) == 1
    assert "text" not in pq.read_schema(next((folder / "projection").rglob("*.parquet"))).names


def test_embedding_atlas_gets_rows_whose_neighbours_are_row_numbers(folder):
    """What its CLI does (embedding_atlas 0.26, cli.py): it concatenates the tables, numbers the rows, keeps the columns."""
    out = run("map", folder, "--method", "pca", "--no-png")
    words = out.splitlines()[-1].split()
    assert words[0] == "embedding-atlas" and " ".join(words[2:]) == f"{COLUMNS} --text text"
    frame = pd.concat([pd.read_parquet(p) for p in sorted(folder.glob("projection/train/*/*.parquet"))])
    assert frame["projection_x"].notna().all() and frame["projection_y"].dtype == np.float32
    assert max(n["ids"].max() for n in frame["neighbors"]) < len(frame) == ROWS
    assert {frozenset(n) for n in frame["neighbors"]} == {frozenset(["ids", "distances"])}


def test_the_real_embedding_atlas_loads_it_without_computing(folder, tmp_path):
    pytest.importorskip("embedding_atlas", reason="pip install embedding-atlas")
    from embedding_atlas.cli import main as atlas

    words = run("map", folder, "--method", "pca", "--no-png").splitlines()[-1].split()[2:]
    files = sorted(map(str, folder.glob("projection/train/*/*.parquet")))
    done = CliRunner().invoke(atlas, [*files, *words, "--export-application", str(tmp_path / "app")])
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "app" / "data" / "metadata.json").read_text())["props"]["data"]
    assert said["projection"] == {"x": "projection_x", "y": "projection_y"} and said["neighbors"] == "neighbors"


def test_a_hub_dataset_gets_its_map_in_one_commit_or_in_a_dataset_of_its_own(folder, tmp_path, monkeypatch):
    def load(name, *config):
        where = HfApi().snapshot_download(name, repo_type="dataset", local_dir=tmp_path / name)
        return load_dataset(where, *config, split="train", cache_dir=str(tmp_path)).with_format("numpy")[:]

    with HubServer(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub)
        api, kind = HfApi(), {"repo_type": "dataset"}
        api.create_repo("user/vectors", **kind)
        new = ["projection/*", "pca*"]
        api.upload_folder(repo_id="user/vectors", folder_path=folder, ignore_patterns=new, **kind)
        commits = len(api.list_repo_commits("user/vectors", **kind))
        run("map", "user/vectors", "--method", "pca", "--num-clusters", 5)
        assert len(api.list_repo_commits("user/vectors", **kind)) == commits + 1
        check_map(load("user/vectors", "projection"))
        words = ("--method", "pca", "--num-clusters", 5, "--no-text", "--no-png")
        out = run("map", "user/vectors", *words, "--to", "user/vectors-map")
        assert f"embedding-atlas user/vectors-map --split train {COLUMNS}" in out
        assert len(api.list_repo_commits("user/vectors", **kind)) == commits + 1
        assert load("user/vectors-map")["projection_x"].shape == (ROWS,)


def test_a_dataset_that_still_grows_says_so_on_its_map(tmp_path):
    folder = write_embeddings(tmp_path / "out", VECTORS, chunk_rows=100, units=3)
    out = run("map", folder, "--method", "pca", "--no-png", "--no-text", "--num-clusters", 3)
    assert "still being built: 300 of 600 rows (50.0%)" in out
    assert "still being built: 300 of 600 rows" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--no-push",), "--no-push leaves nothing to write: give --html FILE"),
        (("--dims", 25, "--no-png"), "--dims 25: the vectors have 24 dimensions"),
        (("--column", "embedding_think"), "has no vectors 'embedding_think'"),
        (("--method", "pca", "--no-push", "--html", "/nowhere/x.html"), "--html /nowhere/x.html: No such file"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(folder, words, problem):
    before = hashlib.sha256((folder / "README.md").read_bytes()).digest()
    out = run("map", folder, *words, code=2)
    assert problem in out.splitlines()[-1]
    assert hashlib.sha256((folder / "README.md").read_bytes()).digest() == before


def test_a_package_that_is_missing_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    out = run("map", folder, "--no-png", code=2)
    assert "pip install 'stillroom[viz]', or --method pca" in out.splitlines()[-1]
