"""Whole runs in processes of their own, with the fake engine and MiniLM's real tokenizer."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.hubserver import HubServer
from tests.runs import CHECKOUT, MINILM, Bench, read_vectors, workers_of

RUN = str(CHECKOUT / "extract" / "run.py")
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
SLOW = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.2"}
pytestmark = pytest.mark.usefixtures("minilm")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source.jsonl", 120)


def write_source(path: Path, num_rows: int) -> Path:
    """Chats of which every 17th has no answer and no question: it gives no record."""
    with path.open("w") as file:
        for n in range(num_rows):
            words = "" if n % 17 == 16 else f"answer {n} " * (1 + n % 9)
            row = {
                "id": f"r{n}",
                "messages": [{"role": "assistant", "content": words}],
                "dataset_source": "abc"[n % 3],
            }
            file.write(json.dumps(row) + "\n")
    return path


def job(source: Path | str, output: str = "./out", chunk_rows: int = 20) -> list[str]:
    options = [
        "--engine",
        "fake",
        "--model",
        MINILM,
        "--source",
        source,
        "--output",
        output,
        "--chunk-rows",
        chunk_rows,
    ]
    return list(map(str, options))


def start(bench: Bench, *arguments: str, launcher: tuple[str, ...] = (), cwd: Path | None = None, **env: str):
    command = [sys.executable, *launcher, RUN, *arguments]
    return subprocess.Popen(
        command,
        env=bench.env | env,
        cwd=cwd or bench.root,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(bench: Bench, *arguments: str, code: int = 0, **options) -> str:
    """Run to the end and return what it said on stderr."""
    process = start(bench, *arguments, **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert out == "", "what a run says goes to stderr"
    assert "Traceback" not in err, err
    return err


def expected(num_rows: int = 120) -> list[int]:
    return [n for n in range(num_rows) if n % 17 != 16]


def complete(folder: Path, num_rows: int = 120) -> None:
    """All rows once, in order, and the card says so."""
    assert read_vectors(folder)[0].tolist() == expected(num_rows)
    skipped = [pq.read_table(path) for path in sorted(folder.glob("skipped/**/*.parquet"))]
    assert [n for part in skipped for n in part["index"].to_pylist()] == list(range(16, num_rows, 17))
    assert f"**Complete**: {len(expected(num_rows))} records" in (folder / "README.md").read_text()
    assert {p.name for p in (folder / "_stillroom").iterdir()} == {"job.json", "ledger.jsonl"}
    assert not list(folder.rglob(".*"))


# --- (a) a plain folder


def test_a_folder_from_begin_to_restart(bench, source, tmp_path):
    out = tmp_path / "out"
    assert "complete: 6 units" in go(bench, *job(source))
    complete(out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}

    assert "nothing left to do" in go(bench, *job(source), "--resume")
    bench.lose_disk()
    go(bench, "--engine", "fake", "--model", MINILM, "--source", str(source), "--output", "./out", "--resume")
    assert stamps == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}, "a resume of all does nothing"

    err = go(bench, *job(source), code=2)
    assert "--resume goes on with it, --restart deletes it" in err and len(err.splitlines()) == 1

    go(bench, *job(source), "--restart", "--text-template", "{response_text}!")
    complete(out)
    assert json.loads((out / "_stillroom/job.json").read_text())["job"]["text_template"] == "{response_text}!"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--text-template", "{user_prompt}"], "text_template: None -> '{user_prompt}'"),
        (["--chunk-rows", "30"], "chunk_rows: 20 -> 30"),
        (["--model", "other-model"], "model_revision: "),
        (["--source", "source"], "revision: 'sha256:"),
    ],
)
def test_another_job_is_refused_before_any_model_is_loaded(bench, source, minilm, tmp_path, change, says):
    go(bench, *job(source), "--limit", "20")
    if change[0] == "--model":
        (tmp_path / "other-model").mkdir()
        for path in (p for p in minilm.rglob("*") if p.is_file()):
            copy = tmp_path / "other-model" / path.relative_to(minilm)
            copy.parent.mkdir(exist_ok=True)
            # other weights, and such as cannot be loaded
            copy.write_bytes(b"no weights" if path.suffix in (".safetensors", ".bin") else path.read_bytes())
        change = ["--model", "./other-model"]
    if change[0] == "--source":
        source.write_text(source.read_text() + "{}\n")
        change = []
    for flag in ("--resume", ""):
        err = go(bench, *job(source), "--limit", "20", *change, *filter(None, [flag]), code=2)
        assert "holds another job; it differs in" in err and says in err
        assert err.splitlines()[0].startswith("stillroom: ")


# --- (b) the test Hub


@pytest.fixture
def hub(tmp_path):
    with HubServer(tmp_path / "hub") as server:
        yield server


READ = """
from datasets import load_dataset
name, expected = "tester/x", {expected}
regular = load_dataset(name, split="train")
assert regular["index"][:] == expected, regular["index"][:]
assert [row["index"] for row in load_dataset(name, split="train", streaming=True)] == expected
assert load_dataset(name, "skipped", split="train")["index"][:] == {skipped}
assert regular.features["embedding"].length == 384
"""


def test_a_dataset_on_the_hub(bench, source, hub):
    bench.hub = hub.env()
    assert "load_dataset('tester/x')" in go(bench, *job(source, "x"))
    assert hub.store.repo("tester/x").private
    paths = set(hub.files("tester/x"))
    assert {p for p in paths if p.startswith("_")} == {"_stillroom/job.json", "_stillroom/ledger.jsonl"}
    code = READ.format(expected=expected(), skipped=list(range(16, 120, 17)))
    done = subprocess.run([sys.executable, "-c", code], env=bench.env, cwd=bench.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    num_commits, num_uploads = hub.count("commit"), hub.count("upload")
    bench.lose_disk()
    err = go(bench, *job(source, "tester/x"), "--resume")
    assert "nothing left to do" in err
    assert (hub.count("commit"), hub.count("upload")) == (num_commits, num_uploads)


def test_the_first_commit_that_lands_has_a_card(bench, source, hub):
    """Without one, `load_dataset` takes the skipped rows for data."""
    bench.hub = hub.env()
    hub.faults.next("commit", ["ok", "500"])
    go(bench, *job(source, "x"))
    first = next(c for c in hub.commits("tester/x") if any(p.startswith("data/") for p in c.paths))
    assert "README.md" in first.paths


def test_a_token_that_may_not_write_is_one_line(bench, source, hub):
    bench.hub = hub.env() | {"HF_TOKEN": "hf_abcdefghijkl"}
    err = go(bench, *job(source, "x"), code=1)
    assert "hf auth login" in err and "abcdefghijkl" not in err and len(err.splitlines()) == 1


# --- (c), (d) launchers


def test_two_workers(bench, tmp_path):
    source = write_source(tmp_path / "source.jsonl", 240)
    launcher = (*TORCHRUN, "--nproc_per_node", "2")
    env = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.05"}
    err = go(bench, *job(source, chunk_rows=10), launcher=launcher, **env)
    assert err.count("nothing left to do") == 1
    complete(tmp_path / "out", 240)
    assert "nothing left to do" in go(bench, *job(source, chunk_rows=10), "--resume", launcher=launcher)


def test_one_workers_error_is_everybodys(bench, source):
    process = start(
        bench,
        *job(source),
        "--device",
        "cpu",
        "--cache-dir",
        "/dev/null/x",
        launcher=(*TORCHRUN, "--nproc_per_node", "2"),
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Not a directory" in err


def test_from_another_folder_with_a_job_file(bench, source, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lines = {"engine": "fake", "model": MINILM, "source": str(source), "output": "./there", "chunk_rows": 50}
    (elsewhere / "job.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in lines.items()))
    accelerate = ("-m", "accelerate.commands.launch")
    go(bench, "--resume", "--max-runtime-minutes", "55", launcher=accelerate, cwd=elsewhere)
    complete(elsewhere / "there")
    assert "nothing left to do" in go(bench, "--resume", cwd=elsewhere)


# --- (e) signals


def begun(bench: Bench, process) -> None:
    """Wait until batches are being computed."""
    end = time.monotonic() + 40
    while not list(bench.cache.glob("jobs/*/partial/*.part")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_drains_and_a_resume_completes(bench, source, tmp_path, workers):
    launcher = (*TORCHRUN, "--nproc_per_node", "2") if workers == 2 else ()
    options = [*job(source, chunk_rows=10), "--max-batch-tokens", "64"]
    process = start(bench, *options, launcher=launcher, **SLOW)
    begun(bench, process)
    time.sleep(2)
    started = time.monotonic()
    for pid in workers_of(process) if workers == 2 else [process.pid]:
        os.kill(pid, signal.SIGTERM)
    _, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    assert time.monotonic() - started < 30
    left = re.search(r"stopped \(SIGTERM\): (\d+) of 12 units left; run again with --resume$", err.strip())
    assert left, err
    num_chunks = len(list((tmp_path / "out").glob("data/**/*.parquet")))
    assert int(left[1]) == 12 - num_chunks > 0
    go(bench, *options, "--resume", launcher=launcher)
    complete(tmp_path / "out")


@pytest.mark.slow
def test_sigterm_in_an_outage_with_pending_full(bench, tmp_path, hub):
    """The uploads cannot end and there is no room for more: the run leaves all the same, and its chunks stay."""
    bench.hub = hub.env()
    source = write_source(tmp_path / "source.jsonl", 600)
    options = [*job(source, "x", chunk_rows=20), "--pending-gb", "0.001"]
    process = start(bench, *options, STILLROOM_FAKE_SECONDS_PER_BATCH="0.01")
    begun(bench, process)
    hub.down = True
    end = time.monotonic() + 40
    while len(list(bench.cache.glob("jobs/*/pending/receipts/*.json"))) < 10 and time.monotonic() < end:
        time.sleep(0.1)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(12)
    hub.down = False
    _, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    assert time.monotonic() - started < 30
    go(bench, *options, "--resume")
    index = sorted(int(p.split("/")[-1].split("-")[0]) for p in hub.files("tester/x") if p.startswith("data/"))
    assert index == list(range(0, 600, 20))


def test_sigint_twice_leaves_at_once_and_loses_nothing(bench, source, tmp_path):
    options = [*job(source, chunk_rows=10), "--max-batch-tokens", "64"]
    process = start(bench, *options, STILLROOM_FAKE_SECONDS_PER_BATCH="6")
    begun(bench, process)
    process.send_signal(signal.SIGINT)
    time.sleep(2.3)  # sooner, it is the same Ctrl-C, passed on by the launcher
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - started < 2, err
    assert "Traceback" not in err
    go(bench, *options, "--resume")
    complete(tmp_path / "out")


# --- (f) the time is up


def test_the_deadline(bench, source, tmp_path):
    options = [*job(source, chunk_rows=10), "--max-batch-tokens", "64"]
    started = time.monotonic()
    err = go(bench, *options, "--max-runtime-minutes", "0.25", **SLOW)
    assert time.monotonic() - started < 18
    left = re.search(
        r"stopped \(--max-runtime-minutes\): (\d+) of 12 units left; run again with --resume$", err.strip()
    )
    assert left and int(left[1]) == 12 - len(list((tmp_path / "out").glob("data/**/*.parquet")))
    more = ["--resume", "--max-runtime-minutes", "0.2", "--incomplete-exit-code", "75"]
    go(bench, *options, *more, code=75, STILLROOM_FAKE_SECONDS_PER_BATCH="3")
    go(bench, *options, "--resume", "--incomplete-exit-code", "75")
    complete(tmp_path / "out")


# --- (g) a hostile source


def test_a_hostile_source(bench, tmp_path):
    def said(content):
        return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]}

    rows = [
        {"id": 1},
        {"id": 1, "messages": None},
        {"id": 1, "messages": "text"},
        {"id": 1, "messages": {"role": "user"}},
        {"id": 1, "messages": []},
        {"id": 1, "messages": [None, 3, "x"]},
        {"messages": [{"role": "wizard", "content": "spell"}, {"role": None, "content": "x"}]},
        {"messages": [{"content": "no role"}]},
        *map(said, [None, 3, True, ["a", "b"], [{"type": "text", "text": "part"}, {"type": "image"}], {"a": 1}]),
        said("lone \ud800 surrogate \udfff"),
        said("nul \x00 bytes"),
        said("x " * 500_000),
        said("x" * 1_000_000),
        {"id": {"nested": [1]}, "messages": [{"role": "user", "content": "no assistant"}]},
        {"id": "same", **said("one")},
        {"id": "same", **said("two")},
        said(""),
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "\n"}]},
        said("<think>" * 50),
        said("</think></think>"),
    ]
    lines = [json.dumps(row) for row in rows]
    lines += ['{"broken": ', "[1, 2]", "null", '"text"', "{}", '{"messages": NaN}', "\x00\x01", "[" * 3000]
    source = tmp_path / "hostile.jsonl"
    source.write_bytes("\n".join(lines).encode() + b'\n\n{"messages": "\xff\xfe"}\n')
    num_rows = len(lines) + 1
    go(bench, *job(source, chunk_rows=7), "--keep-text")
    out = tmp_path / "out"
    counts = [json.loads(line)["counts"] for line in (out / "_stillroom/ledger.jsonl").read_text().splitlines()]
    records = sum(pq.read_metadata(p).num_rows for p in out.glob("data/**/*.parquet"))
    skipped = [row for p in out.glob("skipped/**/*.parquet") for row in pq.read_table(p).to_pylist()]
    assert records + len(skipped) == num_rows == sum(c["rows"] for c in counts)
    assert sorted([*read_vectors(out)[0].tolist(), *(row["index"] for row in skipped)]) == list(range(num_rows))
    card = (out / "README.md").read_text()
    for reason in {row["reason"] for row in skipped}:
        number = sum(row["reason"] == reason for row in skipped)
        assert f"| … {reason} | {number} |" in card
    assert {"invalid_json", "empty_text"} < {row["reason"] for row in skipped}
    assert records >= 10
