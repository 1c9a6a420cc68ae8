"""The ledger: what an output says of itself."""

import pytest

from hub.folder import FolderRepo
from hub.ledger import Ledger, finished_units
from hub.pending import Entry, Pending, Receipt
from tests.test_chunk import table


def receipt(start: int, records: int = 4, sha256: str = "0" * 64) -> Receipt:
    path = f"data/train/0000/{start:012d}-{start + 5:012d}.parquet"
    return Receipt(
        start, start + 5, (Entry(path, 100, sha256),), {"rows": 5, "records": records, "skipped": 5 - records}
    )


@pytest.fixture
def repo(tmp_path):
    return FolderRepo(tmp_path / "out")


def ledger_of(repo) -> Ledger:
    ledger = Ledger(repo, "_stillroom/receipts", "_stillroom/ledger.jsonl")
    ledger.load(repo.list_files())
    return ledger


def number(path: str) -> int | None:
    name = path.rpartition("/")[2]
    return int(name[:12]) // 5 if name[:12].isdigit() else None


def test_parts_become_a_whole(repo):
    ledger = ledger_of(repo)
    for group in ([receipt(5), receipt(0)], [receipt(10, records=2)]):
        repo.commit(ledger.part(group), [], "")
        ledger.add(group)
    read = ledger_of(repo)
    assert list(read.receipts) == list(ledger.receipts) == [receipt(0), receipt(5), receipt(10, records=2)]
    assert read.totals == {"units": 3, "bytes": 300, "rows": 15, "records": 10, "skipped": 5}
    repo.commit(read.whole(), ["_stillroom/receipts/"], "")
    assert list(ledger_of(repo).receipts) == list(read.receipts)


def test_a_group_that_is_committed_twice_is_one_file(repo):
    ledger = ledger_of(repo)
    assert ledger.part([receipt(0), receipt(5)]) == ledger.part([receipt(0), receipt(5)])
    assert set(ledger.part([receipt(0)])) != set(ledger.part([receipt(0), receipt(5)]))


def test_a_part_wins_over_the_whole_and_each_file_is_read_once(repo):
    ledger = ledger_of(repo)
    repo.commit({**ledger.part([receipt(0, sha256="1" * 64)])}, [], "")
    ledger.add([receipt(0)])
    repo.commit(ledger.whole(), [], "")
    read = ledger_of(repo)
    assert read.by_start[0].files[0].sha256 == "1" * 64
    read.add([receipt(0)])
    read.load(iter(repo.list_files()))
    assert list(read.receipts) == [receipt(0)]


def test_finished_units(repo, tmp_path):
    """Skipped rows alone finish a unit only if it has no records: its data may not have arrived."""
    pending = Pending(tmp_path / "pending")

    def put(folder: str, start: int, records: int):
        path = f"{folder}/train/0000/{start:012d}-{start + 5:012d}.parquet"
        added = pending.add(start, start + 5, {path: table(1)}, {"counts": {"records": records}})
        repo.upload({pending.files / entry.path: entry for entry in added.files})
        repo.commit({entry.path: entry for entry in added.files}, [], "")

    put("data", 0, 5)
    put("skipped", 5, 0)
    put("skipped", 10, 3)
    put("data", 15, 3)
    put("skipped", 15, 3)
    put("embeddings", 20, 3)
    assert finished_units(repo, repo.list_files(), "data", "skipped", number) == {0, 1, 3}
