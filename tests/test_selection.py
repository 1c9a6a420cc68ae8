"""Which rows a job takes: python -m pytest tests/test_selection.py."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2

from builders.job import Job
from builders.options import ConfigError
from builders.row import Row
from builders.selection import hash_indices, select
from builders.source import Source, open_source

FALSE_ALARM = 1e-6  # of each chi-square test here


class Rows:
    """A file of rows that only know their source."""

    columns = ("dataset_source",)

    def __init__(self, names):
        self.names, self.num_rows = names, len(names)

    def read(self, positions, columns, offset):
        return (Row(offset + int(p), {"dataset_source": self.names[p]}) for p in positions)


def source_of(*files):
    return Source("rows", "sha256:0", [Rows(names) for names in files])


def chosen(job, source):
    selection = select(job, source)
    return selection.indices(0, selection.num_rows).tolist()


@pytest.mark.parametrize(("limit", "expected"), [(None, 7), (3, 3), (7, 7), (100, 7)])
def test_a_limit_takes_the_first_rows(limit, expected):
    assert chosen(Job(limit=limit), source_of("aaa", "bbbb")) == list(range(expected))


def test_each_source_gives_its_share_in_source_order():
    names = "a" * 500 + "b" * 30 + "c" * 3
    rows = chosen(Job(sample_per_source=10), source_of(names))
    assert Counter(names[i] for i in rows) == {"a": 10, "b": 10, "c": 3}
    assert rows == sorted(set(rows))


def test_the_split_into_files_does_not_matter():
    names = "abc" * 400
    whole, parts = source_of(names), source_of(names[:1], names[1:700], names[700:])
    job = Job(sample_per_source=20)
    assert chosen(job, whole) == chosen(job, parts)


def test_another_seed_is_another_draw_and_the_same_seed_the_same():
    source = source_of("a" * 5000)
    first, again, other = (set(chosen(Job(sample_per_source=500, seed=s), source)) for s in (1, 1, 2))
    assert first == again
    # hypergeometric: mean 50, standard deviation 6.4; outside 10..90 once in 10^9 draws
    assert 10 < len(first & other) < 90


def test_every_row_is_as_likely_as_any_other():
    """400 seeds draw 5 of 50 rows each; a row's count varies as 1 - 5/50 of a multinomial's, of mean 40."""
    source, counts = source_of("a" * 50), np.zeros(50)
    for seed in range(400):
        counts[chosen(Job(sample_per_source=5, seed=seed), source)] += 1
    statistic = ((counts - 40) ** 2 / 40).sum() / (1 - 5 / 50)
    assert chi2.ppf(FALSE_ALARM / 2, 49) < statistic < chi2.isf(FALSE_ALARM / 2, 49)


def test_a_large_source_is_thinned_on_the_way_without_a_bias():
    """60,000 rows pass the bound of 8 * 1,000 + 1,024 kept rows many times; the sample falls evenly on 20 parts."""
    counts, _ = np.histogram(chosen(Job(sample_per_source=1000), source_of("a" * 60_000)), 20, (0, 60_000))
    assert counts.sum() == 1000
    assert ((counts - 50) ** 2 / 50).sum() < chi2.isf(FALSE_ALARM, 19)


@pytest.mark.parametrize("seed", [0, -1, 2**80])
def test_hashes_are_uniform_for_any_seed(seed):
    hashes = hash_indices(np.arange(100_000), seed)
    counts = np.bincount((hashes >> np.uint64(56)).astype(int), minlength=256)
    expected = 100_000 / 256
    assert len(np.unique(hashes)) == 100_000
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(FALSE_ALARM, 255)


def test_a_sample_of_real_files(tmp_path, cache):
    table = pa.table({"dataset_source": ["x", None, "y"] * 50, "text": ["t"] * 150})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=40)
    job = Job(source=str(tmp_path / "rows.parquet"), sample_per_source=4)
    rows = chosen(job, open_source(job, cache))
    assert Counter(i % 3 for i in rows) == {0: 4, 1: 4, 2: 4}  # rows without a source are a source, too


def test_a_sample_needs_its_column():
    job = Job(sample_per_source=4, source_column="origin")
    with pytest.raises(
        ConfigError, match=r"needs column 'origin': rows has dataset_source\. Name it with --source-column"
    ):
        select(job, source_of("ab"))


def test_an_empty_source_gives_nothing():
    assert chosen(Job(sample_per_source=4), source_of("")) == []
    assert chosen(Job(), source_of("")) == []
