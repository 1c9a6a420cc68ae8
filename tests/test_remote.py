"""A Hub dataset as output, through the real client against the test Hub."""

import hashlib

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from hub import remote
from hub.pending import Entry
from hub.remote import HubRepo
from hub.repo import CommitError
from tests.hubserver import HubServer
from tests.hubstore import Faults

REPO = "tester/x"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(remote, "READ_SECONDS", 0.05)
    monkeypatch.setitem(_http.http_backoff.__kwdefaults__, "max_wait_time", 0.02)
    with HubServer(tmp_path / "hub", faults=Faults(reset_seconds=0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", server.token)
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
    monkeypatch.setattr(remote, "READ_TRIES", 2)
    hub.down = True
    with pytest.raises(CommitError, match=f"--output {REPO}"):
        HubRepo.open(REPO, private=True)


def test_listing_2500_files_in_spite_of_a_broken_page(hub, repo):
    hub.write(REPO, {f"data/train/{n // 1000:04d}/{n:05d}.parquet": b"x" * (n % 7) for n in range(2500)})
    hub.faults.next("page", ["429", "ok", "503"])
    files = repo.list_files()
    assert len(files) == 2501  # and .gitattributes
    assert files["data/train/0002/02499.parquet"] == 2499 % 7
    assert all(isinstance(size, int) for size in files.values())


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
    monkeypatch.setattr(remote, "READ_TRIES", 2)
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
    monkeypatch.setattr(remote, "LOG_PAGE", 2)
    for number in range(5):
        repo.commit({f"{number}": b"%d" % number}, [], "Add", writer=f"me-{number}")
    first = hub.store.repo(REPO).history("main")[-1]  # the Hub's own
    object.__setattr__(first, "time", first.time - 3601)
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
