"""The benchmark's day of commits: the promises of docs/commits.md, on its fake clock."""

import pytest

from benchmarks.commits import COMMITS_PER_HOUR, simulate


@pytest.mark.parametrize(
    ("workers", "jobs", "cut"),
    [(1, False, False), (64, False, False), (1024, False, False), (64, True, False), (64, True, True)],
)
def test_a_day(workers, jobs, cut):
    result = simulate(f"{workers} {jobs} {cut}", workers, jobs=jobs, cut=cut)
    assert result.most_per_hour <= 96 < COMMITS_PER_HOUR
    assert (result.limited, result.late) == (0, 0)
    assert result.most_calls < 1000
    assert result.median_seconds < (300 if jobs else 200)
