"""A disk without room: the run stops, uploads what is pending, and says where to make room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from builders.options import ConfigError

FULL = {errno.ENOSPC, errno.EDQUOT}


class DiskFullError(RuntimeError):
    """The cache has no room for what is computed. Whole chunks and whole batches on it are safe."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(
            f"no room in {folder}: {os.strerror(error.errno or 0)}. Finished chunks and batches are safe; "
            "make room there and run again with --resume"
        )


def is_full(error: OSError) -> bool:
    """Tell a full disk, or a user's full quota on it, from what else may be wrong."""
    return error.errno in FULL


def check_cache(folder: Path) -> None:
    """Make the cache folder, before anything is begun that would need it.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = f"the cache {folder} cannot be written: {error.strerror}"
        raise ConfigError(f"{why}: give another with --cache-dir or $STILLROOM_CACHE") from None
