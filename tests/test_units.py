"""Units: python -m pytest tests/test_units.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.units import UNITS_PER_FOLDER, Unit, Units

SIZES = st.tuples(st.integers(0, 5000), st.integers(1, 700))


@given(SIZES)
def test_units_cover_every_row_once_in_order(size):
    units = Units(*size)
    assert [row for unit in units for row in range(unit.start, unit.stop)] == list(range(size[0]))
    assert len(list(units)) == len(units)
    assert all(0 < unit.num_rows <= size[1] for unit in units)
    assert [unit.number for unit in units] == list(range(len(units)))


@given(SIZES)
def test_a_path_leads_back_to_its_unit(size):
    units = Units(*size)
    assert [units.at(unit.path("data", "train")) for unit in units] == list(units)


def test_the_path_of_a_unit_is_a_function_of_its_rows():
    assert Unit(0, 0, 500).path("data", "train") == "data/train/0000/000000000000-000000000500.parquet"
    assert Unit(12_345, 7, 9).path("x", "test") == "x/test/0012/000000000007-000000000009.parquet"


def test_a_folder_holds_at_most_a_thousand_chunks():
    folders = [unit.path("data", "train").split("/")[2] for unit in Units(2500, 1)]
    assert max(folders.count(name) for name in set(folders)) == UNITS_PER_FOLDER


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "data/train/0000/000000000000-000000000099.parquet",  # of another chunk_rows
        "data/train/0000/000000000050-000000000150.parquet",
        "data/train/0000/000000000200-000000000300.parquet",  # past the end
        "data/train/0000/000000000200-000000000250.parquet.tmp",
    ],
)
def test_a_file_of_another_plan_is_no_unit(path):
    assert Units(250, 100).at(path) is None


def test_the_last_unit_is_as_short_as_the_rest():
    assert Units(250, 100).at("000000000200-000000000250.parquet") == Unit(2, 200, 250)


def test_there_is_no_unit_past_the_end_nor_before_the_beginning():
    for number in (3, -1):
        with pytest.raises(IndexError, match="of 3"):
            Units(250, 100)[number]
