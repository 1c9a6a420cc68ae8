"""`stillroom verify` on a Hub dataset that a person has damaged with commits of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hub import reader
from tests.hubserver import HubServer
from tests.hubstore import Commit, Faults, FileInfo
from tests.runs import read_vectors, use_hub
from tests.test_verify import CHUNK_ROWS, DAMAGE, MINILM, chunk, other_columns, rewrite, run, write_source

TEMPLATE = "tester/whole"


@dataclass
class Dataset:
    """A dataset of the test Hub, and a person's clone of it."""

    hub: HubServer
    name: str
    clone: Path
    cache: Path

    def verify(self, *flags: str) -> dict:
        result = run(self.clone, "verify", self.name, "--json", "--cache-dir", str(self.cache), *flags)
        report = json.loads(result.stdout)
        is_clean = report["is_complete"] and not report["problems"]
        assert result.exit_code == (0 if is_clean else 1), result.output
        return report

    @property
    def files(self) -> dict[str, FileInfo]:
        return {path: replace(file, commit="") for path, file in self.hub.files(self.name).items()}

    @property
    def commits(self) -> list[Commit]:
        return self.hub.commits(self.name)

    def pull(self) -> Path:
        shutil.rmtree(self.clone, ignore_errors=True)
        for path in self.files:
            (self.clone / path).parent.mkdir(parents=True, exist_ok=True)
            (self.clone / path).write_bytes(self.hub.read(self.name, path))
        return self.clone

    def push(self) -> None:
        """Commit what differs in the clone, as any tool does."""
        there = {path.relative_to(self.clone).as_posix(): path for path in self.clone.rglob("*") if path.is_file()}
        changed = [p for p in there if p not in self.files or self.hub.read(self.name, p) != there[p].read_bytes()]
        operations = [CommitOperationAdd(path, str(there[path])) for path in changed]
        operations += [CommitOperationDelete(path) for path in self.files.keys() - there.keys()]
        HfApi().create_commit(self.name, operations, commit_message="Tidy up", repo_type="dataset")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "chat.parquet")


