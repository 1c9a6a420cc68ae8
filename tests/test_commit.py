"""The upload thread against the test Hub: nothing leaves pending that the Hub does not hold, whatever goes wrong."""

import threading
import time

import pytest

from hub import commit as committing
from hub import committer, faults, patience
from hub.budget import CommitBudget
from hub.commit import Uploader, commit_change, commit_files, create_file
from hub.committer import Committer
from hub.folder import FolderRepo
from hub.outbox import LocalOutbox
from hub.patience import Patience
from hub.pending import Pending
from hub.remote import HubRepo
from hub.repo import Change, CommitError
from tests.test_chunk import table
from tests.test_remote import REPO, hub, repo  # noqa: F401  # fixtures


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    for module, name, seconds in [
        (committing, "POLL_SECONDS", 0.02),
        (patience, "FATAL_SECONDS", 0.1),
        (faults, "BUSY_SECONDS", 0.1),
        (faults, "SERVER_SECONDS", 0.1),
        (faults, "HOURLY_SECONDS", 0.3),
    ]:
        monkeypatch.setattr(module, name, seconds)
    yield
    # an upload that goes on would close, at its next refused connection, the HTTP client that the next test shares
    for thread in threading.enumerate():
        if thread.name.startswith(("upload", "commit")):
            thread.join(20)


@pytest.fixture
def pending(tmp_path):
    return Pending(tmp_path / "pending")


def path_of(number: int) -> str:
    return f"data/train/0000/{number:012d}-{number + 1:012d}.parquet"


def fill(pending, *numbers: int) -> None:
    for number in numbers:
        tables = {path_of(number): table(number + 1)}
        pending.add(number, number + 1, tables, {"counts": {"records": number + 1}})


def uploader_of(repo, pending, per_hour: float | None = None, notes=lambda receipts: {}) -> Uploader:  # noqa: F811
    borne = Patience(repo.name)
    return Uploader(repo, pending, LocalOutbox(Committer(repo, CommitBudget(per_hour), borne, notes)), borne)


def drained(uploader: Uploader, seconds: float = 20.0) -> bool:
    with uploader:
        return uploader.drain(lambda: seconds)


def held(hub) -> set[str]:  # noqa: F811
    return {path for path in hub.files(REPO) if path.startswith("data/")}


def test_units_go_in_groups_and_leave_pending(hub, repo, pending):  # noqa: F811
    fill(pending, *range(7))
    uploader = uploader_of(repo, pending, 96, lambda receipts: {f"{receipts[0].start}.md": b"%d" % len(receipts)})
    assert drained(uploader)
    assert held(hub) == {path_of(n) for n in range(7)}
    groups = [c for c in hub.commits(REPO) if c.message.startswith("Add")]
    assert len(groups) <= 3
    for group in groups:
        (note,) = [path for path in group.paths if path.endswith(".md")]
        assert hub.read(REPO, note) == b"%d" % (len(group.paths) - 1)
    assert pending.scan() == [] and not list(pending.files.rglob("*.parquet"))
    assert (uploader.stats.num_units, uploader.patience.faults) == (7, {})
    status = uploader.status()
    assert (status["pending"], status["commits"], status["commits_left"]) == (0, len(groups), 95 - len(groups)), (
        "the initial commit counts"
    )


def test_a_commit_takes_a_bounded_number(hub, repo, pending, monkeypatch):  # noqa: F811
    monkeypatch.setattr(committer, "MAX_UNITS_PER_COMMIT", 3)
    fill(pending, *range(7))
    assert drained(uploader_of(repo, pending, 96))
    sizes = [len(c.paths) for c in hub.commits(REPO)[1:]]
    assert sum(sizes) == 7 and max(sizes) <= 3
    assert "chunk" in hub.commits(REPO)[-1].message


def test_nothing_is_deleted_before_it_is_confirmed(hub, repo, pending):  # noqa: F811
    """While the commit is under way and while the check after it fails, the chunk is on the disk."""
    hub.commit_seconds = 0.4
    hub.faults.next("paths", ["500"] * 2)
    fill(pending, 0)
    seen = []
    with uploader_of(repo, pending) as uploader:
        while not uploader.drain(lambda: 0.03):
            seen.append((bool(held(hub)), (pending.files / path_of(0)).exists()))
    assert (False, True) in seen
    assert all(there for landed, there in seen if not landed)
    assert pending.scan() == []


@pytest.mark.parametrize(
    ("kind", "actions"),
    [
        ("commit", ["409", "409", "409"]),
        ("commit", ["429"]),
        ("commit", ["412"]),
        ("commit", ["500", "503"]),
        ("commit", ["landed_500"]),
        ("commit", ["landed_504"]),
        ("commit", ["drop"]),
        ("commit", ["landed_drop"]),
        ("upload", ["drop", "drop"]),
        ("upload", ["409"]),
        ("preupload", ["500"] * 7),
        ("paths", ["503", "drop"]),
    ],
)
def test_faults_pass(hub, repo, pending, kind, actions):  # noqa: F811
    hub.faults.next(kind, list(actions))
    fill(pending, *range(3))
    uploader = uploader_of(repo, pending)
    assert drained(uploader)
    assert held(hub) == {path_of(n) for n in range(3)}
    assert pending.scan() == []
    assert hub.count("commit") <= 3 + len(actions)
    if "landed" in actions[0]:
        paths = [path for c in hub.commits(REPO) for path in c.paths if path.startswith("data/")]
        assert len(paths) == 3, "what has landed is not committed again"


