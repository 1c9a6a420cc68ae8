"""What an experiment tracker is told of a run, by accelerate's own trackers: the numbers of all workers, from the main one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builders.job import Job
from builders.options import ConfigError

logger = logging.getLogger(__name__)

PACKAGES = {"comet_ml": "comet-ml"}  # of trackers whose package has another name than they
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_")  # with these it would wait for all


def check_tracker(name: str) -> None:
    """Refuse a tracker that accelerate does not know, or whose package is not installed.

    Raises:
        ConfigError: with the names there are, or the command that brings it.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"--tracker is {name!r}: accelerate has {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        raise ConfigError(f"--tracker {name}: it is not installed: pip install {PACKAGES.get(name, name)}")


class Tracker:
    """One run of a tracker, in a project that has the output's name. Only the main worker may have one.

    Its options are the tracker's own variables, as WANDB_MODE. Nothing that it does ends a run once that has begun.
    """

    def __init__(self, name: str, job: Job, folder: Path) -> None:
        """Begin. `folder` is for trackers that write files, as tensorboard.

        Raises:
            ConfigError: the tracker refuses, as without a login.
        """
        from accelerate import Accelerator

        self.name, self.is_lost = name, False
        self.started = time.monotonic()
        project = str(job.output).rstrip("/").rsplit("/", 1)[-1]
        try:
            with alone():
                self.accelerator = Accelerator(
                    cpu=True, log_with=name, project_dir=folder / time.strftime("%Y%m%d-%H%M%S")
                )
                self.accelerator.init_trackers(project, config=dict(_plain(job)))
        except Exception as error:  # each library has its own
            raise ConfigError(f"--tracker {name}: {' '.join(str(error).split())}") from error
        where = (
            f" in {folder}" if any(tracker.requires_logging_directory for tracker in self.accelerator.trackers) else ""
        )
        logger.info("%s has this run as project %s%s", name, project, where)

    def log(self, status: Mapping[str, Any]) -> None:
        """Tell the numbers of a status; the step is the second of the run."""
        numbers = {name: value for name, value in status.items() if isinstance(value, int | float)}
        self._try(lambda: self.accelerator.log(numbers, step=round(time.monotonic() - self.started)))

    def close(self) -> None:
        """Tell the tracker that the run ends."""
        self._try(lambda: self.accelerator.end_training())

    def _try(self, call: Any) -> None:
        if self.is_lost:
            return
        try:
            call()
        except Exception as error:
            self.is_lost = True
            logger.warning("--tracker %s is given up: %s", self.name, " ".join(str(error).split()))


def _plain(job: Job) -> Iterator[tuple[str, Any]]:
    """Options as trackers take them: numbers and text."""
    for name, value in job.to_dict().items():
        if value is not None:
            yield name, value if isinstance(value, int | float | str) else str(value)


@contextmanager
def alone() -> Iterator[None]:
    """Hide the launcher: accelerate would make a process group, for which the other workers never come."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(LAUNCHER)}
    try:
        yield
    finally:
        os.environ.update(hidden)
