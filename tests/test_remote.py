"""A Hub dataset as output, through the real client against the test Hub."""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from huggingface_hub import constants

from hub import reader
from hub.pending import Entry
from hub.remote import HubRepo
from hub.repo import CommitError
from tests.hubserver import HubServer
from tests.hubstore import Faults
from tests.runs import use_hub

REPO = "tester/x"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub", faults=Faults(reset_seconds=0)) as server:
        use_hub(monkeypatch, server)
        yield server


@pytest.fixture
def repo(hub):
    return HubRepo.open(REPO, private=True)


@pytest.fixture
def chunk(tmp_path):
    (path := tmp_path / "a.parquet").write_bytes(content := b"PAR1\0" * 1000)
    return path, Entry("data/train/0000/a.parquet", len(content), hashlib.sha256(content).hexdigest())


def test_open_creates_a_private_repository_once(hub):
    assert HubRepo.open(REPO, private=True).name == REPO
    assert hub.store.repo(REPO).private
    HubRepo.open(REPO, private=False)
    assert hub.store.repo(REPO).private
    assert hub.count("create") == 1
    HubRepo.open("tester/open", private=False)
    assert not hub.store.repo("tester/open").private


@pytest.mark.parametrize("later", [0.0, 0.1])  # the second comes before the first's repository, or before its branch
def test_two_machines_open_a_new_repository(hub, later):
    hub.store.create_seconds = 0.2

    def open_and_list(seconds: float) -> set[str]:
        time.sleep(seconds)
        return set(HubRepo.open(REPO, private=True).list_files())

    with ThreadPoolExecutor(2) as machines:
        assert list(machines.map(open_and_list, [0.0, later])) == [{".gitattributes"}] * 2


def test_a_name_alone_is_ones_own(hub):
    hub.faults.next("whoami", ["503"])
    assert HubRepo.open("y", private=True).name == "tester/y"
    assert "tester/y" in hub.store.repos


@pytest.mark.parametrize("token", ["hf_wrong12345", ""])
def test_no_access_is_one_line_that_says_what_to_do(hub, monkeypatch, token, tmp_path):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in (REPO, "x"):
        with pytest.raises(CommitError, match="hf auth login") as caught:
            HubRepo.open(name, private=True)
        assert "\n" not in str(caught.value) and "wrong12345" not in str(caught.value)


def test_a_hub_that_is_not_there_is_one_line_too(hub, monkeypatch):
    monkeypatch.setattr(reader, "READ_TRIES", 2)
    hub.down = True
    with pytest.raises(CommitError, match=f"--output {REPO}"):
        HubRepo.open(REPO, private=True)


@pytest.mark.parametrize("fault", ["429", "500", "drop"])
def test_of_a_listing_only_the_page_that_fails_is_asked_for_again(hub, repo, fault):
    hub.write(REPO, {f"data/train/{n // 1000:04d}/{n:05d}.parquet": b"x" * (n % 7) for n in range(2500)})
    hub.faults.next("page", [fault, "ok", fault])  # of the second page, and the third: 2,506 entries with folders
    files = repo.list_files()
    assert len(files) == 2501  # and .gitattributes
    assert files["data/train/0002/02499.parquet"] == 2499 % 7
    assert all(isinstance(size, int) for size in files.values())
    pages = [request.path.partition("cursor=")[2] for request in hub.requests if request.kind == "tree"]
    assert len(pages) == 5 and pages.count("") == 1 and len(set(pages)) == 3


def test_a_listing_has_the_hash_of_what_is_heavy(hub, repo, chunk):
    path, entry = chunk
    hub.write(REPO, {entry.path: path.read_bytes(), "README.md": b"# x"})
    entries = repo.list_entries()
    assert entries[entry.path] == entry
    assert entries["README.md"] == Entry("README.md", 3, "")


def test_a_range_is_one_request(hub, repo):
    hub.write(REPO, {"a.parquet": bytes(range(200))})
    hub.requests.clear()
    assert repo.read_range("a.parquet", 190, 300) == bytes(range(190, 200))
    assert repo.read_range("a.parquet", 3, 5) == bytes([3, 4])
    assert repo.read_range("absent", 3, 5) is None
    assert [(r.kind, r.status) for r in hub.requests] == [("resolve", 206), ("resolve", 206), ("resolve", 404)]


def test_a_pinned_reader_sees_no_later_commit(hub, repo):
    hub.write(REPO, {"a": b"1"})
    repo.pin()
    hub.write(REPO, {"a": b"2", "b": b"2"})
    assert repo.read("a") == b"1" and repo.read("b") is None and set(repo.list_files()) == {".gitattributes", "a"}


