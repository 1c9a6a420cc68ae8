"""How far an output is, told by `stillroom status`: python -m pytest tests/test_status.py."""

import json
import os
import time

import pytest
from click.testing import CliRunner

from extract.cli import main
from extract.lock import CacheLock, is_held
from extract.settings import Settings
from extract.status import as_text, look
from extract.summary import describe_totals, duration, size, summarize
from hub.budget import HOUR
from tests.hubserver import HubServer
from tests.runs import MINILM, Bench, kill_group, use_hub

ROWS, CHUNK_ROWS = 60, 10


def job(source, *more):
    return ["--source", str(source), "--model", MINILM, "--engine", "fake", "--chunk-rows", str(CHUNK_ROWS), *more]


def status(output, bench):
    """The status as programs get it, from the real command."""
    done = CliRunner().invoke(main, ["status", str(output), "--json", "--cache-dir", str(bench.cache)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def text(output, bench):
    return "\n".join(as_text(look(str(output), "default", Settings(cache_dir=str(bench.cache)))))


@pytest.fixture
def bench(tmp_path, minilm):
    return Bench(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as server:
        use_hub(monkeypatch, server)
        yield server


def test_a_run_that_goes_on_is_killed_and_goes_on_to_its_end(bench, chat_parquet, monkeypatch):
    monkeypatch.chdir(bench.root)
    bench.options["STILLROOM_FAKE_SECONDS_PER_BATCH"] = "0.7"
    running = bench.start(*job(chat_parquet), "--output", "./out", "--max-batch-tokens", "300")
    end, seen = time.monotonic() + 60, {}
    while seen.get("seconds_left") is None:  # there is a rate once this run has counted a unit
        seen = status("./out", bench) if (bench.root / "out/_stillroom/receipts").exists() else {}
        assert time.monotonic() < end and running.poll() is None, bench.log.read_text()
        time.sleep(0.1)
    assert (seen["state"], seen["units"]) == ("running", 6)
    assert 1 <= seen["units_done"] < 6 and seen["rows"] == CHUNK_ROWS * seen["units_done"]
    assert seen["percent"] == pytest.approx(100 * seen["units_done"] / 6, abs=0.01)
    (here,) = seen["here"]
    assert here["is_running"] and here["seconds_since_heartbeat"] < 20 and here["run"]["tokens_per_second"] > 0
    assert seen["seconds_left"] == here["run"]["seconds_left"] > 0
    assert "  state    running on this machine\n" in text("./out", bench)

    kill_group(running)
    seen = status("./out", bench)
    assert seen["state"] == "growing" and not seen["here"][0]["is_running"]
    assert "growing, with no run on this machine" in text("./out", bench)

    bench.options.clear()
    told = bench.run(*job(chat_parquet), "--output", "./out", "--resume")
    seen = status("./out", bench)
    assert (seen["state"], seen["units"], seen["units_done"], seen["percent"]) == ("complete", 6, 6, 100)
    assert (seen["rows"], seen["records"], seen["skipped"], seen["seconds_left"]) == (ROWS, ROWS, {}, None)
    assert "this run: " in told and f"{ROWS} records of {ROWS} rows, {seen['tokens']:,} tokens" in told


def test_another_machine_knows_the_output_and_the_source(bench, chat_parquet, monkeypatch):
    monkeypatch.chdir(bench.root)
    bench.run(*job(chat_parquet), "--output", "./out", "--num-jobs", "2", "--job-index", "0")
    assert [run["run"]["units"] for run in status("./out", bench)["here"]] == [6]
    bench.lose_disk()
    seen = status("./out", bench)
    assert (seen["state"], seen["units"], seen["units_done"], seen["here"]) == ("growing", 6, 3, [])
    assert seen["seconds_since_commit"] < 60
    lose_source(bench.root / "out/_stillroom/job.json")
    seen = status("./out", bench)
    assert (seen["units"], seen["percent"], seen["units_done"]) == (None, None, 3)
    assert "  units    3 of ?\n" in text("./out", bench)


def lose_source(file):
    stored = json.loads(file.read_text())
    stored["job"]["source"] = "./gone.parquet"
    file.write_text(json.dumps(stored))


def test_the_hub_tells_commits_and_the_pace_of_the_last_hour(bench, chat_parquet, hub, monkeypatch):
    monkeypatch.chdir(bench.root)
    bench.hub = dict(hub.env())
    bench.run(*job(chat_parquet), "--output", "tester/x", "--num-jobs", "2", "--job-index", "0")
    seen = status("tester/x", bench)
    assert (seen["state"], seen["units_done"], seen["chunks_last_hour"]) == ("growing", 3, 3)
    assert seen["commits_last_hour"] >= 2 and seen["seconds_since_commit"] < 60
    assert seen["seconds_left"] == (6 - 3) * HOUR / 3, "at three chunks an hour"
    assert seen["revision"] == hub.commits("tester/x")[-1].oid
    assert [run["cache"] for run in status("x", bench)["here"]] == [run["cache"] for run in seen["here"]] != []


def test_what_is_pending_is_told(bench, chat_parquet, monkeypatch):
    monkeypatch.chdir(bench.root)
    bench.run(*job(chat_parquet), "--output", "./out", "--limit", "10")
    (run,) = status("./out", bench)["here"]
    assert (run["pending_units"], run["pending_bytes"]) == (0, 0)
    waiting = os.path.join(run["cache"], "pending")
    for path, content in (("receipts/000000000000-000000000010.json", "{}"), ("files/data/0.parquet", "12345")):
        file = os.path.join(waiting, path)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "w") as stream:
            stream.write(content)
    (run,) = status("./out", bench)["here"]
    assert (run["pending_units"], run["pending_bytes"]) == (1, 5)
    assert "  pending  1 units, 0 kB: --resume uploads them" in text("./out", bench)


def test_a_lock_is_held_as_long_as_its_process_wants_it(tmp_path):
    assert not is_held(tmp_path / "lock")
    lock = CacheLock(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")
    lock.share()
    assert is_held(tmp_path / "lock")
    lock._file.close()
    assert not is_held(tmp_path / "lock")


def test_what_is_not_there_is_one_line(bench, monkeypatch):
    monkeypatch.chdir(bench.root)
    done = CliRunner().invoke(main, ["status", "./none"])
    assert (done.exit_code, done.stderr) == (2, "stillroom: ./none: there is no such folder\n")


def test_a_summary_says_what_went_wrong_and_nothing_of_what_went_well():
    run = {"rows": 12_345, "seconds": 600.0, "tokens_per_second": 6_789.4, "padding": 0.0123, "skipped": 3}
    assert summarize({**run, "stall_seconds": 0.2}) == (
        "12,345 rows in 10 min, 6,789 tokens/s, 1.2% padding, 3 rows skipped"
    )
    worse = {"stall_seconds": 30.0, "uploaded_bytes": 5_400_000, "pending": 2, "faults": {"server": 4, "busy": 1}}
    assert summarize({**run, **worse}).endswith(
        "5.4 MB uploaded, 30 s waited for the output, 2 units still to upload, 1 busy faults, 4 server faults"
    )


def test_totals_have_skipped_rows_by_reason_the_most_frequent_first():
    totals = {"rows": 1200, "records": 1190, "skipped_no_text": 2, "skipped_bad": 8, "tokens": 5, "bytes": 1500}
    assert describe_totals(totals) == "1,190 records of 1,200 rows, skipped: bad 8, no_text 2, 5 tokens, 2 kB"


def test_durations_and_sizes_have_the_unit_that_suits_them():
    assert [duration(s) for s in (4.4, 89, 120, 5399, 5400, 200_000)] == [
        *("4 s", "89 s", "2 min", "90 min", "1.5 h", "2.3 days")
    ]
    assert [size(n) for n in (1234, 5_000_000, 7.25e9)] == ["1 kB", "5.0 MB", "7.2 GB"]
