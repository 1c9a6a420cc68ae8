"""Counts that units add up: python -m pytest tests/test_tally.py."""

import json

import numpy as np
import pytest

from builders.tally import MAX_SOURCES, Tally, binned, by_source


def added(*parts, **options):
    tally = Tally(**options)
    for part in parts:
        tally.add(json.loads(json.dumps(binned(part, tally.per_octave))))
    return tally


def test_units_add_up_to_what_all_values_give():
    values = np.random.default_rng(0).lognormal(5, 1, 4000).astype(np.int32) + 1
    whole, parts = added(values), added(*np.split(values, [10, 500, 3999]))
    assert parts.counts == whole.counts and parts.most == whole.most == values.max()
    assert sum(one.number for one in whole.bins()) == parts.num_values == 4000
    for q in (0.05, 0.5, 0.95):
        assert whole.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.1)


def test_every_whole_number_is_in_one_bin_and_small_ones_have_their_own():
    numbers = np.arange(1, 5001)
    tally = added(numbers)
    bins = tally.bins()
    assert [(one.low, one.high) for one in bins[:7]] == [(n, n) for n in range(1, 8)]
    assert all(one.number == one.high - one.low + 1 for one in bins)
    assert [one.low for one in bins[1:]] == [one.high + 1 for one in bins[:-1]]
    assert bins[-1].high == tally.most == 5000


def test_no_quantile_lies_beyond_the_greatest_value():
    assert added(np.full(10, 256)).quantile(0.99) == 256


def test_norms_have_bins_of_one_percent():
    tally = added(np.array([0.0, 5.6, 5.65, 6.2]), is_whole=False, per_octave=64)
    assert tally.quantile(0.5) == pytest.approx(5.6, rel=0.011)
    assert tally.quantile(1) == pytest.approx(6.2, rel=0.011)


def test_nothing_has_no_bins():
    assert binned(np.zeros(0)) == {} and Tally().bins() == [] and np.isnan(Tally().quantile(0.5))


def test_rows_by_source():
    assert by_source(["a", "b", None, "a"], [1, 2, 3, 4]) == {"a": [2, 5], "b": [1, 2]}
    many = [str(i) for i in range(MAX_SOURCES + 1)]
    assert by_source(many[:-1], [1] * MAX_SOURCES) is not None
    assert by_source(many, [1] * len(many)) is None, "a column that is an id is no source"