def test_read(hub, repo):
    assert repo.read("README.md") is None
    for content in (b"# 1", b"# 2"):
        hub.write(REPO, {"README.md": content})
        assert repo.read("README.md") == content


@pytest.mark.parametrize("fault", ["500", "503", "drop"])
def test_an_outage_is_never_a_missing_file(hub, repo, fault):
    """None would mean: no job here, begin one; no card here, write over what a person wrote."""
    hub.write(REPO, {"README.md": b"# mine"})
    hub.faults.next("resolve", [fault] * 7)  # the client itself tries six times
    assert repo.read("README.md") == b"# mine"


def test_a_read_gives_up_with_an_error(hub, repo, monkeypatch):
    monkeypatch.setattr(reader, "READ_TRIES", 2)
    hub.down = True
    for call in (repo.list_files, lambda: repo.read("README.md"), lambda: repo.missing([Entry("a", 1, "0")])):
        with pytest.raises(OSError):
            call()


def test_bytes_go_once(hub, repo, chunk):
    path, entry = chunk
    assert repo.missing([entry]) == [entry]
    repo.upload({path: entry})
    assert repo.missing([entry]) == [entry]
    repo.commit({entry.path: entry, "README.md": b"# x"}, [], "Add")
    assert repo.missing([entry]) == []
    assert (hub.count("upload"), hub.count("preupload"), hub.count("commit")) == (1, 2, 1)
    assert hub.commits(REPO)[-1].message == "Add"

    repo.upload({path: entry})
    repo.commit({entry.path: entry}, [], "Add it again")
    assert (hub.count("upload"), hub.count("commit")) == (1, 1)


def test_a_refused_commit_can_be_repeated(hub, repo, chunk):
    path, entry = chunk
    repo.upload({path: entry})
    for fault in ("409", "500", "landed_500"):
        hub.faults.next("commit", [fault])
        with pytest.raises(Exception, match=r"409|500"):
            repo.commit({entry.path: entry}, [], "Add")
    repo.commit({entry.path: entry}, [], "Add")
    assert hub.count("upload") == 1
    assert repo.missing([entry]) == []


def test_bytes_that_the_server_has_dropped_go_again(hub, repo, chunk):
    """Uploads that no commit names are swept after a while: a wait for the hourly limit can be longer."""
    path, entry = chunk
    repo.upload({path: entry})
    hub.store.repo(REPO).lfs.clear()
    with pytest.raises(Exception, match="does not exist"):
        repo.commit({entry.path: entry}, [], "Add")
    with pytest.raises(Exception, match="does not exist"):
        repo.commit({entry.path: entry}, [], "Add")
    repo.upload({path: entry})
    repo.commit({entry.path: entry}, [], "Add")
    assert repo.missing([entry]) == []


def test_the_history_of_the_last_hour(hub, repo, monkeypatch):
    """By the server's own clock, across pages, with the writer that each commit names."""
    monkeypatch.setattr(reader, "LOG_PAGE", 2)
    for number in range(5):
        repo.commit({f"{number}": b"%d" % number}, [], "Add", writer=f"me-{number}")
    first = hub.store.repo(REPO).history("main")[-1]  # the Hub's own
    object.__setattr__(first, "time", first.time - 3700)
    hub.write(REPO, {"README.md": b"by hand"})
    hub.faults.next("log", ["500", "429"])
    commits = repo.recent_commits()
    assert [commit.writer for commit in commits] == [None, "me-4", "me-3", "me-2", "me-1", "me-0"]
    assert commits[0].sha == repo.head() and all(commit.age < 60 for commit in commits)


def test_a_parent_that_is_not_the_newest_is_refused(hub, repo):
    parent = repo.head()
    hub.write(REPO, {"README.md": b"by hand"})
    with pytest.raises(Exception, match="412"):
        repo.commit({"a": b"1"}, [], "Add", parent=parent)
    assert repo.read("README.md", parent) is None and repo.read("README.md", repo.head()) == b"by hand"


def test_missing_compares_the_content(hub, repo, chunk):
    path, entry = chunk
    hub.write(REPO, {entry.path: bytes(entry.size), "data/b.parquet": path.read_bytes()})
    other = Entry("data/b.parquet", entry.size, entry.sha256)
    many = [Entry(f"absent/{n}.parquet", 1, "0" * 64) for n in range(1200)]
    assert repo.missing([entry, *many, other]) == [entry, *many]


def test_deletes(hub, repo):
    hub.write(REPO, {"receipts/1": b"1", "receipts/2": b"2", "a": b"a"})
    repo.commit({"ledger": b"12"}, ["receipts/", "a"], "Complete")
    assert set(hub.files(REPO)) == {".gitattributes", "ledger"}
