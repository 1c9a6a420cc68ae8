"""What a kill leaves of a unit in hand: python -m pytest tests/test_partial.py."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.job import Job
from builders.units import Unit
from extract.partial import Partial
from extract.sample import Sample
from extract.vectors import VectorWork

CHECKOUT = Path(__file__).resolve().parents[1]
UNIT = Unit(0, 0, 64)
BATCHES = [range(0, 10), range(10, 11), range(11, 30), range(30, 64)]  # positions


def vectors_of(positions):
    return np.array([[p, p / 7, -p] for p in positions], np.float32)


def append(partial, positions, unit=UNIT):
    samples = [Sample(p, 0, [7] * (p + 1), p % 2 == 0) for p in positions]
    partial.append(VectorWork(unit, Job()), samples, vectors_of(positions), 1000)


def restored(folder, unit=UNIT):
    work = VectorWork(unit, Job())
    count = Partial(folder).restore(work)
    positions = np.flatnonzero(work.is_done[0]).tolist()
    assert count == len(positions)
    if positions:
        np.testing.assert_array_equal(work.vectors[0, positions], vectors_of(positions))
    return work, positions


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of all batches, and where each of its frames ends."""
    partial, ends = Partial(tmp_path_factory.mktemp("written")), []
    for positions in BATCHES:
        append(partial, positions)
        (path,) = partial.folder.iterdir()
        ends.append(path.stat().st_size)
    return path.name, path.read_bytes(), ends


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def restore_content(place, name, content):
    (place / name).write_bytes(content)
    return restored(place)[1]


def whole_frames(ends, stop):
    return [p for positions, end in zip(BATCHES, ends, strict=True) if end <= stop for p in positions]


def test_batches_come_back_as_they_were_kept(tmp_path):
    partial = Partial(tmp_path)
    for positions in BATCHES:
        append(partial, positions)
    append(partial, [])  # the batch that ends a unit
    work, positions = restored(tmp_path)
    assert positions == list(range(64))
    assert work.num_tokens[0].tolist() == [p + 1 for p in range(64)]
    assert work.truncated[0].tolist() == [p % 2 == 0 for p in range(64)]
    assert work.num_padded_tokens == 4000


@given(data=st.data())
def test_a_torn_file_restores_the_whole_frames_before_the_tear(written, place, data):
    name, content, ends = written
    length = data.draw(st.integers(0, len(content)))
    assert restore_content(place, name, content[:length]) == whole_frames(ends, length)


@given(data=st.data())
def test_a_flipped_bit_restores_the_whole_frames_before_it(written, place, data):
    name, content, ends = written
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    assert restore_content(place, name, bytes(damaged)) == whole_frames(ends, bit // 8)


@given(kept=st.integers(0, 4), zeros=st.integers(1, 100))
def test_a_tail_of_zeros_is_no_frame(written, place, kept, zeros):
    """A file system that lost power gives zeros: a length of 0 whose checksum, 0, is right."""
    name, content, ends = written
    stop = [0, *ends][kept]
    assert restore_content(place, name, content[:stop] + bytes(zeros)) == whole_frames(ends, stop)


def test_what_is_appended_after_a_tear_is_found_again(written, tmp_path):
    """In a container every run has the same process id, and so the same file: frames behind a tear were never read."""
    _, content, ends = written
    name = f"{UNIT.start:012d}-{UNIT.stop:012d}.{os.getpid()}.part"
    (tmp_path / name).write_bytes(content[: ends[0] + 20])
    partial = Partial(tmp_path)
    partial.restore(VectorWork(UNIT, Job()))
    append(partial, BATCHES[3])
    assert restored(tmp_path)[1] == [*BATCHES[0], *BATCHES[3]]


def test_the_files_of_several_processes_are_read(written, tmp_path):
    _, content, ends = written
    stem = f"{UNIT.start:012d}-{UNIT.stop:012d}"
    (tmp_path / f"{stem}.1.part").write_bytes(content[: ends[0]])
    (tmp_path / f"{stem}.2.part").write_bytes(content[ends[1] :])
    assert restored(tmp_path)[1] == [*BATCHES[0], *BATCHES[2], *BATCHES[3]]


def test_a_unit_is_forgotten_once_its_chunk_is_whole(tmp_path):
    partial, other = Partial(tmp_path), Unit(1, 64, 128)
    append(partial, [0])
    append(partial, [1], other)
    assert partial.starts() == {0, 64}
    partial.remove(UNIT)
    assert partial.starts() == {64}
    assert restored(tmp_path)[1] == []
    append(partial, [2])  # and may begin anew
    assert restored(tmp_path)[1] == [2]


def test_a_unit_of_other_rows_is_another_unit(tmp_path):
    append(Partial(tmp_path), [0])
    assert restored(tmp_path, Unit(0, 0, 65))[1] == []


def test_a_disk_that_takes_a_part_of_a_batch_is_full(tmp_path):
    """The kernel writes what fits and reports no error. A file size limit does the same as a full disk, without root."""
    body = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(CHECKOUT)!r})
from tests.test_partial import Partial, append
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
partial = Partial(Path({str(tmp_path)!r}))
append(partial, range(0, 10))
try:
    append(partial, range(10, 64))
except OSError as error:
    sys.exit(error.errno)
"""
    assert subprocess.run([sys.executable, "-c", body], timeout=60).returncode == errno.ENOSPC
    assert restored(tmp_path)[1] == list(range(10))
