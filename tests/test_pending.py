"""Pending: nothing is forgotten before it is confirmed, and nothing half written counts."""

import json
import threading

import pytest

from hub.pending import Entry, Pending, Receipt
from tests.test_chunk import table

PATH, SKIPPED = "data/train/0000/000000000000-000000000005.parquet", "skipped/train/0000/a.parquet"
METADATA = {"counts": {"rows": 5, "records": 5}}


@pytest.fixture
def pending(tmp_path):
    return Pending(tmp_path / "pending")


def test_a_unit_comes_and_goes(pending):
    receipt = pending.add(0, 5, {SKIPPED: table(1), PATH: table(5)}, METADATA)
    assert [entry.path for entry in receipt.files] == [SKIPPED, PATH]
    assert receipt.counts == METADATA["counts"]
    assert Pending(pending.files.parent).scan() == [receipt]
    assert pending.num_units == 1
    assert receipt.size == sum(p.stat().st_size for p in pending.files.rglob("*.parquet"))
    pending.remove(receipt)
    pending.remove(receipt)
    assert pending.scan() == []
    assert not [p for p in pending.files.rglob("*") if p.is_file()]


def test_the_receipt_is_written_last(pending, monkeypatch):
    """A table that cannot be written leaves the unit unknown, though its first file is there."""
    with pytest.raises(AttributeError):
        pending.add(0, 5, {SKIPPED: table(1), PATH: None}, METADATA)
    assert (pending.files / SKIPPED).exists()
    assert pending.scan() == []


def test_the_receipt_goes_first(pending):
    receipt = pending.add(0, 5, {PATH: table(5)}, METADATA)
    pending._receipt_path(receipt).unlink()
    assert pending.scan() == []


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_lost_file_drops_the_receipt(pending, damage, caplog):
    kept = pending.add(5, 10, {"data/train/0000/b.parquet": table(5)}, METADATA)
    receipt = pending.add(0, 5, {PATH: table(5)}, METADATA)
    local = pending.files / PATH
    local.unlink() if damage == "gone" else local.write_bytes(local.read_bytes()[:-1])
    assert pending.scan() == [kept]
    assert "not whole" in caplog.text
    assert not pending._receipt_path(receipt).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"start": 1}', b"\xff", b'{"files": 3}'])
def test_a_damaged_receipt_is_dropped(pending, content):
    (pending.receipts / "000000000000-000000000005.json").write_bytes(content)
    assert pending.scan() == []


def test_sweep_deletes_what_no_receipt_names(pending):
    receipt = pending.add(0, 5, {PATH: table(5)}, METADATA)
    for name in ("data/train/0000/.a.parquet.17", "data/train/0000/b.parquet"):
        (pending.files / name).write_bytes(b"half")
    pending.sweep()
    assert [p for p in pending.files.rglob("*") if p.is_file()] == [pending.files / PATH]
    assert pending.scan() == [receipt]


def test_scans_and_sums_while_units_leave(pending, caplog):
    """The display counts while the uploader removes: no warning, no error."""
    done, errors = threading.Event(), []

    def look():
        while not done.is_set():
            try:
                pending.scan(), pending.num_bytes, pending.num_units
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(60):
        pending.remove(pending.add(number, number + 1, {f"data/train/0000/{number}.parquet": table(1)}, METADATA))
    done.set()
    thread.join()
    assert not errors
    assert "not whole" not in caplog.text


def test_wait_for_room(tmp_path):
    pending = Pending(tmp_path, max_bytes=1)
    assert pending.wait_for_room(lambda: None, seconds=0.01) < 0.01
    receipt = pending.add(0, 5, {PATH: table(5)}, METADATA)
    calls = iter([lambda: None, lambda: None, lambda: pending.remove(receipt)])
    assert pending.wait_for_room(lambda: next(calls)(), seconds=0.01) >= 0.03
    pending.add(0, 5, {PATH: table(5)}, METADATA)
    with pytest.raises(ZeroDivisionError):
        pending.wait_for_room(lambda: 1 / 0, seconds=0.01)
    assert pending.wait_for_room(lambda: None, lambda: True) < 0.5


def test_the_default_cap_is_half_the_free_disk(tmp_path):
    assert Pending(tmp_path).max_bytes > 2**20


def test_receipts_survive_json():
    receipt = Receipt(3, 9, (Entry("a/ü.parquet", 1, "0" * 64),), {"rows": 6})
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert "\n" not in receipt.to_json()
    assert json.loads(receipt.to_json())["counts"] == {"rows": 6}
