"""The table of `make bench`: how a row is made, and that the command makes it: python -m pytest tests/test_bench.py."""

import json
import subprocess
import sys

import pytest

from benchmarks.bench import GROUPS
from benchmarks.scaling import worker_seconds
from benchmarks.table import HEADER, Row, from_dict, markdown
from tests.runs import CHECKOUT


def bench(*options, timeout=120):
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "bench.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_a_ratio_says_how_many_times_better_we_are_in_each_pair():
    assert Row("speed", "rows/s", [20, 30, 10], [10, 10, 10], "them").ratios == [2, 3, 1]
    assert Row("size", "bytes", [20, 30, 10], [10, 10, 10], "them", is_less=True).ratios == pytest.approx(
        [0.5, 1 / 3, 1]
    )


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (Row("speed", "rows/s", [20, 30, 10], [10, 10, 10], "them", goal=2.0), True),
        (Row("speed", "rows/s", [20, 30, 10], [10, 10, 10], "them", goal=2.1), False),
        (Row("size", "bytes", [20, 30, 10], [10, 10, 10], "them", goal=0.6, is_less=True), False),
        (Row("start", "s", [0.2, 0.2, 0.9], goal=0.3, is_less=True), True),
        (Row("start", "s", [0.2, 0.4, 0.4], goal=0.3, is_less=True), False),
        (Row("share", "of all", [0.9, 0.98, 0.99], goal=0.97), True),
        (Row("pace", "rows/s", [1.0]), None),
        (Row("vLLM", "", [], goal=1.0, note="not installed"), None),
    ],
)
def test_the_median_decides_whether_a_goal_is_reached(row, reached):
    assert row.is_reached is reached
    again = from_dict(json.loads(json.dumps(row.to_dict())))
    assert (again.cells(), again.is_reached) == (row.cells(), reached)


def test_the_table_has_a_line_for_each_row():
    rows = [
        Row("speed", "rows/s", [20, 30, 10], [10, 10, 10], "them", goal=2.0),
        Row("vLLM", "", [], note="not installed"),
    ]
    head, _, speed, absent = markdown(rows).splitlines()
    assert head.count("|") == speed.count("|") == absent.count("|") == len(HEADER) + 1
    assert "20 rows/s (10–30)" in speed
    assert "1.00 / 2.00 / 3.00" in speed
    assert "vLLM (not installed)" in absent


def test_the_command_measures_a_group_in_a_process_of_its_own(tmp_path):
    done = bench("--only", "codec", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    rows = [from_dict(value) for value in json.loads((tmp_path / "rows.json").read_text())]
    assert markdown(rows) in done.stdout
    assert all(len(row.ours) in (1, 3) and min(row.ours) > 0 for row in rows)
    assert any(len(row.ratios) == 3 for row in rows)


def test_a_group_that_fails_costs_its_own_rows_and_the_exit_code(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_BENCH_PATIENCE", "0.001")
    done = bench("--only", "chunks")
    assert done.returncode == 1
    assert "chunks (ran past 0 s)" in done.stdout


def test_all_groups_together_have_limits_that_a_person_waits_for():
    assert sum(seconds for _, _, seconds in GROUPS.values()) < 40 * 60


def test_a_worker_counts_from_its_first_batch_to_its_last(tmp_path):
    (tmp_path / "0.json").write_text(json.dumps([[10.0, 11.0], [11.0, 12.0]]))
    (tmp_path / "1.json").write_text(json.dumps([[11.0, 12.0], [13.0, 14.0]]))
    (tmp_path / "2.json").write_text("[]")  # came when nothing was left
    assert worker_seconds(tmp_path) == pytest.approx(2 + 3)
