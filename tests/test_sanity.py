"""What is wrong with vectors shows in figures: python -m pytest tests/test_sanity.py."""

import numpy as np

from builders.curate.sanity import equal_texts, sanity
from builders.curate.vectors import open_dataset
from tests.embeddings_folder import write_embeddings


def test_good_vectors_are_told_from_bad_ones():
    draw = np.random.default_rng(0)
    good = draw.standard_normal((3000, 40)).astype(np.float32)
    good /= np.linalg.norm(good, axis=1, keepdims=True)
    pairs = np.column_stack([np.arange(0, 1000, 2), np.arange(1, 1000, 2)])
    good[1:1000:2] = good[0:1000:2] + 0.01 * draw.standard_normal((500, 40))
    found = sanity(good, pairs)
    assert abs(found.anisotropy) < 0.01 and found.close > 0.95
    assert found.duplicates == 0 and found.flat == () and found.not_finite == 0
    assert not [line for line in found.lines() if line.startswith("warning")]

    bad = good + 0.5  # all point one way
    bad[:, 7] = 0.3
    bad[2000:2300] = bad[0]
    bad[5, 3] = np.inf
    found = sanity(bad)
    assert found.anisotropy > 0.8 and found.not_finite == 1
    assert round(found.duplicates, 3) == 0.1
    assert 7 in found.flat
    assert len([line for line in found.lines() if line.startswith("warning")]) == 2
    apart = np.array([[i, (good[1000:] @ good[i]).argmin() + 1000] for i in range(100)])
    assert "no closer than random" in " ".join(sanity(good, apart).lines())


def test_records_of_equal_text_are_known_to_be_close(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    vectors[40] = vectors[5]
    vectors[59] = vectors[5]
    pairs = equal_texts(open_dataset(str(write_embeddings(tmp_path / "out", vectors, chunk_rows=25))))
    assert pairs.tolist() == [[5, 40], [40, 59]]
    assert round(sanity(vectors, pairs).close, 3) == 1
