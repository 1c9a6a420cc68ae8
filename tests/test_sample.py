"""Subsets, and how well they cover the whole: python -m pytest tests/test_sample.py."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from builders.curate.coverage import coverage
from builders.curate.density import density
from builders.curate.duplicates import without_duplicates
from builders.curate.neighbors import nearest
from builders.curate.sample import by_quota, by_weight, k_center, uniform
from tests.embeddings_folder import write_embeddings
from tests.test_density import clustered, run

CHI_SQUARE_9 = 27.9  # over it with probability 0.001 at 9 degrees of freedom; seeds are fixed


@pytest.fixture(scope="module")
def planted():
    """3,020 vectors in 34 clusters of 1,200 to 6, each in 12 directions of its own; and the cluster of each."""
    draw = np.random.default_rng(7)
    sizes = np.array([1200, 600, 300, 200] + [60] * 10 + [6] * 20)
    which = np.repeat(np.arange(34), sizes)
    centres, directions = draw.standard_normal((34, 32)), draw.standard_normal((34, 12, 32)) / np.sqrt(12)
    inside = np.einsum("nk,nkd->nd", draw.standard_normal((3020, 12)), directions[which])
    return (centres[which] + 0.3 * inside).astype(np.float32), which


def test_an_inverse_density_subset_covers_every_cluster_and_beats_random(planted):
    vectors, which = planted
    weights = density(nearest(vectors, 10)).weights
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    budget = len(vectors) // 5
    for seed in range(5):
        taken = by_weight(weights, budget, seed=seed)
        assert len(set(taken)) == budget
        mine, random = (coverage(vectors, rows) for rows in (taken, uniform(len(vectors), budget, seed=seed)))
        assert len(set(which[taken])) == 34
        assert mine.radius < random.radius and mine.mean < random.mean
        assert mine.novelsum > random.novelsum and mine.spread > random.spread


def test_novelsum_is_that_of_its_formula(planted):
    vectors, taken = planted[0], np.arange(0, 3020, 20)
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    novelty = []
    for row in taken:
        squared = np.sort(((wide - wide[row]) ** 2).sum(axis=1))[1:11]
        distances = np.sort(1 - wide[taken] @ wide[row])
        novelty.append(np.average(distances, weights=1 / np.arange(1, len(taken) + 1)) / np.sqrt(squared.mean()))
    assert coverage(vectors, taken).novelsum == pytest.approx(np.mean(novelty), rel=1e-3)


def test_draws_without_replacement_are_in_proportion():
    """The first of a draw is proportional to the weights, and the second to those left: chi-square at 0.001 each."""
    weights = np.arange(1, 11) / 55
    first = np.bincount([by_weight(weights, 1, seed=s)[0] for s in range(20_000)], minlength=10)
    assert ((first - 20_000 * weights) ** 2 / (20_000 * weights)).sum() < CHI_SQUARE_9
    pairs = np.concatenate([by_weight(weights, 2, seed=s) for s in range(20_000)])
    left = weights[None] / (1 - weights[:, None])
    np.fill_diagonal(left, 0)
    expected = 20_000 * (weights + weights @ left)
    # inclusion of two rows is negatively correlated: the statistic is smaller than chi-square, never larger
    assert ((np.bincount(pairs, minlength=10) - expected) ** 2 / expected).sum() < CHI_SQUARE_9
    weights[3] = 0
    assert 3 not in by_weight(weights, 9)
    with pytest.raises(ValueError, match="the budget is 10: there are 9 rows to take from"):
        by_weight(weights, 10)


def test_quotas_are_equal_and_small_sources_give_all():
    sources = ["a"] * 900 + ["b"] * 90 + ["c"] * 10
    taken = by_quota(sources, np.ones(1000), 100)
    assert np.bincount(np.unique(np.array(sources)[taken], return_inverse=True)[1]).tolist() == [45, 45, 10]
    assert len(by_quota(sources, np.ones(1000), 1000)) == 1000


def test_k_center_has_the_smallest_radius(planted):
    vectors, which = planted
    taken = k_center(vectors, 200)
    assert len(set(taken)) == 200 and len(set(which[taken])) == 34
    radii = [coverage(vectors, uniform(len(vectors), 200, seed=s)).radius for s in range(5)]
    assert coverage(vectors, taken).radius < min(radii) / 2


def test_of_what_is_nearly_equal_the_first_stays():
    vectors, _ = clustered(600, 64, clusters=300)
    vectors[100:200] = vectors[:100] + 1e-4
    stays = without_duplicates(nearest(vectors, 10), 0.99)
    wide = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.triu(wide @ wide.T >= 0.99, 1)
    kept = []
    for row in range(600):
        if not near[kept, row].any():
            kept.append(row)
    assert stays.tolist() == kept
    assert not set(range(100, 200)) & set(stays)

    angles = np.deg2rad([0, 6, 12, 18, 90])  # each is near the next alone: what goes takes nothing with it
    chain = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    assert without_duplicates(nearest(chain, 4), 0.99).tolist() == [0, 2, 4]


def test_the_command_writes_ids_indices_or_records(tmp_path, planted):
    vectors, _ = planted
    vectors = vectors[::3]
    sources = ["a" if i % 10 else "b" for i in range(len(vectors))]
    folder = write_embeddings(tmp_path / "out", vectors, sources=sources, chunk_rows=300)
    said = run("sample", folder, "--budget", 100, "--out", tmp_path / "ids.txt")
    assert "100 of" in said and "as many at random: coverage radius" in said
    ids = (tmp_path / "ids.txt").read_text().split()
    run("sample", folder, "--budget", 100, "--out", tmp_path / "rows.npy")
    run("density", folder)
    run(
        "sample", folder, "--budget", 100, "--out", tmp_path / "rows.parquet"
    )  # by the stored weights, which are the same
    indices = np.load(tmp_path / "rows.npy")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert ids == [f"row-{i}" for i in indices] == table["id"].to_pylist()
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), vectors[indices])

    run("sample", folder, "--budget", 60, "--by", "quota", "--out", tmp_path / "quota.npy")
    assert sum(sources[i] == "b" for i in np.load(tmp_path / "quota.npy")) == 30
    assert "semantic duplicates" in run("sample", folder, "--dedup", 0.95)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "--budget or --dedup"),
        (("--budget", 9999), "the budget is 9,999: there are 50 rows"),
        (("--budget", 5, "--by", "quota"), "has no column dataset_source"),
        (("--budget", 5, "--out", "x.csv"), "--out x.csv: a subset is written as .txt, .npy, .parquet"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, options, line):
    folder = write_embeddings(tmp_path / "out", clustered(50)[0])
    assert line in run("sample", folder, *options, code=2)
