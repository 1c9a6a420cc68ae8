"""Disks without room, as small file systems of their own: a full cache, and a full output."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from extract.disk import DiskFullError, is_full
from tests.runs import Bench, download, hub_process, hub_state, read_vectors
from tests.test_run import TORCHRUN, complete, expected, go, job, start, write_source

REPO = "tester/full"
ROWS, CHUNK_ROWS = 600, 20
SLOW = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.1"}
pytestmark = pytest.mark.usefixtures("minilm")


@contextmanager
def disk(folder: Path, size: str):
    """Mount a file system of that size."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "stillroom-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mounts here, they need root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left, to the last byte."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def wait_for(process, what) -> None:
    end = time.monotonic() + 60
    while not what():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


def said(process) -> str:
    """The one line of stillroom's error, of a run that ends with exit code 1 by itself."""
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    lines = [line for line in err.splitlines() if line.startswith("stillroom: ")]
    assert "Traceback" not in err.split(lines[0])[0], err  # torchrun's own come after it
    assert len({line.split("DiskFullError: ")[-1].removeprefix("stillroom: ") for line in lines}) == 1, err
    return lines[0]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_cache_is_a_clean_stop(bench, tmp_path, workers):
    launcher = (*TORCHRUN, "--nproc_per_node", "2") if workers == 2 else ()
    source = write_source(tmp_path / "source.jsonl", ROWS)
    options = [*job(source, REPO, CHUNK_ROWS), "--max-batch-tokens", "128", "--resume"]
    with disk(bench.cache, "16m"), hub_process(tmp_path / "hub") as hub:
        bench.hub = hub
        process = start(bench, *options, launcher=launcher, **SLOW)
        receipts = bench.cache.glob
        wait_for(process, lambda: len(list(receipts("jobs/*/pending/receipts/[0-9]*.json"))) >= 2)
        filler = fill(bench.cache)
        line = said(process)
        assert f"no room in {bench.cache}/jobs/" in line and "No space left on device" in line
        assert "make room there and run again with --resume" in line
        assert not list(receipts("jobs/*/pending/receipts/[0-9]*.json")), "what was pending is uploaded"
        chunks = [path for path in hub_state(hub, REPO)["files"] if path.startswith("data/")]
        assert 2 <= len(chunks) < ROWS // CHUNK_ROWS

        filler.unlink()
        go(bench, *options)
        index, _ = read_vectors(download(hub, REPO, tmp_path / "got"))
        assert index.tolist() == expected(ROWS)


def test_a_full_output_folder_is_a_clean_stop(bench, tmp_path):
    source = write_source(tmp_path / "source.jsonl", 240)
    options = [*job(source, chunk_rows=CHUNK_ROWS), "--max-batch-tokens", "128", "--resume"]
    with disk(tmp_path / "out", "16m") as out:
        process = start(bench, *options, **SLOW)
        wait_for(process, lambda: list(out.glob("data/**/*.parquet")))
        filler = fill(out)
        line = said(process)
        assert "out: No space left on device" in line and "run again with --resume" in line
        filler.unlink()
        go(bench, *options)
        complete(out, 240)


def test_what_a_full_disk_says(tmp_path):
    error = OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert is_full(error) and not is_full(OSError("no number")) and not is_full(FileNotFoundError(2, "none"))
    assert str(DiskFullError(tmp_path, error)).startswith(f"no room in {tmp_path}: No space left on device. ")