def test_an_outage_of_some_seconds(hub, repo, pending):  # noqa: F811
    fill(pending, 0)
    with uploader_of(repo, pending) as uploader:
        hub.down = True
        fill(pending, 1, 2)
        time.sleep(1.5)
        uploader.check()
        assert pending.num_units >= 2
        hub.down = False
        assert uploader.drain(lambda: 20)
    assert held(hub) == {path_of(n) for n in range(3)}
    assert uploader.patience.faults["network"] > 0


def test_a_failed_upload_does_not_bring_commits_forward(hub, repo, pending):  # noqa: F811
    """The budget holds for the units that are ready, though another one's upload fails again and again."""
    with uploader_of(repo, pending, per_hour=2) as uploader:
        fill(pending, 0)
        wait_until(lambda: hub.count("commit") == 1)
        hub.faults.next("upload", ["409", "409", "409"])
        fill(pending, 1, 2, 3)
        wait_until(lambda: uploader.patience.faults.get("busy", 0) >= 3)
        time.sleep(0.2)
        assert hub.count("commit") == 1


def test_a_busy_repository_costs_no_budget(hub, repo, pending):  # noqa: F811
    hub.faults.next("commit", ["409"] * 5)
    fill(pending, 0)
    uploader = uploader_of(repo, pending, per_hour=3)
    assert drained(uploader)
    assert uploader.outbox.committer.budget.num_left == 1, "of three, with the Hub's own first one"


@pytest.mark.parametrize(
    ("harm", "advice"),
    [("token", "hf auth login"), ("deleted", "not there"), ("quota", "quota of the account is full.*free space")],
)
def test_what_cannot_heal_ends_with_everything_in_pending(hub, repo, pending, harm, advice):  # noqa: F811
    fill(pending, 0)
    with uploader_of(repo, pending) as uploader:
        wait_until(lambda: not pending.num_units)
        if harm == "token":
            hub.token = "hf_another"
        elif harm == "quota":
            hub.faults.next("commit", ["quota"] * 100)
        else:
            del hub.store.repos[REPO]
        fill(pending, 1, 2)
        with pytest.raises(CommitError, match=f"{advice}.*stay in the cache"):
            uploader.drain(lambda: 20)
        with pytest.raises(CommitError):
            uploader.check()
    assert [receipt.start for receipt in pending.scan()] == [1, 2]


def test_a_moment_without_access_passes(hub, repo, pending, monkeypatch):  # noqa: F811
    """Four uploads that are refused together are one refusal."""
    monkeypatch.setattr(patience, "FATAL_SECONDS", 0.5)
    token, hub.token = hub.token, "hf_another"
    fill(pending, *range(6))
    with uploader_of(repo, pending) as uploader:
        wait_until(lambda: uploader.patience.faults.get("fatal", 0) >= 4)
        hub.token = token
        assert uploader.drain(lambda: 20)
    assert len(held(hub)) == 6


def test_patience_counts_from_the_first_fault(hub, repo, pending, monkeypatch):  # noqa: F811
    """Hours without a chunk are no hours of failure."""
    monkeypatch.setattr(patience, "PATIENCE", 0.6)
    with uploader_of(repo, pending) as uploader:
        time.sleep(0.8)
        hub.faults.next("commit", ["409"])
        fill(pending, 0)
        assert uploader.drain(lambda: 20)
    fill(pending, 1)
    hub.faults.next("commit", ["409"] * 1000)
    with uploader_of(repo, pending) as uploader, pytest.raises(CommitError, match="in progress"):
        uploader.drain(lambda: 20)


def test_an_error_in_the_thread_surfaces(repo, pending):  # noqa: F811
    def notes(receipts):
        raise KeyError("a bug")

    fill(pending, 0)
    with uploader_of(repo, pending, notes=notes) as uploader:
        with pytest.raises(CommitError, match="a bug"):
            wait_until(uploader.check)
        with pytest.raises(CommitError, match="a bug"):
            uploader.drain()
    assert pending.num_units == 1


def test_drain_has_an_end_that_may_come_closer(hub, repo, pending):  # noqa: F811
    """A signal in the middle of a long drain shortens it."""
    hub.commit_seconds = 3.0
    fill(pending, 0)
    times: list[float | None] = [None, None, 60.0, 0.1]
    ticks = []
    started = time.monotonic()
    with uploader_of(repo, pending) as uploader:
        assert not uploader.drain(lambda: times.pop(0) if len(times) > 1 else times[0], lambda: ticks.append(1))
        assert time.monotonic() - started < 1.5
        assert len(ticks) >= 4 and pending.num_units == 1


