"""Records of an older generation by content hash: python -m pytest tests/test_carried.py."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub import carried
from hub.carried import CarriedRecords, write_index
from hub.folder import FolderRepo

FINGERPRINT = "f" * 64
ROWS, GROUP_ROWS = 30, 10


def hash_at(number):
    return f"{number:032x}"


def write_chunk(folder, number, hashes=None, fingerprint=FINGERPRINT):
    """Rows `number * 30 + i`, whose vectors hold their own number."""
    values = np.arange(number * ROWS, (number + 1) * ROWS)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(values, 4).astype(np.float32)), 4)
    columns = {"content_hash": [hash_at(v) for v in values] if hashes is None else hashes, "embedding": vectors}
    table = pa.table(columns).replace_schema_metadata({"stillroom": f'{{"fingerprint": "{fingerprint}"}}'})
    path = folder / f"data/train/0000/{number}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


class Reads(FolderRepo):
    """A folder that notes what is opened."""

    opened = 0

    def read_range(self, path, start, stop):
        self.opened += 1
        return super().read_range(path, start, stop)


@pytest.fixture
def repo(tmp_path):
    for number in range(3):
        write_chunk(tmp_path / "out", number)
    return Reads(tmp_path / "out")


def index(repo, tmp_path):
    write_index(repo, "data/train/", FINGERPRINT, tmp_path / "index", lambda: None)
    return CarriedRecords(repo, tmp_path / "index", ["embedding"])


def found(records, hashes):
    """The first value of each vector that was found, by position in `hashes`."""
    return {
        int(position): row["embedding"][0]
        for which, table in records.find(hashes)
        for position, row in zip(which, table.to_pylist(), strict=True)
    }


def test_every_record_is_found_wherever_it_stands(repo, tmp_path):
    records = index(repo, tmp_path)
    numbers = np.random.default_rng(0).permutation(3 * ROWS)
    assert found(records, [hash_at(n) for n in numbers]) == {i: float(n) for i, n in enumerate(numbers)}
    assert found(records, [hash_at(1000), hash_at(7), "f" * 32, hash_at(7)]) == {1: 7.0, 3: 7.0}
    assert found(records, [hash_at(1000)]) == {}


def test_rows_in_order_read_each_row_group_once(repo, tmp_path):
    records = index(repo, tmp_path)
    repo.opened = 0
    for start in range(0, 3 * ROWS, 7):
        found(records, [hash_at(n) for n in range(start, start + 7)])
    assert repo.opened == 2 * 3 * ROWS / GROUP_ROWS, "a footer and the rows of each"


def test_hashes_that_differ_in_one_half_only(repo, tmp_path):
    halves = [f"{a:016x}{b:016x}" for a in (5, 2**63) for b in (0, 3, 2**64 - 1) for _ in range(5)]
    write_chunk(tmp_path / "out", 7, hashes=halves)
    records = index(repo, tmp_path)
    wanted = [*sorted(set(halves)), f"{5:016x}{4:016x}", f"{2**63:016x}{1:016x}"]
    got = [name for _, table in records.find(wanted) for name in table["content_hash"].to_pylist()]
    assert sorted(got) == sorted(set(halves))


@pytest.mark.parametrize("is_empty", [True, False])
def test_chunks_that_cannot_be_used_carry_nothing(repo, tmp_path, caplog, is_empty):
    out = tmp_path / "out"
    pq.write_table(pq.read_table(write_chunk(out, 3)).drop_columns("content_hash"), out / "data/train/0000/3.parquet")
    write_chunk(out, 4, fingerprint="0" * 64)
    write_chunk(out, 5).write_bytes(b"PAR1 no more PAR1")
    if is_empty:
        for number in range(3):
            (out / f"data/train/0000/{number}.parquet").unlink()
    records = index(repo, tmp_path)
    hits = found(records, [hash_at(n) for n in range(6 * ROWS)])
    assert len(hits) == (0 if is_empty else 3 * ROWS)
    assert [r.args[0] for r in caplog.records if r.levelno == logging.WARNING] == ["data/train/0000/5.parquet"]


def test_a_chunk_that_changed_after_it_was_indexed(repo, tmp_path):
    records = index(repo, tmp_path)
    write_chunk(tmp_path / "out", 0, hashes=[hash_at(500 + n) for n in range(ROWS)])
    path = tmp_path / "out/data/train/0000/1.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert sorted(found(records, [hash_at(n) for n in range(3 * ROWS)])) == list(range(2 * ROWS, 3 * ROWS))


def test_a_fault_that_passes_costs_a_wait_and_no_record(repo, tmp_path, monkeypatch):
    monkeypatch.setattr(carried.time, "sleep", lambda seconds: None)
    records, real, faults = index(repo, tmp_path), repo.read_range, [TimeoutError(), ConnectionError()]

    def read_range(*asked):
        if faults:
            raise faults.pop()
        return real(*asked)

    monkeypatch.setattr(repo, "read_range", read_range)
    assert len(found(records, [hash_at(n) for n in range(ROWS)])) == ROWS


def test_a_stop_ends_the_index_and_leaves_nothing_half_written(repo, tmp_path):
    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_index(repo, "data/train/", FINGERPRINT, tmp_path / "index", stop)
    assert not (tmp_path / "index").exists()
