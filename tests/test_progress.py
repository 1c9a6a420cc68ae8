"""Progress of a run: python -m pytest tests/test_progress.py."""

import json
import logging

import numpy as np
import pytest

from builders.job import Job
from builders.row import RowError
from builders.units import Unit
from extract.progress import Progress
from extract.sample import Batch, Sample
from extract.summary import describe
from extract.vectors import VectorWork
from extract.world import World


class Store:
    """A launcher's key-value store, as far as posting goes."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)


@pytest.fixture
def make(tmp_path):
    def make(world=None, upload=None, num_done=1):
        return Progress(world or World(), 10, num_done, tmp_path / "status.json", upload)

    return make


def count(progress, rows=5):
    work = VectorWork(Unit(0, 0, rows), Job())
    work.skip(0, RowError("empty_text"))
    work.put([Sample(1, 0, [0] * 6)], np.ones((1, 2), np.float32), 8)
    progress.add_batch(Batch(work, [Sample(1, 0, [0] * 6)]), 8)
    progress.add_unit(work)


def test_a_status_sums_up_what_was_done(make):
    progress = make()
    count(progress)
    count(progress, rows=7)
    status = progress.status()
    assert {
        name: status[name] for name in ("state", "units", "units_done", "rows", "tokens", "skipped", "padding")
    } == {
        "state": "running",
        "units": 10,
        "units_done": 3,
        "rows": 12,
        "tokens": 12,
        "skipped": 2,
        "padding": 0.25,
    }
    assert status["seconds_left"] >= 0


def test_a_run_that_has_done_nothing_yet_has_a_status(make):
    assert make().status()["seconds_left"] is None
    assert make(num_done=0).status()["padding"] == 0


def test_the_status_file_is_whole_json_with_what_the_uploader_says(make, tmp_path):
    progress = make(upload=lambda: {"pending": 4, "commits_left": 90.0})
    progress.tick()
    assert json.loads((tmp_path / "status.json").read_text())["pending"] == 4
    progress.close("complete")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "complete"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_main_worker_sums_over_all(make, tmp_path):
    store = Store()
    main, other = (make(World(rank, 2, rank, store)) for rank in (0, 1))
    count(main)
    count(other)
    other.tick()
    assert not (tmp_path / "status.json").exists()  # the main worker's
    main.tick()
    assert json.loads((tmp_path / "status.json").read_text())["units_done"] == 3
    assert main.close("complete")["rows"] == 10


def test_it_posts_at_most_once_a_second_and_logs_a_line_where_there_is_no_terminal(make, caplog):
    progress = make()
    with caplog.at_level(logging.INFO):
        for _ in range(100):
            progress.tick()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("1 of 10 units, 0 rows")


def test_a_status_in_one_line():
    status = {"rows": 12_345, "tokens_per_second": 6_789.4, "seconds_left": 600.0, "pending": 2, "commits_left": 80}
    assert describe(status) == "12,345 rows, 6,789 tokens/s, 2 units to upload, 80 commits left this hour, 10 min left"
    assert (
        describe({"rows": 0, "tokens_per_second": 0.0, "seconds_left": None})
        == "0 rows, 0 tokens/s, 0 units to upload"
    )
