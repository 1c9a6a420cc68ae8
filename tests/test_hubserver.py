"""The Hub stand-in, as the real clients see it."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, constants, get_session
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hubserver import HubServer
from tests.hubstore import MAX_FILES_PER_FOLDER, Faults, HubError, check_folders

REPO = "user/x"
CHECKOUT = Path(__file__).resolve().parents[1]
THERE = {"repo_id": REPO, "repo_type": "dataset"}


@pytest.fixture(autouse=True)
def plain_lfs(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def hub(tmp_path):
    with HubServer(tmp_path / "hub", faults=Faults(hang_seconds=0.2, slow_seconds=0.2, reset_seconds=0)) as server:
        server.create_repo(REPO)
        yield server


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=hub.token)


def add(path: str, content: bytes = b"PAR1") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(api: HfApi, *operations, **options):
    return api.create_commit(operations=operations, commit_message="add", **THERE, **options)


def status_of(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


# --- what a well-behaved Hub does


def test_create_twice_and_delete(hub, api):
    url = api.create_repo("user/y", repo_type="dataset", private=True)
    assert url == f"{hub.url}/datasets/user/y"
    assert api.create_repo("user/y", repo_type="dataset", exist_ok=True) == url
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("user/y", repo_type="dataset")
    api.delete_repo("user/y", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("user/y")
    assert api.whoami()["name"] == "tester"


def test_preupload_unlink_commit_and_read(hub, api, tmp_path):
    source = tmp_path / "a.parquet"
    source.write_bytes(content := os.urandom(300_000))
    operation = CommitOperationAdd("data/a.parquet", str(source))
    api.preupload_lfs_files(additions=[operation], **THERE)
    source.unlink()
    oid = commit(api, operation, add("README.md", b"# x\n")).oid

    assert hub.read(REPO, "data/a.parquet") == content
    assert [c.paths for c in hub.commits(REPO)][1:] == [("data/a.parquet", "README.md")]
    assert {path: file.lfs for path, file in hub.files(REPO).items()} == {
        ".gitattributes": False,
        "README.md": False,
        "data/a.parquet": True,
    }
    (info,) = api.get_paths_info(paths=["data/a.parquet", "absent"], **THERE)
    assert (info.size, info.lfs.sha256) == (300_000, hub.files(REPO)["data/a.parquet"].sha256)
    downloaded = api.hf_hub_download(filename="data/a.parquet", cache_dir=tmp_path / "cache", **THERE)
    assert Path(downloaded).read_bytes() == content
    assert oid in downloaded
    assert api.dataset_info(REPO).sha == oid


def test_ranges(hub, api):
    content = bytes(range(256)) * 100
    hub.write(REPO, {"data/a.bin": content})
    with HfFileSystem(endpoint=hub.url, token=hub.token).open(f"datasets/{REPO}/data/a.bin", block_size=100) as file:
        file.seek(1000)
        assert file.read(50) == content[1000:1050]
        file.seek(-7, 2)
        assert file.read() == content[-7:]
    url = f"{hub.url}/datasets/{REPO}/resolve/main/data/a.bin"
    for asked, expected in [("0-0", content[:1]), ("25590-", content[25590:]), ("-5", content[-5:])]:
        answer = get_session().get(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, expected)
    answer = get_session().get(url, headers={"Range": "bytes=25600-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */25600")


def test_an_lfs_file_must_have_been_uploaded(hub, api):
    operation = add("data/a.parquet")
    operation._upload_mode, operation._is_uploaded, operation._should_ignore = "lfs", True, False
    with pytest.raises(BadRequestError, match="does not exist"):
        commit(api, operation)
    assert len(hub.commits(REPO)) == 1


def test_an_identical_file_is_not_committed_again(hub, api):
    first = commit(api, add("data/a.parquet"), add("note.json", b"{}"))
    assert commit(api, add("data/a.parquet"), add("note.json", b"{}")).oid == first.oid
    assert hub.count("commit") == hub.count("upload") == 1


def test_bytes_already_there_are_not_sent_again(hub, api):
    commit(api, add("data/a.parquet"))
    commit(api, add("data/b.parquet"))
    assert (hub.count("commit"), hub.count("upload"), hub.count("verify")) == (2, 1, 1)


def test_deletions(hub, api):
    hub.write(REPO, {"data/a.parquet": b"1", "data/b.parquet": b"2", "note.json": b"{}"})
    commit(api, CommitOperationDelete("data/"))
    assert set(hub.files(REPO)) == {".gitattributes", "note.json"}
    with pytest.raises(RemoteEntryNotFoundError):
        commit(api, CommitOperationDelete("data/a.parquet"))


def test_2500_files_are_listed_in_pages(hub, api):
    hub.write(REPO, {f"data/{n // 100:02}/{n:04}.parquet": b"%d" % n for n in range(2500)})
    rows = list(api.list_repo_tree(recursive=True, **THERE))
    assert len({row.path for row in rows}) == len(rows) == 2500 + 25 + 1 + 1  # folders, data/ and .gitattributes
    assert hub.count("tree") == 3
    assert len(list(api.list_repo_tree(path_in_repo="data/07", **THERE))) == 100
    assert len(list(api.list_repo_tree(path_in_repo="data/07", expand=True, **THERE))) == 100
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(path_in_repo="absent", **THERE))
    fs = HfFileSystem(endpoint=hub.url, token=hub.token)
    assert len(fs.glob(f"datasets/{REPO}/data/1*/*.parquet")) == 1000


def test_revisions_stay_readable(hub, api):
    old = hub.write(REPO, {"data/a.parquet": b"old"})
    api.create_branch(branch="refs/side", **THERE)
    hub.write(REPO, {"data/a.parquet": b"new"})
    api.create_tag(tag="v1", **THERE)
    fs = HfFileSystem(endpoint=hub.url, token=hub.token)
    for revision, content in [(old, b"old"), ("refs/side", b"old"), ("main", b"new"), ("v1", b"new")]:
        assert fs.read_bytes(f"datasets/{REPO}/data/a.parquet", revision=revision) == content
        assert api.list_repo_files(revision=revision, **THERE) == [".gitattributes", "data/a.parquet"]
    refs = api.list_repo_refs(REPO, repo_type="dataset")
    assert {ref.name for ref in refs.branches + refs.tags} == {"main", "refs/side", "v1"}
    for error, revision, path in [
        (RevisionNotFoundError, "0" * 40, "data/a.parquet"),
        (RemoteEntryNotFoundError, "main", "absent"),
    ]:
        with pytest.raises(error):
            api.hf_hub_download(filename=path, revision=revision, **THERE)


def test_history_and_squash(hub, api):
    for n in range(60):
        hub.write(REPO, {"n.json": b"%d" % n}, f"write {n}")
    assert [c.title for c in api.list_repo_commits(**THERE)][:2] == ["write 59", "write 58"]
    assert hub.count("log") == 2
    pinned = hub.commits(REPO)[5].oid
    api.super_squash_history(**THERE)
    assert len(api.list_repo_commits(**THERE)) == 1
    assert hub.read(REPO, "n.json") == b"59"
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(REPO, revision=pinned)


def test_private_and_wrong_token(hub, api):
    hub.create_repo("user/secret", private=True)
    hub.write("user/secret", {"a.json": b"{}"})
    stranger, liar = HfApi(endpoint=hub.url, token=False), HfApi(endpoint=hub.url, token="hf_wrong")
    assert api.dataset_info("user/secret").private
    for repo_id in ("user/secret", "user/absent"):
        with pytest.raises(RepositoryNotFoundError) as error:
            stranger.dataset_info(repo_id)
        assert status_of(error) == 401
    for name in ("user/secret", REPO):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials") as error:
            liar.dataset_info(name)
        assert not isinstance(error.value, RepositoryNotFoundError)
    assert stranger.dataset_info(REPO).sha
    with pytest.raises(HfHubHTTPError, match="401"):
        commit(stranger, add("a.json", b"{}"))


def test_ten_thousand_files_in_a_folder():
    check_folders({f"data/{n}": None for n in range(MAX_FILES_PER_FOLDER)} | {"README.md": None})
    with pytest.raises(HubError, match="Too many files"):
        check_folders({f"data/{n}": None for n in range(MAX_FILES_PER_FOLDER + 1)})


def test_one_connection_serves_refusals_and_answers(hub):
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    seen = []
    for method, path in [("POST", "/api/repos/create"), ("GET", f"/api/datasets/{REPO}"), ("PUT", "/nowhere")]:
        connection.request(method, path, body=b"{}" * 50_000 if method != "GET" else None)
        response = connection.getresponse()
        response.read()
        seen.append((response.status, connection.sock is not None))
    assert seen == [(401, True), (200, True), (401, True)]


# --- limits of its own accord


def test_four_committers_meet_the_lock(hub, api):
    hub.commit_seconds = 0.15
    statuses, ready = Counter(), threading.Barrier(4)

    def work(n: int):
        operation = add(f"data/{n}.parquet", b"%d" % n)
        api.preupload_lfs_files(additions=[operation], **THERE)
        ready.wait()
        while statuses[n] != 200:
            try:
                commit(api, operation)
                statuses[n] = 200
            except HfHubHTTPError as error:
                assert "Another commit operation is in progress" in str(error)
                statuses[error.response.status_code] += 1
                time.sleep(0.03)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.files(REPO)) == 5
    assert statuses[409] == hub.count("commit", 409) > 0
    assert len(hub.commits(REPO)) == 5


def test_a_stale_parent_is_refused(hub, api):
    parent = hub.commits(REPO)[-1].oid
    commit(api, add("a.json", b"1"), parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        commit(api, add("b.json", b"2"), parent_commit=parent)
    assert status_of(error) == 412
    commit(api, add("b.json", b"2"))


def test_the_hour_is_rolling_and_the_headers_mislead(tmp_path):
    with HubServer(tmp_path, commits_per_hour=2) as hub:
        hub.create_repo(REPO)
        api = HfApi(endpoint=hub.url, token=hub.token)
        commit(api, add("a.json", b"1"))
        hub.write(REPO, {"b.json": b"2"})  # the limit is the repository's, not the writer's
        with pytest.raises(HfHubHTTPError, match=r"repository commits \(2 per hour\)") as error:
            commit(api, add("c.json", b"3"))
        assert status_of(error) == 429
        assert error.value.response.headers["RateLimit"] == '"api";r=949;t=271'
        hub.hour_seconds = 0.0  # the hour is over
        commit(api, add("c.json", b"3"))


def test_an_upload_takes_its_time(hub, api):
    hub.upload_bytes_per_second = 1_000_000
    started = time.monotonic()
    commit(api, add("data/a.parquet", os.urandom(300_000)))
    assert time.monotonic() - started > 0.3


def test_outage_and_return(hub, api):
    commit(api, add("a.json", b"1"))
    hub.down = True
    with pytest.raises(Exception, match="disconnected"):
        api.dataset_info(REPO)
    hub.down = False
    assert api.dataset_info(REPO).sha == hub.commits(REPO)[-1].oid


def test_an_outage_cuts_a_request_under_way(hub, api):
    hub.commit_seconds = 0.3
    committing = hub.store.repo(REPO).committing

    def cut():
        while not committing.locked():
            time.sleep(0.01)
        hub.down = True

    threading.Thread(target=cut).start()
    with pytest.raises(Exception, match="disconnected"):
        commit(api, add("a.json", b"1"))
    with committing:
        assert "a.json" in hub.files(REPO)  # it landed all the same


# --- injected faults


@pytest.mark.parametrize(
    ("action", "sign", "landed"),
    [
        ("409", "Another commit operation is in progress", False),
        ("412", "A commit has happened since", False),
        ("429", r"repository commits \(128 per hour\)", False),
        ("500", "500", False),
        ("503", "maximum queue size", False),
        ("landed_500", "500", True),
        ("landed_504", "504", True),
        ("drop", "disconnected", False),
        ("hang", "disconnected", False),
        ("landed_drop", "disconnected", True),
        ("landed_hang", "disconnected", True),
    ],
)
def test_commit_faults(hub, api, action, sign, landed):
    hub.faults.next("commit", ["ok", action])
    commit(api, add("a.json", b"1"))
    with pytest.raises(Exception, match=sign):
        commit(api, add("b.json", b"2"))
    assert ("b.json" in hub.files(REPO)) == landed
    assert hub.faults.fired == {f"commit_{action}": 1}
    assert hub.count("commit") == 2  # the client did not retry
    commit(api, add("c.json", b"3"))


def test_the_client_outlives_faults_before_the_commit(hub, api):
    hub.faults.next("preupload", ["429", "slow"])
    commit(api, add("a.json", b"1"))
    assert hub.faults.fired == {"preupload_429": 1, "preupload_slow": 1}


@pytest.mark.parametrize("as_path", [True, False])
def test_an_upload_cut_in_half_is_sent_again(hub, api, tmp_path, as_path):
    hub.faults.next("upload", ["drop"])
    content = os.urandom(1_000_000)
    (tmp_path / "a").write_bytes(content)
    commit(api, CommitOperationAdd("a.parquet", str(tmp_path / "a") if as_path else content))
    assert [r.status for r in hub.requests if r.kind == "upload"] == [0, 200]
    assert hub.read(REPO, "a.parquet") == content
    assert not list(hub.store.incoming.iterdir())


def test_a_listing_is_limited_in_the_middle(hub, api):
    hub.write(REPO, {f"{n // 100}/{n}.json": b"%d" % n for n in range(1200)})
    hub.faults.next("page", ["429"])
    rows = list(api.list_repo_tree(recursive=True, **THERE))
    assert len({row.path for row in rows}) == len(rows) == 1213
    assert [r.status for r in hub.requests if r.kind == "tree"] == [200, 429, 200]


def test_tree_429_spares_the_first_page():
    faults = Faults(rates={"tree_429": 1.0})
    assert faults.draw({"tree", "any", "api"}) is None
    assert faults.draw({"tree", "page", "any", "api"}) == ("page", "429")


def test_rates_are_the_same_in_every_run():
    def fates(**rates: float) -> list:
        faults = Faults(seed=7, rates=rates)
        return [fault and "_".join(fault) for fault in (faults.draw({"commit", "any", "api"}) for _ in range(200))]

    alone = fates(commit_409=0.2)
    assert alone == fates(commit_409=0.2)
    assert 20 <= alone.count("commit_409") <= 60  # 40 expected; outside these bounds with p < 0.001
    both = fates(commit_409=0.2, drop=0.2)
    assert [fate == "commit_409" for fate in both] == [fate == "commit_409" for fate in alone]
    assert both.count("any_drop") > 0


@pytest.mark.parametrize("name", ["commit_teapot", "comit_409"])
def test_an_unknown_fault_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        Faults(rates={name: 0.5})


# --- other processes


def test_as_a_process(tmp_path):
    faults = json.dumps({"script": {"commit": ["409"]}})
    command = [sys.executable, "-m", "tests.hubserver", "--root", str(tmp_path), "--faults", faults]
    server = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()

        def control(name: str, **body):
            data = json.dumps(body).encode() if body else None
            with urllib.request.urlopen(f"{url}/_test/{name}", data=data) as answer:
                return json.load(answer)

        api = HfApi(endpoint=url, token="hf_test")
        api.create_repo(repo_id=REPO, repo_type="dataset")
        with pytest.raises(HfHubHTTPError, match="409"):
            commit(api, add("a.json", b"1"))
        commit(api, add("a.json", b"1"))
        state = control(f"state?repo={REPO}")
        assert state["counts"]["commit"] == 2
        assert state["fired"] == {"commit_409": 1}
        assert state["files"]["a.json"]["size"] == 1
        assert state["commits"][-1]["paths"] == ["a.json"]
        control("faults", script={"info": ["500"]})
        with pytest.raises(HfHubHTTPError, match="500"):
            api.dataset_info(REPO)
        control("down", down=True)
        with pytest.raises(Exception, match="disconnected"):
            api.dataset_info(REPO)
        control("down", down=False)
        assert api.dataset_info(REPO).sha == state["commits"][-1]["oid"]
    finally:
        server.terminate()
        server.wait()


WITH_DATASETS = """
import sys
from datasets import Dataset, IterableDataset, load_dataset
from huggingface_hub import HfApi, HfFileSystem