def test_hanging_uploads_do_not_hold_the_end(hub, repo, pending):  # noqa: F811
    hub.faults.hang_seconds = 30.0
    hub.faults.next("upload", ["hang"] * 4)
    fill(pending, *range(5))
    started = time.monotonic()
    with uploader_of(repo, pending) as uploader:
        wait_until(lambda: hub.faults.fired["upload_hang"] == 4)
        assert not uploader.drain(lambda: 0.1)
    assert time.monotonic() - started < 3
    assert all(t.daemon for t in threading.enumerate() if t.name.startswith(("upload", "commit")))
    assert pending.num_units == 5


def test_two_uploaders_of_one_repository(hub, pending, tmp_path):  # noqa: F811
    hub.commit_seconds = 0.1
    other = Pending(tmp_path / "other")
    fill(pending, *range(0, 10, 2))
    fill(other, *range(1, 10, 2))
    with (
        uploader_of(HubRepo.open(REPO, private=True), pending) as one,
        uploader_of(HubRepo.open(REPO, private=True), other) as two,
    ):
        assert one.drain(lambda: 20) and two.drain(lambda: 20)
    assert held(hub) == {path_of(n) for n in range(10)}


def test_somebody_elses_commits_in_between(hub, repo, pending):  # noqa: F811
    """Data is sent without a parent: its paths belong to nobody else."""
    fill(pending, 0)
    with uploader_of(repo, pending, 96) as uploader:
        wait_until(lambda: not pending.num_units)
        hub.write(REPO, {"notes.md": b"by hand"})
        fill(pending, 1)
        assert uploader.drain(lambda: 20)
    assert held(hub) == {path_of(0), path_of(1)} and uploader.patience.faults == {}


def test_a_folder(pending, tmp_path):
    fill(pending, *range(30))
    folder = FolderRepo(tmp_path / "out")
    assert drained(uploader_of(folder, pending))
    assert len(folder.list_files()) == 30 and pending.num_units == 0


def test_commit_files_tries_again(hub, repo):  # noqa: F811
    hub.write(REPO, {"receipts/1": b"1", "a": b"a"})
    hub.faults.next("commit", ["409", "landed_500", "429"])
    commit_files(repo, {"ledger": b"12"}, ["receipts/", "absent/", "absent"], "Complete", lambda: None)
    assert set(hub.files(REPO)) == {".gitattributes", "a", "ledger"}


def test_an_edit_between_reading_and_writing_survives(hub, repo):  # noqa: F811
    """The change is made again of the newest revision."""
    hub.write(REPO, {"README.md": b"words"})
    edits = [b"words of a person", b"more words"]

    def make(parent: str | None) -> Change:
        content = repo.read("README.md", parent)
        if edits:
            hub.write(REPO, {"README.md": edits.pop(0)})
        return Change({"README.md": content + b" and ours"}, [], parent)

    commit_change(repo, make, "Complete", lambda: None)
    assert hub.read(REPO, "README.md") == b"more words and ours"


def test_a_head_that_lags_does_not_hold_for_ever(hub, repo, monkeypatch):  # noqa: F811
    """Where the Hub goes on naming an old revision as the newest, the parent is left out after some tries."""
    stale = repo.head()
    hub.write(REPO, {"README.md": b"words"})
    monkeypatch.setattr(repo, "head", lambda: stale)
    commit_change(repo, lambda parent: Change({"a": b"1"}, [], parent), "x", lambda: None)
    assert hub.count("commit") == committing.STALE_HEADS + 1 and hub.read(REPO, "a") == b"1"


def test_commit_files_ends(hub, repo, monkeypatch):  # noqa: F811
    hub.faults.next("commit", ["409"] * 100)
    with pytest.raises(ZeroDivisionError):
        commit_files(repo, {"a": b"1"}, [], "x", lambda: 1 / 0)
    monkeypatch.setattr(committing, "SMALL_COMMIT_TRIES", 2)
    with pytest.raises(CommitError, match="in progress"):
        commit_files(repo, {"a": b"1"}, [], "x", lambda: None)
    hub.token = "hf_another"
    with pytest.raises(CommitError, match="hf auth login"):
        commit_files(repo, {"a": b"1"}, [], "x", lambda: None)


def wait_until(condition, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_of_two_that_create_a_file_at_once_the_first_ones_stays(where, hub, repo, tmp_path):  # noqa: F811
    """Both get the content that is there, whoever was first."""
    hub.commit_seconds = 0.2
    repos = [repo, HubRepo(REPO)] if where == "hub" else [FolderRepo(tmp_path / "out"), FolderRepo(tmp_path / "out")]
    contents, got = [b"one" * 99, b"two" * 99], {}
    together = threading.Barrier(2)

    def create(number: int) -> None:
        together.wait()
        got[number] = create_file(repos[number], "_stillroom/x.bin", contents[number], "Add x", lambda: None)

    threads = [threading.Thread(target=create, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got[0] == got[1] == repos[0].read("_stillroom/x.bin") and got[0] in contents
    if where == "hub":
        assert len([c for c in hub.commits(REPO) if "_stillroom/x.bin" in c.paths]) == 1
    again = create_file(repos[0], "_stillroom/x.bin", b"three", "Add x", lambda: None)
    assert again == got[0]
