"""One run at a time per cache folder: workers share a lock that a new run takes alone first."""

from __future__ import annotations

import fcntl
import logging
import time
from pathlib import Path

from builders.options import ConfigError

logger = logging.getLogger(__name__)

WAIT_SECONDS = 120.0  # workers whose launcher was killed notice it at their next batch


def is_held(path: Path) -> bool:
    """Tell whether a run holds the folder of this lock file now; there may be none."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class CacheLock:
    """An `flock` on a file; the kernel frees it with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self._path = path

    def take_alone(self) -> None:
        """Wait until no other process holds the folder.

        Raises:
            ConfigError: another run goes on using it.
        """
        end = time.monotonic() + WAIT_SECONDS
        is_told = False
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ConfigError(
                        f"{self._path.parent} is in use by another run of this job: wait for it, or give a --cache-dir"
                    ) from None
            if not is_told:
                logger.info("waiting for workers of an earlier run to leave %s", self._path.parent)
                is_told = True
            time.sleep(0.2)

    def share(self) -> None:
        """Hold the folder together with the other workers of this run."""
        fcntl.flock(self._file, fcntl.LOCK_SH)