rows = Dataset.from_dict({"id": list(range(100)), "text": [f"row {n}" for n in range(100)]})
rows.push_to_hub("user/pushed", num_shards=3)
old = HfApi().dataset_info("user/pushed").sha
assert load_dataset("user/pushed", split="train")["id"] == list(range(100))
assert [row["id"] for row in load_dataset("user/pushed", split="train", streaming=True)] == list(range(100))

rows.select(range(10)).to_iterable_dataset(num_shards=2).push_to_hub("user/pushed")
assert load_dataset("user/pushed", split="train").num_rows == 10
assert load_dataset("user/pushed", split="train", revision=old).num_rows == 100
assert len(list(load_dataset("user/pushed", split="train", revision=old, streaming=True))) == 100

fs = HfFileSystem()
paths = fs.glob("datasets/user/pushed/data/*.parquet")
assert len(paths) == 2, paths
with fs.open(paths[0]) as file:
    assert file.read(4) == b"PAR1"
    file.seek(-4, 2)
    assert file.read() == b"PAR1"
with fs.open("datasets/user/pushed/data/extra.parquet", "wb") as file:
    file.write(b"PAR1")
assert len(load_dataset("parquet", data_files="hf://datasets/user/pushed/data/train-*.parquet")["train"]) == 10
print("done")
"""


def test_datasets_reads_and_pushes(hub, tmp_path):
    env = os.environ | hub.env() | {"HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", WITH_DATASETS], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["done"], done.stderr
    assert hub.read("user/pushed", "data/extra.parquet") == b"PAR1"
    assert hub.count("commit", 200) == len(hub.commits("user/pushed")) - 1
    assert [r for r in hub.requests if r.kind == "unknown"] == []
