"""A file of the output, read in parts: for Parquet, which wants a footer and some columns of a file that may be far away."""

from __future__ import annotations

import io
from typing import Any

from hub.repo import Repo


class RangeFile(io.RawIOBase):
    """`size` bytes at `path`. One request per read; nothing is cached, as Parquet asks for each range once."""

    def __init__(self, repo: Repo, path: str, size: int) -> None:
        self.repo, self.path, self.size = repo, path, size
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, and return where to."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer.

        Raises:
            FileNotFoundError: there is no such file.
            OSError, RuntimeError: the output does not answer.
        """
        content = self.repo.read_range(self.path, self._at, min(self.size, self._at + len(buffer)))
        if content is None:
            raise FileNotFoundError(f"{self.path} is not in {self.repo.name}")
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
