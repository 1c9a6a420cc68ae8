"""Updates: a new revision of the source costs what is new in it, and readers have a whole dataset at every moment."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from extract.cli import main
from hub.folder import FolderRepo
from tests.hubserver import HubServer
from tests.runs import CHECKOUT, MINILM, Bench, download, kill_group

CHUNK_ROWS = 20
SLOW = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.3"}
pytestmark = pytest.mark.usefixtures("minilm")

Rows = list[dict]


def row(name: str, words: str) -> dict:
    return {"id": name, "question": words, "answer": f"answer to {words}"}


FIRST = [row(f"r{i}", f"question {i}") for i in range(100)]
EMPTY = [{"id": "empty", "question": "", "answer": " "}]  # no record: it is listed as skipped


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    schema = pa.schema([(name, pa.string()) for name in ("id", "question", "answer")])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, row_group_size=30)
    return sink.getvalue()


def write(bench: Bench, rows: Rows, name: str = "source.parquet") -> None:
    (bench.root / name).write_bytes(parquet(rows))


def job(output: str = "./out", source: str = "./source.parquet", text: str = "{question} {answer}") -> list[str]:
    model = ["--model", MINILM, "--engine", "fake", "--chunk-rows", str(CHUNK_ROWS)]
    view = ["--fields", "question,answer"] if text == "fields" else ["--text-template", text]
    return ["--source", source, "--output", output, *model, *view]


def refused(bench: Bench, *arguments: str) -> str:
    """Run and return the error line."""
    assert bench.start(*arguments).wait(timeout=120) == 2, bench.log.read_text()
    return bench.log.read_text()


def records(folder: Path) -> pa.Table:
    """The records that readers get: those that the card names."""
    glob = re.search(r"path: (data/\S+)/\*\*", (folder / "README.md").read_text())
    assert glob is not None
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / glob[1]).rglob("*.parquet"))])


def counts(folder: Path) -> dict[str, int]:
    """Sums of the ledger's counts."""
    ledgers = list((folder / "_stillroom").glob("ledger*.jsonl"))
    assert len(ledgers) == 1
    parts = [json.loads(line)["counts"] for line in ledgers[0].read_text().splitlines()]
    return {name: sum(part[name] for part in parts) for name in ("rows", "records", "carried", "skipped", "padding")}


