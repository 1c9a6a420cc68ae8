"""The card of a growing dataset, against the test Hub: when it goes, what goes with it, and whose words win."""

import pytest

from builders.job import Job
from builders.layout import Layout
from cards import writer
from cards.writer import CARD_SECONDS, CardWriter
from hub.budget import CommitBudget
from hub.commit import commit_change
from hub.committer import Committer
from hub.patience import Patience
from hub.pending import Entry, Receipt
from tests.test_budget import Clock
from tests.test_commit import short_waits  # noqa: F401  # fixture
from tests.test_remote import REPO, hub, repo  # noqa: F401  # fixtures

JOB = Job(output=REPO, source="user/chats", model="m", revision="1" * 40, model_revision="2" * 40, chunk_rows=5)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cards(repo, clock):  # noqa: F811
    return CardWriter(repo, JOB, ["messages"], 500, 100, clock=clock)


@pytest.fixture
def committer(repo, cards, clock):  # noqa: F811
    return Committer(
        repo, CommitBudget(None, clock=clock), Patience(REPO, clock), cards.ledger.part, cards.growing, clock
    )


def land(repo, committer, tmp_path, *numbers: int):  # noqa: F811
    """Commit units of which only the receipts matter here."""
    receipts = [receipt(repo, tmp_path, number) for number in numbers]
    committer.offer(receipts)
    return committer.step()


def receipt(repo, tmp_path, number: int) -> Receipt:  # noqa: F811
    import hashlib

    (path := tmp_path / f"{number}.parquet").write_bytes(content := b"PAR1%d" % number)
    entry = Entry(f"data/train/0000/{number}.parquet", len(content), hashlib.sha256(content).hexdigest())
    repo.upload({path: entry})
    counts = {"rows": 5, "records": 5, "skipped": 0, "tokens": 50, "truncated": 0, "dimension": 8}
    return Receipt(5 * number, 5 * number + 5, (entry,), counts)


def readme(hub) -> str:  # noqa: F811
    return hub.read(REPO, "README.md").decode()


def test_a_card_goes_with_the_first_units_and_every_ten_minutes(hub, repo, committer, clock, tmp_path):  # noqa: F811
    def has_card() -> bool:
        return "README.md" in hub.commits(REPO)[-1].paths

    land(repo, committer, tmp_path, 0)
    assert has_card() and "at least 1 %" in readme(hub)
    clock.now += CARD_SECONDS - 1
    land(repo, committer, tmp_path, 1)
    assert not has_card()
    clock.now += 2
    land(repo, committer, tmp_path, 2)
    assert has_card() and "at least 3 %" in readme(hub)


def test_a_card_that_did_not_land_goes_with_the_same_units_again(hub, repo, committer, clock, tmp_path):  # noqa: F811
    hub.faults.next("commit", ["500"])
    assert not land(repo, committer, tmp_path, 0).landed
    clock.now += 60
    assert committer.step().landed
    assert "at least 1 %" in readme(hub)


def test_data_does_not_wait_for_a_card_that_somebody_edits(hub, repo, committer, clock, tmp_path, monkeypatch):  # noqa: F811
    """The edit came between reading and writing: the units land without a card, a later card keeps the edit."""
    land(repo, committer, tmp_path, 0)
    clock.now += CARD_SECONDS
    head = repo.head
    monkeypatch.setattr(repo, "head", lambda: (head(), hub.write(REPO, {"README.md": edited(hub)}))[0])
    assert not land(repo, committer, tmp_path, 1).landed
    monkeypatch.setattr(repo, "head", head)
    clock.now += 5
    assert committer.step().landed
    assert "at least 1 %" in readme(hub)
    clock.now += CARD_SECONDS
    land(repo, committer, tmp_path, 2)
    assert "at least 3 %" in readme(hub) and "Words of a person" in readme(hub)


def edited(hub) -> bytes:  # noqa: F811
    return hub.read(REPO, "README.md") + b"\n## Words of a person\n"


def test_receipts_are_rolled_up(hub, repo, committer, cards, clock, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(writer, "MAX_PARTS", 3)
    folder = f"{Layout.of(JOB).receipts}/"

    def parts() -> list[str]:
        return [path for path in hub.files(REPO) if path.startswith(folder)]

    for number in range(4):
        land(repo, committer, tmp_path, number)
    assert len(parts()) == 4
    clock.now += CARD_SECONDS
    land(repo, committer, tmp_path, 4)
    assert len(parts()) == 2, "one of all before it, and its own"
    first = min(parts())
    for number in range(5, 8):
        land(repo, committer, tmp_path, number)
    clock.now += CARD_SECONDS
    land(repo, committer, tmp_path, 8)
    assert len(parts()) == 3 and min(parts()) == first, "what is rolled up is left alone"
    fresh = CardWriter(repo, JOB, ["messages"], 500, 100)
    fresh.ledger.load(repo.list_files())
    assert [r.start for r in fresh.ledger.receipts] == list(range(0, 45, 5))


def test_the_last_change_keeps_an_edit_made_meanwhile(hub, repo, committer, cards, tmp_path):  # noqa: F811
    land(repo, committer, tmp_path, 0)
    edits = [edited(hub)]

    def final(parent: str | None):
        change = cards.final(parent)
        if edits:
            hub.write(REPO, {"README.md": edits.pop()})
        return change

    commit_change(repo, final, "Complete the card", lambda: None)
    assert "**Complete**" in readme(hub) and "Words of a person" in readme(hub)
    assert Layout.of(JOB).ledger in hub.files(REPO) and not any("receipts/" in path for path in hub.files(REPO))


def test_a_chunk_whose_receipt_was_lost_counts(tmp_path):
    """A kill between the two leaves a folder so: the last card reads the chunk's own metadata."""
    from hub.folder import FolderRepo
    from hub.pending import Pending
    from tests.test_chunk import table

    folder, pending = FolderRepo(tmp_path / "out"), Pending(tmp_path / "pending")
    job = Job(output=str(tmp_path / "out"), source="user/chats", model="m", revision="1" * 40, chunk_rows=5)
    counts = {"rows": 5, "records": 5, "skipped": 0, "tokens": 50, "truncated": 0, "dimension": 8}
    path = "data/train/0000/000000000000-000000000005.parquet"
    receipt = pending.add(0, 5, {path: table(5)}, {"counts": counts})
    folder.upload({pending.files / path: receipt.files[0]})
    folder.commit({path: receipt.files[0]}, [], "")
    cards = CardWriter(folder, job, ["messages"], 5, 1)
    commit_change(folder, cards.final, "Complete the card", lambda: None)
    assert list(cards.ledger.receipts) == [receipt]
    assert "5 records and 0 skipped rows of 5" in (tmp_path / "out/README.md").read_text()
