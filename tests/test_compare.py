"""Agreement of two embeddings datasets over the same rows: python -m pytest tests/test_compare.py."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from builders.curate.agreement import agree, linear_cka
from extract.cli import main
from tests.embeddings_folder import write_embeddings
from tests.hubserver import HubServer
from tests.runs import use_hub

DRAW = np.random.default_rng(11)
ROWS, DIMS = 400, 20


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


A = unit(DRAW.standard_normal((ROWS, DIMS)))
TURN = np.linalg.qr(DRAW.standard_normal((DIMS, DIMS)))[0]


def hsic(k, m):
    """The unbiased estimate of Song et al., JMLR 2012, of Gram matrices without their diagonals."""
    n, ones = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def cka_by_definition(x, y):
    """Kornblith et al. 2019, with unbiased terms."""
    k, m = (v.astype(np.float64) @ v.T.astype(np.float64) for v in (x, y))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def overlap_by_brute_force(x, y, k):
    near = []
    for v in (x, y):
        products = v @ v.T
        np.fill_diagonal(products, -2)
        near.append(np.argsort(-products, axis=1)[:, :k])
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)])


def test_figures_are_those_of_their_definitions():
    b = unit(A + 0.7 * unit(DRAW.standard_normal((ROWS, DIMS))))
    found = agree("x", A, b)
    assert found.cosine[0] == pytest.approx((A * b).sum(1).mean(), abs=1e-5)
    assert found.cosine[1] == pytest.approx(np.quantile((A * b).sum(1), 0.05), abs=1e-5)
    assert found.cka == pytest.approx(cka_by_definition(A, b), abs=1e-9)
    assert found.overlap == pytest.approx(overlap_by_brute_force(A, b, 10), abs=1e-9)
    assert 0.1 < found.overlap < 0.9


def test_a_rotation_is_the_same_geometry_and_noise_is_none():
    turned = agree("x", A, (A @ TURN).astype(np.float32))
    assert turned.cka == pytest.approx(1, abs=1e-6) and turned.overlap > 0.99 and abs(turned.cosine[0]) < 0.5
    other = agree("x", A, unit(DRAW.standard_normal((ROWS, 7))))
    assert other.cosine is None and other.cka < 0.1 and other.overlap == pytest.approx(other.chance, abs=0.02)


def test_cka_is_not_fooled_by_a_mean_far_from_zero_nor_by_few_rows():
    x, y = A + 100, (A @ TURN[:, :9] - 50).astype(np.float32)
    assert linear_cka(x, y) == pytest.approx(cka_by_definition(A, A @ TURN[:, :9]), abs=1e-3)
    few = [unit(DRAW.standard_normal((60, 300))) for _ in range(2)]  # the plain CKA of these is 0.8
    assert abs(linear_cka(*few)) < 0.15


def run(*words, code=0):
    done = CliRunner().invoke(main, ["compare", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A, and its vectors turned but for the rows of source two; the second lacks the last 100 rows."""
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    sources = [("one", "two")[i % 4 == 0] for i in range(ROWS)]
    b = (A @ TURN).astype(np.float32)
    b[::4] = unit(DRAW.standard_normal((ROWS // 4, DIMS)))
    first = write_embeddings(tmp_path / "a", A, sources=sources, chunk_rows=100)
    return first, write_embeddings(tmp_path / "b", b, sources=sources, chunk_rows=100, units=3)


def test_the_command_compares_common_rows_and_each_source(folders):
    a, b = folders
    found = json.loads(run(a, b, "--json"))
    whole, one, two = found["groups"]
    assert (whole["name"], whole["num_rows"], one["name"], one["num_rows"]) == ("all", 300, "one", 225)
    assert one["cka"] > 0.999 and one["overlap"] > 0.99 and two["cka"] < 0.5 and two["overlap"] < 0.3
    assert one["cka"] > whole["cka"] > two["cka"]
    assert "still being built: 300 of 400 rows" in found["state"][str(b)]
    table = run(a, b)
    assert f"{b} is still being built: 300 of 400 rows (75.0%)" in table
    assert [line.split()[0] for line in table.splitlines()[3:]] == ["all", "one", "two"]


def test_hub_datasets_compare_as_their_folders_do(folders, tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub)
        for folder in folders:
            HfApi().create_repo(f"tester/{folder.name}", repo_type="dataset")
            HfApi().upload_folder(repo_id=f"tester/{folder.name}", folder_path=folder, repo_type="dataset")
        found = json.loads(run("tester/a", "tester/b", "--json"))
        assert found["groups"] == json.loads(run(*folders, "--json"))["groups"]
        assert found["state"]["tester/b"] == "still being built: 300 of 400 rows (75.0%)"
        assert json.loads(run("tester/a", folders[1], "--json"))["groups"] == found["groups"]
        assert "tester/none" in run("tester/a", "tester/none", code=2)


def test_what_cannot_be_compared_is_told_in_one_line(folders, tmp_path):
    a, b = folders
    assert "no dataset of stillroom here" in run(a, tmp_path, code=2)
    job = json.loads((b / "_stillroom/job.json").read_text())
    job["job"]["source"] = "./others.parquet"
    (b / "_stillroom/job.json").write_text(json.dumps(job))
    assert json.loads(run(a, b, "--json"))["groups"][0]["num_rows"] == 300  # by id, then
    assert "--column: give it once" in run(a, b, *["--column", "embedding"] * 3, code=2)
