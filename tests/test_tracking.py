"""Experiment trackers: python -m pytest tests/test_tracking.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class

from builders.job import Job
from builders.options import ConfigError
from extract.tracking import Tracker, alone, check_tracker
from tests.runs import CHECKOUT, MINILM, Bench

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
TORCHRUN += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]


class LineTracker(GeneralTracker):
    """A tracker that writes lines of JSON; given to a run by this file as a program."""

    name, requires_logging_directory, tracker = "lines", True, None

    def __init__(self, project, folder, **options):
        super().__init__()
        Path(folder).mkdir(parents=True)
        self.path = Path(folder) / f"{project}.jsonl"

    def store_init_configuration(self, values):
        self._write({"config": values})

    def log(self, values, step=None, **options):
        self._write({"step": step, **values})

    def finish(self):
        self._write({"end": True})

    def _write(self, line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def lines():
    register_tracker_class(LineTracker)
    yield
    del LOGGER_TYPE_TO_CLASS["lines"]


def read(folder: Path) -> list[dict]:
    (path,) = folder.rglob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_worker_tells_the_tracker_of_all(tmp_path, chat_parquet, workers):
    bench = Bench(tmp_path, options={"HF_TOKEN": "hf_secret", "PYTHONPATH": str(CHECKOUT)})
    launcher = TORCHRUN if workers > 1 else []
    job = ["--source", chat_parquet, "--model", MINILM, "--engine", "fake", "--chunk-rows", "20", "--output", "./out"]
    command = [sys.executable, *launcher, __file__, *job, "--resume", "--tracker", "lines", "--log-format", "json"]
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=bench.env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and "lines has this run as project out in" in done.stderr, done.stderr
    config, *told, end = read(bench.cache / "trackers")
    assert config["config"]["output"] == "./out" and config["config"]["max_length"] == 256 and end == {"end": True}
    assert (told[-1]["rows"], told[-1]["units_done"], told[-1]["skipped"], told[-1]["pending"]) == (60, 3, 0, 0)
    assert told[-1]["tokens"] > 0 and told[-1]["tokens_per_second"] > 0
    assert "hf_secret" not in json.dumps([config, *told]) + done.stderr


def test_a_tracker_that_breaks_is_given_up_and_the_run_goes_on(lines, tmp_path, caplog):
    tracker = Tracker("lines", Job(output="user/out"), tmp_path)
    tracker.log({"rows": 5, "state": "running", "seconds_left": None})
    tracker.accelerator.trackers[0].path = tmp_path
    for _ in range(3):
        tracker.log({"rows": 6})
    tracker.close()
    assert read(tmp_path)[1:] == [{"step": 0, "rows": 5}]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "--tracker lines is given up: [Errno 21]" in warning


def test_one_that_refuses_to_begin_is_one_line(lines, tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("log in\nfirst")

    monkeypatch.setattr(LineTracker, "start", refuse)
    with pytest.raises(ConfigError, match="--tracker lines: log in first"):
        Tracker("lines", Job(output="./out"), tmp_path)


def test_names_that_accelerate_does_not_know_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"--tracker is 'wandbb': accelerate has .*tensorboard.*wandb"):
        check_tracker("wandbb")
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(ConfigError, match="--tracker comet_ml: it is not installed: pip install comet-ml"):
        check_tracker("comet_ml")


def test_the_launcher_is_hidden_for_a_moment(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with alone():
        assert "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" not in os.environ
    assert os.environ["WORLD_SIZE"] == "2" and os.environ["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="pip install tensorboard")
def test_tensorboard_shows_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker("tensorboard", Job(output="./out", limit=7), tmp_path)
    tracker.log({"rows": 5, "tokens_per_second": 1.5})
    tracker.close()
    (folder,) = tmp_path.glob("*/out")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.value for event in events.Scalars("rows")] == [5]
    assert any("limit: 7" in path.read_text() for path in folder.rglob("hparams.yml"))


if __name__ == "__main__":
    from extract.cli import run_command

    register_tracker_class(LineTracker)
    run_command()
