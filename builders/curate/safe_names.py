"""Names of sources as names of folders: on every file system, readable, and never two in one."""

from __future__ import annotations

import hashlib
import re

UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
MAX_CHARS = 100  # file systems take 255 bytes; the whole path may have a limit, too
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows
NO_SOURCE = "none"  # of rows without a source


class SafeNames:
    """Gives each name a folder: its letters, digits, dots and dashes, `/` as `__`, and a hash wherever that is not enough.

    A name keeps its folder as long as the order of names is the same; names that differ in case only have two folders.
    """

    def __init__(self) -> None:
        self._by_name: dict[str | None, str] = {}
        self._taken: set[str] = set()

    def __getitem__(self, name: str | None) -> str:
        if name not in self._by_name:
            self._by_name[name] = self._new(name)
        return self._by_name[name]

    def items(self) -> list[tuple[str | None, str]]:
        """All names with their folders, in order of first use."""
        return list(self._by_name.items())

    def _new(self, name: str | None) -> str:
        plain = UNSAFE.sub("_", (NO_SOURCE if name is None else name).replace("/", "__"))
        safe = plain.strip(". ")[:MAX_CHARS].rstrip(". ")
        is_bad = not safe.strip("_") or safe.lower().split(".")[0] in RESERVED or safe.lower() in self._taken
        if is_bad or len(plain) > MAX_CHARS:
            safe = f"{safe or 'source'}-{hashlib.sha256(repr(name).encode()).hexdigest()[:8]}"
        self._taken.add(safe.lower())
        return safe
