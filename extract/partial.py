"""Finished batches of units that are not finished: what a kill does not take, as long as the disk is kept.

One file per unit and process, of frames `length, crc32, payload`; a torn or damaged tail is left out. A payload holds, for B
samples, positions, fields, token counts and cut flags (int32 [4, B]), and then their results as the build writes them.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from builders.units import Unit
from extract.sample import Sample
from extract.work import Work

logger = logging.getLogger(__name__)

HEADER = struct.Struct("<II")  # bytes of the payload, CRC-32 of the payload
SHAPE = struct.Struct("<II")  # B, padded tokens of the batch


class Partial:
    """The partial files of one job on one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[int, BinaryIO] = {}  # by start of the unit

    def starts(self) -> set[int]:
        """First rows of the units of which there is something."""
        return {int(path.name.split("-")[0]) for path in self.folder.glob("*.part")}

    def restore(self, work: Work) -> int:
        """Put back what earlier runs computed of a unit, and return the number of samples."""
        count = 0
        for path in self._paths(work.unit):
            for payload in _frames(path):
                samples, body, padded = _decode(payload)
                work.put(samples, work.load(len(samples), body), padded)
                count += len(samples)
        return count

    def append(self, work: Work, samples: list[Sample], results: Any, padded: int) -> None:
        """Keep a finished batch. It reaches the kernel at once, so that only the machine's end can lose it.

        Raises:
            OSError: the disk is full; the frames before are whole.
        """
        if not samples:
            return
        file = self._files.get(work.unit.start)
        if file is None:
            path = self.folder / f"{work.unit.start:012d}-{work.unit.stop:012d}.{os.getpid()}.part"
            file = self._files[work.unit.start] = path.open("ab", buffering=0)
        payload = _encode(samples, padded) + work.dump(results)
        frame = HEADER.pack(len(payload), zlib.crc32(payload)) + payload
        if file.write(frame) < len(frame):  # the disk took a part of it; the next write would end with this error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    def remove(self, unit: Unit) -> None:
        """Forget a unit whose chunk is whole."""
        file = self._files.pop(unit.start, None)
        if file is not None:
            file.close()
        for path in self._paths(unit):
            path.unlink(missing_ok=True)

    def _paths(self, unit: Unit) -> list[Path]:
        return sorted(self.folder.glob(f"{unit.start:012d}-{unit.stop:012d}.*.part"))


def _encode(samples: list[Sample], padded: int) -> bytes:
    facts = np.array([[s.position, s.field, s.num_tokens, s.truncated] for s in samples], np.int32).T
    return SHAPE.pack(len(samples), padded) + facts.tobytes()


def _decode(payload: bytes) -> tuple[list[Sample], memoryview, int]:
    rows, padded = SHAPE.unpack_from(payload)
    facts = np.frombuffer(payload, np.int32, 4 * rows, SHAPE.size).reshape(4, rows)
    # token ids are not kept: what counts of them is their number
    samples = [Sample(int(p), int(f), [0] * int(n), bool(cut)) for p, f, n, cut in facts.T]
    return samples, memoryview(payload)[SHAPE.size + facts.nbytes :], padded


def _frames(path: Path) -> Iterator[bytes]:
    """Yield the payloads of the whole frames and cut off what follows them: this process may append to the file."""
    size, end = path.stat().st_size, 0
    with path.open("r+b") as file:
        while end < size:
            length, crc = HEADER.unpack(file.read(HEADER.size).ljust(HEADER.size, b"\0"))
            # a machine that went down may leave zeros: a frame of no bytes, whose checksum fits
            if not SHAPE.size <= length <= size - end - HEADER.size or zlib.crc32(payload := file.read(length)) != crc:
                logger.info("%s: the last batch is torn and is computed again", path.name)
                file.truncate(end)
                return
            end += HEADER.size + length
            yield payload