def loaded(bench: Bench, name: str = "./out", config: str = "default", revision: str = "main") -> dict[str, list]:
    """What `load_dataset` gives a reader with an empty cache: index and id."""
    code = (
        "import json; from datasets import load_dataset\n"
        f"d = load_dataset({name!r}, {config!r}, split='train', revision={revision!r})\n"
        "print(json.dumps({n: d[n][:] for n in ('index', 'id') if n in d.column_names}))"
    )
    env = bench.env | {"HF_DATASETS_CACHE": str(bench.root / f"datasets-{time.monotonic_ns()}")}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=bench.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expect(bench: Bench, rows: Rows, *, computed: int, folder: Path | None = None, **changes: str) -> None:
    """The output is that of a fresh build of `rows`, of which `computed` were computed; nothing old is left."""
    folder = folder or bench.root / "out"
    write(bench, rows, "fresh.parquet")
    assert in_process(bench, *job("./fresh", "./fresh.parquet", **changes), "--restart").exit_code == 0
    fresh, got = records(bench.root / "fresh"), records(folder)
    assert got.drop_columns("index").schema.names == fresh.drop_columns("index").schema.names
    assert got.equals(fresh), "every column, vectors included"
    total = counts(folder)
    assert total["records"] - total["carried"] == computed
    assert total["padding"] == 0 and total["rows"] == len(rows)
    files = {path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    assert len({parts[1] for parts in files if parts[0] == "data"}) == 1, files
    assert not [parts for parts in files if parts[-1] == "previous.json" or "receipts" in str(parts)]
    assert all(len(parts) == 2 for parts in files if parts[0] == "_stillroom"), files
    card = (folder / "README.md").read_text()
    assert f"{total['carried']:,} records of the same text were carried over, {computed:,} were computed" in card


CHANGES = {
    "appended": (FIRST + [row(f"n{i}", f"new {i}") for i in range(25)], 25),
    "edited, deleted, doubled": (
        [row(r["id"], "edited " + r["id"]) if i % 10 == 3 else r for i, r in enumerate(FIRST[5:80])] + FIRST[10:30],
        8,
    ),
    "moved, renamed": ([{**r, "id": "other " + r["id"]} for r in EMPTY + FIRST[50:] + FIRST[:50] + EMPTY], 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_is_new_is_computed(bench: Bench, name: str) -> None:
    rows, computed = CHANGES[name]
    write(bench, FIRST)
    bench.run(*job())
    write(bench, rows)
    bench.run(*job(), "--update")
    expect(bench, rows, computed=computed)


def test_two_vectors_a_row_of_which_one_may_be_missing(bench: Bench) -> None:
    first = [
        {**r, "answer": "" if i % 3 else r["answer"], "question": r["question"] if i % 2 else ""}
        for i, r in enumerate(FIRST)
    ]
    later = [first[7], *EMPTY, *first[:60], row("n", "new"), {"id": "half", "question": "half", "answer": ""}]
    write(bench, first)
    bench.run(*job(text="fields"), "--storage-dtype", "float16")
    write(bench, later)
    bench.run(*job(text="fields"), "--storage-dtype", "float16", "--update")
    got = records(bench.root / "out")
    assert got["embedding_question"].null_count and got["embedding_answer"].null_count
    assert counts(bench.root / "out")["carried"] == counts(bench.root / "out")["records"] - 2
    write(bench, later, "fresh.parquet")
    bench.run(*job("./fresh", "./fresh.parquet", text="fields"), "--storage-dtype", "float16")
    assert got.equals(records(bench.root / "fresh"))


def test_readers_have_the_old_dataset_until_the_new_one_is_whole(bench: Bench) -> None:
    """Killed in the middle, finished by --resume; then an update of the update, which --update finishes."""
    old, new, newest = FIRST + EMPTY, [row(f"n{i}", f"new {i}") for i in range(200)] + FIRST, FIRST[:30]
    write(bench, old)
    bench.run(*job())
    out = bench.root / "out"
    card = (out / "README.md").read_text()

    write(bench, new)
    kill_half_way(bench, out, *job(), "--update", "--max-batch-tokens", "64")
    assert loaded(bench)["id"] == [r["id"] for r in old[:-1]]
    assert loaded(bench, config="skipped")["index"] == [100]
    assert (out / "README.md").read_text() == card
    assert "readers have sha256:" in verify(bench, 1)

    bench.lose_disk()
    assert "is unfinished: it comes first" in bench.run(*job(), "--resume")
    assert loaded(bench)["id"] == [r["id"] for r in new]
    assert "skipped" not in (out / "README.md").read_text().split("---")[1]
    expect(bench, new, computed=200)
    verify(bench, 0, "--deep")
    next(out.glob("data/*/0000/*-000000000060.parquet")).unlink()
    assert "missing" in verify(bench, 0, "--repair")
    verify(bench, 0, "--deep")
    assert "nothing left to do" in bench.run(*job(), "--resume")
    assert "nothing left to do" in bench.run(*job(), "--update")

    write(bench, newest)
    bench.run(*job(), "--update", workers=2)
    expect(bench, newest, computed=0)
    assert loaded(bench)["index"] == list(range(30))
    verify(bench, 0, "--deep")

    bench.run(*job(), "--restart")
    assert counts(out)["carried"] == 0
    folders = {path.parent.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert folders == {".", "_stillroom", "assets", "data/train/0000"}


def kill_half_way(bench: Bench, out: Path, *arguments: str) -> None:
    """Kill a run once it has committed a chunk of a new generation."""
    bench.hub, hub = bench.hub | SLOW, bench.hub
    process = bench.start(*arguments)
    bench.hub = hub
    end = time.monotonic() + 60
    while not list(out.glob("_stillroom/receipts.*/*")):
        assert process.poll() is None and time.monotonic() < end, bench.log.read_text()
        time.sleep(0.02)
    kill_group(process)


def verify(bench: Bench, code: int, *flags: str) -> str:
    command = [sys.executable, "-c", "from extract.cli import main; main()", "verify", str(bench.root / "out"), *flags]
    env = bench.env | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=env, cwd=bench.root, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def in_process(bench: Bench, *arguments: str) -> Result:
    """Run without a process of its own, so that a test can reach in."""
    places = [str(part).replace("./", f"{bench.root}/") for part in arguments]
    return CliRunner().invoke(main, ["run", *places, "--cache-dir", str(bench.cache)])


class Killed(BaseException):
    """Nothing handles it."""


def kill_switch(bench: Bench, old: Rows, new: Rows, number: int) -> None:
    """Update from `old` to `new`, and end before one of the eight steps of the last commit, or after all."""
    write(bench, old)
    assert in_process(bench, *job()).exit_code == 0
    write(bench, new)
    steps = 0

    def count_down() -> None:
        nonlocal steps
        steps += 1
        if steps > number:
            raise Killed

    def commit(repo: FolderRepo, files: dict, deletes: list[str], message: str, **options: str | None) -> None:
        if message != "Complete the card":
            real_commit(repo, files, deletes, message, **options)
            return
        for path, content in files.items():
            count_down()
            real_commit(repo, {path: content}, [], message)
        for path in deletes:
            count_down()
            real_commit(repo, {}, [path], message)
        count_down()

    real_commit = FolderRepo.commit
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(FolderRepo, "commit", commit)
        in_process(bench, *job(), "--update")


@pytest.mark.parametrize("number", range(9))
def test_the_switch_can_be_killed_at_every_step(bench: Bench, number: int) -> None:
    """Each file that the last commit writes or takes away."""
    old, new = EMPTY + FIRST[:50], FIRST[20:50] + EMPTY
    kill_switch(bench, old, new, number)
    shown = loaded(bench)["id"]
    assert shown == ([r["id"] for r in old[1:]] if number == 0 else [r["id"] for r in new[:-1]])
    assert in_process(bench, *job(), "--resume").exit_code == 0
    assert records(bench.root / "out")["id"].to_pylist() == [r["id"] for r in new[:-1]]
    folders = {path.parent.relative_to(bench.root / "out").as_posix() for path in files_of(bench.root / "out")}
    folders.discard("assets")
    assert {len(folders), len({f.split("/")[1] for f in folders if "/" in f})} == {4, 1}, folders
    assert {"nothing left to do" in bench.run(*job(), flag) for flag in ("--resume", "--update")} == {True}


@pytest.mark.parametrize("number", [1, 3, 5])  # the card and its plot come before the ledger
def test_another_update_after_a_switch_that_was_killed(bench: Bench, number: int) -> None:
    """Readers have the new generation by then, and the old one may be half gone: the next update goes on from there."""
    kill_switch(bench, FIRST[:50], [*FIRST[40:50], *EMPTY, row("n", "new")], number)
    newest = [row("n", "new"), row("m", "newer"), *FIRST[40:50]]
    write(bench, newest)
    assert in_process(bench, *job(), "--update").exit_code == 0
    expect(bench, newest, computed=1 if number > 2 else 2)


def test_what_an_update_refuses(bench: Bench) -> None:
    write(bench, FIRST[:40])
    assert "complete: 2 units" in bench.run(*job(), "--update"), "with no job in the output it begins one"
    assert "nothing left to do" in bench.run(*job(), "--update"), "with the same revision it resumes"
    assert "exclude each other" in refused(bench, *job(), "--update", "--restart")
    write(bench, FIRST[:45])
    told = refused(bench, *job(), "--resume")
    assert "it differs in revision: 'sha256:" in told and "--update goes on with this revision" in told
    told = refused(bench, *job(text="{question}"), "--update")
    assert "it differs in text_template:" in told and "--update" not in told and "revision" not in told
    assert "was made of './source.parquet'" in refused(bench, *job(source="user/other"), "--update")


def test_local_files_that_change_again_begin_another_update(bench: Bench) -> None:
    """What the unfinished one wants can no longer be read."""
    write(bench, FIRST)
    bench.run(*job())
    out, card = bench.root / "out", (bench.root / "out/README.md").read_text()
    new = [row(f"n{i}", f"new {i}") for i in range(80)]
    write(bench, new + FIRST)
    kill_half_way(bench, out, *job(), "--update", "--max-batch-tokens", "64")
    write(bench, FIRST + new[:10])
    assert "--update goes on with this revision" in refused(bench, *job(), "--resume")
    kill_half_way(bench, out, *job(), "--update", "--max-batch-tokens", "64")
    assert (out / "README.md").read_text() == card and loaded(bench)["id"] == [r["id"] for r in FIRST]
    write(bench, FIRST)
    assert "the source is again what it was" in bench.run(*job(), "--update")
    assert loaded(bench)["id"] == [r["id"] for r in FIRST]
    assert {path.name for path in (out / "data").iterdir()} == {"train"} and counts(out)["carried"] == 0


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def hub(tmp_path: Path, bench: Bench) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        bench.hub = dict(server.env())
        yield server


def publish(hub: HubServer, rows: Rows) -> str:
    half = len(rows) // 2
    return hub.write(
        "user/source", {"data/train-0.parquet": parquet(rows[:half]), "data/train-1.parquet": parquet(rows[half:])}
    )


def test_a_source_and_an_output_on_the_hub(bench: Bench, hub: HubServer) -> None:
    """Killed half way, its disk lost; the source goes on meanwhile; the switch lands in a commit that answers 500."""
    versions = [FIRST + EMPTY, FIRST[:60] + [row(f"n{i}", f"new {i}") for i in range(80)] + FIRST[60:], FIRST[10:90]]
    options = job("tester/x", "user/source")
    hub.create_repo("user/source")
    shas = [publish(hub, versions[0])]
    bench.run(*options)
    shas.append(publish(hub, versions[1]))
    assert "nothing left to do" in bench.run(*options, "--resume"), "a resume stays at the revision that it began with"

    num_commits = len(hub.commits("tester/x"))
    bench.hub, env = bench.hub | SLOW, bench.hub
    process = bench.start(*options, "--update", "--max-batch-tokens", "64")
    end = time.monotonic() + 60
    while not any(path.startswith("data/train.") for path in hub.files("tester/x")):
        assert process.poll() is None and time.monotonic() < end, bench.log.read_text()
        time.sleep(0.02)
    kill_group(process)
    bench.hub = env
    bench.lose_disk()
    shas.append(publish(hub, versions[2]))
    told = bench.run(*options, "--update", workers=2)
    assert f"the update from {shas[0]} to {shas[1]} is unfinished: it comes first" in told
    expect(bench, versions[1], computed=80, folder=download(hub.env(), "tester/x", bench.root / "second"))

    hub.faults.next("commit", ["landed_500", "ok", "landed_500"])
    assert f"updating from {shas[1]} to {shas[2]}" in bench.run(*options, "--update")
    third = download(hub.env(), "tester/x", bench.root / "third")
    expect(bench, versions[2], computed=0, folder=third)
    assert f"from revision `{shas[1]}` of the source to `{shas[2]}`" in (third / "README.md").read_text()
    assert hub.faults.fired == {"commit_landed_500": 2}

    cards = [commit for commit in hub.commits("tester/x")[num_commits:] if "README.md" in commit.paths]
    names = [sorted({path.split("/")[1] for path in commit.tree if path.startswith("data/")}) for commit in cards]
    assert names == [[f"train.{sha[:8]}"] for sha in shas[1:]], "each switch is one commit"
    begun = cards[0].parent
    assert begun is not None
    assert loaded(bench, "tester/x", revision=begun)["id"] == [r["id"] for r in FIRST]
    assert loaded(bench, "tester/x")["id"] == [r["id"] for r in versions[2]]


def test_jobs_that_share_an_update_and_take_some_rows_only(bench: Bench) -> None:
    """The rows of each source are drawn by position: what both draws have is carried."""
    options = [*job(), "--sample-per-source", "30", "--source-column", "id"]
    first = [{**r, "id": "ab"[i % 2]} for i, r in enumerate(FIRST)]
    write(bench, first)
    bench.run(*options)
    drawn = set(records(bench.root / "out")["content_hash"].to_pylist())
    write(bench, first[2:] + [{**row("", f"new {i}"), "id": "c"} for i in range(10)])
    assert "2 of 4 units left" in bench.run(*options, "--update", "--num-jobs", "2", "--job-index", "1")
    assert set(records(bench.root / "out")["content_hash"].to_pylist()) == drawn
    assert "complete: 4 units" in bench.run(*options, "--update", "--num-jobs", "2", "--job-index", "0")
    got = records(bench.root / "out")
    assert got["id"].to_pylist().count("c") == 10 and len(got) == 70
    assert counts(bench.root / "out")["carried"] == len(drawn.intersection(got["content_hash"].to_pylist())) > 20
    assert not list(bench.cache.glob("jobs/*/carry"))


def test_a_source_that_lost_all_its_rows_and_gets_them_back(bench: Bench) -> None:
    write(bench, FIRST[:30])
    bench.run(*job())
    write(bench, [])
    assert "complete: 0 units" in bench.run(*job(), "--update")
    assert {path.name for path in files_of(bench.root / "out")} >= {"README.md", "job.json"}
    assert not list(bench.root.glob("out/*/*/*/*.parquet"))
    write(bench, FIRST[:30])
    bench.run(*job(), "--update")
    expect(bench, FIRST[:30], computed=30)


def test_an_output_of_a_version_without_hashes_is_computed_again(bench: Bench) -> None:
    write(bench, FIRST[:30])
    bench.run(*job())
    for path in (bench.root / "out/data").rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns("content_hash"), path)
    write(bench, FIRST[:40])
    bench.run(*job(), "--update")
    expect(bench, FIRST[:40], computed=40)
