"""A plain folder as output."""

import errno
import os

import pytest

from hub.chunk import write_whole
from hub.folder import FolderRepo
from hub.pending import Entry
from hub.repo import HUB_ID, CommitError, is_folder, open_repo


@pytest.fixture
def repo(tmp_path):
    return FolderRepo(tmp_path / "out")


@pytest.fixture
def local(tmp_path):
    write_whole(path := tmp_path / "pending/a.parquet", b"chunk")
    return path


ENTRY = Entry("data/a.parquet", 5, "")


def put(repo: FolderRepo, local, files=None) -> None:
    repo.upload({local: ENTRY})
    repo.commit({ENTRY.path: ENTRY} | (files or {}), [], "")


def hidden(repo: FolderRepo) -> list[str]:
    return [p.name for p in repo.folder.rglob(".*")]


def test_a_commit_links_and_keeps_the_pending_file(repo, local):
    put(repo, local, {"README.md": b"# x"})
    assert (repo.folder / "data/a.parquet").samefile(local)
    assert repo.list_files() == {"data/a.parquet": 5, "README.md": 3}
    local.unlink()
    assert repo.read("data/a.parquet") == b"chunk"
    assert repo.read("absent") is None


def test_a_commit_that_is_repeated_leaves_no_temporary_file(repo, local):
    """Renaming one link of a file onto another does nothing and says nothing: the temporary link would stay."""
    for _ in range(2):
        put(repo, local)
    assert hidden(repo) == []


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOSYS])
def test_another_disk_gets_a_copy(repo, local, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    for content in (b"chunk", b"other chunk"):
        write_whole(local, content)
        put(repo, local)
        assert repo.read("data/a.parquet") == content
    assert not (repo.folder / "data/a.parquet").samefile(local)
    assert hidden(repo) == []


def test_a_full_disk_is_one_clear_error(repo, local, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(CommitError, match=r"No space left on device.*chunks stay in the cache"):
        put(repo, local)
    assert local.exists()
    assert repo.list_files() == {} and hidden(repo) == []


def test_files_appear_in_the_order_given_and_deletes_come_last(repo, local):
    """A kill between two steps must leave a dataset that can be gone on with: the new file first, then the old ones."""
    repo.commit({"receipts/1": b"1", "receipts/2": b"2"}, [], "")
    repo.upload({local.with_name("absent"): ENTRY})
    with pytest.raises(CommitError):
        repo.commit({"first": b"1", ENTRY.path: ENTRY, "never": b"2"}, ["receipts/"], "")
    assert set(repo.list_files()) == {"receipts/1", "receipts/2", "first"}
    repo.commit({"ledger": b"12"}, ["receipts/", "first", "absent", "absent/"], "")
    assert set(repo.list_files()) == {"ledger"}


def test_missing(repo, local):
    put(repo, local)
    there, short = Entry("data/a.parquet", 5, ""), Entry("data/a.parquet", 6, "")
    assert repo.missing([there, short, Entry("b", 1, "")]) == [short, Entry("b", 1, "")]


def test_what_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/x").mkdir(parents=True)
    assert all(map(is_folder, ["./out", "/out", "~/out", "..", "there/x"]))
    assert not any(map(is_folder, ["user/name", "name"]))
    assert HUB_ID.match("user/name.x-y_z")
    with pytest.raises(ValueError, match="neither"):
        open_repo("a/b/c", private=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CommitError, match="file/out cannot be made: Not a directory"):
        open_repo("./file/out", private=True)