@pytest.fixture(autouse=True)
def client(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults = Faults(reset_seconds=0)
    use_hub(monkeypatch, server)


@pytest.fixture(scope="module")
def whole(server: HubServer, source: Path, tmp_path_factory) -> str:
    """A complete dataset, made by a run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_hub(monkeypatch, server)
        build(TEMPLATE, source, tmp_path_factory.mktemp("cache"))
    return TEMPLATE


def build(output: str, source: Path, cache: Path, *extra: str) -> None:
    job = ["--model", MINILM, "--engine", "fake", "--chunk-rows", str(CHUNK_ROWS), "--resume"]
    result = run(cache, "run", *job, "--source", str(source), "--output", output, "--cache-dir", str(cache), *extra)
    assert result.exit_code == 0, result.output


@pytest.fixture
def dataset(server: HubServer, whole: str, tmp_path: Path) -> Dataset:
    """A copy of it to damage, and an empty cache."""
    name = f"tester/{tmp_path.name}"
    made, repo = server.store.repo(whole), server.store.create(name)
    repo.lfs.update(made.lfs)
    repo.record("main", dict(made.head("main").tree), "Copy", ())
    return Dataset(server, name, tmp_path / "clone", tmp_path / "cache")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_repaired_alone(name: str, dataset: Dataset, tmp_path: Path) -> None:
    before = read_vectors(dataset.pull())
    damage, expected, words = DAMAGE[name]
    damage(dataset.clone)
    dataset.push()
    damaged, commit = dataset.files, dataset.commits[-1]
    for flags in ((), ("--deep",)):
        problems = dataset.verify(*flags)["problems"]
        assert {(problem["unit"], problem["repair"]) for problem in problems} == expected, problems
    assert any(words in problem["what"] for problem in problems), problems
    assert dataset.commits[-1] is commit, "a proof changes nothing"

    report = dataset.verify("--repair")
    assert {(problem["unit"], problem["repair"]) for problem in report["repaired"]} == expected
    assert report["problems"] == []
    assert dataset.verify("--deep")["problems"] == []
    mended = [chunk(Path(), n).as_posix() for n, repair in sorted(expected, key=str) if repair == "compute"]
    mended += [path.replace("data/", "skipped/", 1) for path in mended]
    mended += [problem["path"] for problem in problems if problem["repair"] == "delete"]
    index = next(n for n, made in enumerate(dataset.commits) if made.oid == commit.oid)
    touched = {path for made in dataset.commits[index + 1 :] for path in made.paths}
    assert {path for path in touched if path.endswith(".parquet")} <= set(mended)
    noted = {path for path in touched if path == "README.md" or path.startswith("_stillroom/")}
    assert {p: f.oid for p, f in dataset.files.items() if p not in {*mended, *noted}} == {
        p: f.oid for p, f in damaged.items() if p not in {*mended, *noted}
    }
    computed = sum(repair == "compute" for _, repair in expected)  # a unit that is ready does not wait for the next
    assert len(dataset.commits) - index - 1 <= 2 + max(1, computed), (
        "what is damaged goes, units come, the card is complete"
    )
    after = read_vectors(dataset.pull())
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])


def test_an_undamaged_dataset_is_proved_in_few_requests(dataset: Dataset, tmp_path: Path) -> None:
    dataset.hub.requests.clear()
    assert dataset.verify()["problems"] == []
    counts = {kind: n for kind, n in dataset.hub.counts().items() if kind != "unknown"}  # the client's own
    # the commit, the list; job.json, the ledger, a schema of each kind, and one range of each of the 5 files
    assert counts == {"info": 1, "tree": 1, "resolve": 2 + 5 + 5}
    assert sum(r.status == 206 for r in dataset.hub.requests) == 10

    dataset.hub.requests.clear()
    report = dataset.verify("--deep")
    assert report["problems"] == [] and report["revision"] == dataset.commits[-1].oid
    assert sum(r.status == 200 and r.path.endswith(".parquet") for r in dataset.hub.requests) == 5, "each file once"


@pytest.mark.parametrize("flags", [(), ("--deep",)])
def test_faults_of_the_line_are_no_damage(dataset: Dataset, flags: tuple[str, ...]) -> None:
    rates = {"resolve_429": 0.03, "resolve_500": 0.2, "resolve_drop": 0.2, "tree_drop": 0.3, "tree_504": 0.2}
    dataset.hub.faults = Faults(seed=3, rates=rates, reset_seconds=0)
    for _ in range(3):
        assert dataset.verify(*flags)["problems"] == []
    assert sum(dataset.hub.faults.fired.values()) > 10


@pytest.mark.parametrize("fault", ["429", "503", "drop"])
def test_an_outage_in_the_middle_cannot_be_told_from_nothing(
    dataset: Dataset, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "READ_TRIES", 2)
    script = {"resolve": ["ok"] * 4 + [fault] * 100}
    dataset.hub.faults = Faults(script=script, reset_seconds=0)
    result = run(dataset.clone, "verify", dataset.name, "--repair", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{dataset.name} cannot be verified" in result.stderr and len(dataset.commits) == 2
    assert sum(r.kind == "resolve" for r in dataset.hub.requests) < 2000


def test_what_is_not_there_is_one_line(server: HubServer, tmp_path: Path) -> None:
    server.store.create("tester/other") if "tester/other" not in server.store.repos else None
    for name, words in (("tester/nothing", "tester/nothing"), ("tester/other", "has no _stillroom/job.json")):
        result = run(tmp_path, "verify", name)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
        assert words in result.stderr
    assert "tester/nothing" not in server.store.repos


def test_a_growing_dataset_is_incomplete_and_not_damaged(server: HubServer, source: Path, tmp_path: Path) -> None:
    dataset = Dataset(server, "tester/growing", tmp_path / "clone", tmp_path / "cache")
    build(dataset.name, source, tmp_path / "half", "--num-jobs", "2", "--job-index", "0")
    missing = [{"unit": n, "start": 100 * n, "stop": 100 * n + 100} for n in (1, 3)]
    report = dataset.verify("--deep")
    assert (report["missing"], report["problems"], report["is_complete"]) == (missing, [], False)
    shown = run(tmp_path, "verify", dataset.name)
    assert "incomplete: 2 of 4 units are not there yet; run again with --resume" in shown.output
    assert "problem" not in shown.output

    rewrite(chunk(dataset.pull(), 2), other_columns)
    dataset.push()
    report = dataset.verify("--repair")  # takes the unit out: a resumed run computes it with the others
    assert {problem["unit"] for problem in report["repaired"]} == {2} and report["problems"] == []
    assert [unit["unit"] for unit in report["missing"]] == [1, 2, 3]
    before = dataset.files[chunk(Path(), 0).as_posix()]
    build(dataset.name, source, tmp_path / "rest")
    assert dataset.verify("--deep")["is_complete"]
    assert dataset.files[chunk(Path(), 0).as_posix()] == before


def test_a_dataset_without_its_last_card_is_incomplete(dataset: Dataset, source: Path, tmp_path: Path) -> None:
    """As a kill between the last chunks and the card leaves it."""
    meta = dataset.pull() / "_stillroom"
    (meta / "receipts").mkdir()
    (meta / "ledger.jsonl").rename(meta / "receipts/000000000000-12345678.jsonl")
    dataset.push()
    report = dataset.verify()
    assert (report["missing"], report["problems"], report["is_complete"]) == ([], [], False)
    assert "the last card is not" in run(tmp_path, "verify", dataset.name).output
    build(dataset.name, source, tmp_path / "again")
    assert dataset.verify()["is_complete"]
