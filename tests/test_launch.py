"""The recipes of launch/, unchanged, with real launchers, a real Slurm and a Hub that runs jobs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builders.demo import write_demo
from tests.hubserver import HubServer
from tests.hubstore import Faults
from tests.runs import CHECKOUT, MINILM, Bench, download, hub_process, hub_state, read_vectors
from tests.slurm import Slurm, is_installed, slurm

LAUNCH = CHECKOUT / "launch"
ROWS, CHUNK_ROWS = 120, 10
SMALL_BATCHES = ["--max-batch-tokens", "256"]  # several to a unit: one is seen in the making
TORCHRUN = "python -m torch.distributed.run --standalone --nproc_per_node 2"
pytestmark = [pytest.mark.usefixtures("minilm"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "chats.parquet", num_rows=ROWS)


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    with hub_process(tmp_path / "hub") as hub:
        yield Bench(tmp_path, hub)


def job(source: Path | str, output: str = "user/out", chunk_rows: int = CHUNK_ROWS) -> list[str]:
    options = {"engine": "fake", "model": MINILM, "source": source, "output": output, "chunk-rows": chunk_rows}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def environment(bench: Bench, **settings: object) -> dict[str, str]:
    """Of a recipe: `python` and `accelerate` are those of this environment; no run waits long."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    slow = {
        "STILLROOM_FAKE_SECONDS_PER_BATCH": "0.5",
        "STILLROOM_FAKE_LOG": log_of_batches(bench),
        "OMP_NUM_THREADS": "1",
    }
    return bench.env | path | {name: str(value) for name, value in (slow | settings).items()}


@contextmanager
def recipe(bench: Bench, *command: str | Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A recipe at work; nothing of it is left afterwards."""
    with bench.log.open("w") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=environment(bench, **settings),
            cwd=bench.root,
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        left = processes_of(bench)
        for pid in [process.pid, *left]:
            if process.poll() is None or pid in left:
                os.kill(pid, signal.SIGKILL)
        process.wait()


def loop(bench: Bench, *arguments: str, timeout: float = 400, **settings: object) -> int:
    """Exit code of loop.sh."""
    with recipe(bench, LAUNCH / "loop.sh", *arguments, **settings) as process:
        return process.wait(timeout)


def processes_of(bench: Bench) -> list[int]:
    """All that has this test's cache in its environment."""
    mark, found = f"STILLROOM_CACHE={bench.cache}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue  # it has ended
    return found


def every_row_once(bench: Bench, repo_id: str = "user/out", rows: int = ROWS) -> None:
    assert "_stillroom/ledger.jsonl" in hub_state(bench.hub, repo_id)["files"], bench.log.read_text()
    index, _ = read_vectors(download(bench.hub, repo_id, bench.root / "got"))
    assert index.tolist() == list(range(rows))


def wait_for(what: str, condition, bench: Bench, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} after {seconds} s:\n{bench.log.read_text()}"
        time.sleep(0.1)


def is_begun(bench: Bench) -> bool:
    """A batch has been computed."""
    return log_of_batches(bench).exists()


def log_of_batches(bench: Bench) -> Path:
    return bench.root / "batches.log"


# --- loop.sh


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "accelerate launch", TORCHRUN])
def test_short_runs_follow_each_other_until_the_dataset_is_complete(bench, source, launcher):
    slow = {"STILLROOM_FAKE_SECONDS_PER_BATCH": 5}  # a run keeps 20 s for its last upload until it knows better
    code = loop(bench, *job(source), LAUNCHER=launcher, MINUTES=0.75, WAIT_SECONDS=0, **slow)
    log = bench.log.read_text()
    assert code == 0, log
    assert "stopped (--max-runtime-minutes): " in log, "one run was enough: it shows nothing"
    every_row_once(bench)


@pytest.mark.parametrize("launcher", ["python", pytest.param("accelerate launch", marks=pytest.mark.slow)])
def test_a_bad_job_ends_the_loop_at_once(bench, source, launcher):
    assert loop(bench, *job(source), "--engine", "absent", LAUNCHER=launcher) == 2
    log = bench.log.read_text()
    assert log.count("stillroom: ") == 2, log  # the run and the look at how it stands


@pytest.mark.slow
def test_failures_are_tried_again_with_growing_waits(bench, source):
    (bench.root / "a-file").write_text("")
    started = time.monotonic()
    code = loop(bench, *job(source, "./a-file/out"), LAUNCHER="python", TRIES=3, WAIT_SECONDS=3)
    assert code == 1
    assert "loop.sh: failed 3 times in a row" in bench.log.read_text()
    assert time.monotonic() - started > 3 * 2 + 3 * 4


@pytest.mark.slow
def test_a_killed_run_is_followed_by_another(bench, source):
    with recipe(bench, LAUNCH / "loop.sh", *job(source), *SMALL_BATCHES, LAUNCHER="python", WAIT_SECONDS=0) as process:
        wait_for("batch", lambda: is_begun(bench), bench)
        [run] = [pid for pid in processes_of(bench) if b"extract/run.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(run, signal.SIGKILL)
        assert process.wait(300) == 0, bench.log.read_text()
    every_row_once(bench)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "accelerate launch", TORCHRUN])
def test_sigterm_drains_the_run_and_ends_the_loop(bench, source, launcher):
    with recipe(bench, LAUNCH / "loop.sh", *job(source), *SMALL_BATCHES, LAUNCHER=launcher) as process:
        wait_for("batch", lambda: is_begun(bench), bench)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM, bench.log.read_text()
        assert processes_of(bench) == []
    assert "left; run again with --resume" in bench.log.read_text()
    assert loop(bench, *job(source), LAUNCHER="python") == 0
    every_row_once(bench)


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_drains_the_run(bench, source):
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", str(LAUNCH / "loop.sh"), *job(source), *SMALL_BATCHES],
        env=environment(bench, LAUNCHER="accelerate launch"),
        cwd=bench.root,
        stdin=side,
        stdout=bench.log.open("w"),
        stderr=subprocess.STDOUT,
    )
    wait_for("batch", lambda: is_begun(bench), bench)
    os.write(terminal, b"\x03")
    assert process.wait(60) == 128 + signal.SIGINT, bench.log.read_text()
    assert processes_of(bench) == []
    assert "stopped (SIGINT)" in bench.log.read_text()


# --- slurm.sh, slurm_multinode.sh


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Slurm]:
    if not is_installed():
        pytest.skip("Slurm is not installed: apt-get install -y slurm-wlm")
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(cluster: Slurm, bench: Bench, script: str, *arguments: str, options: list[str], **settings: object) -> str:
    """Submit a recipe as a user does, but for the resources that this machine lacks; the job's number."""
    log = [f"--output={bench.log}", "--cpus-per-task=1", "--parsable"]
    done = subprocess.run(
        ["sbatch", *log, *options, str(LAUNCH / script), *arguments],
        env=environment(bench, **settings) | cluster.env,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_slurm_array_goes_on_after_time_limits_and_preemption(bench, source, cluster):
    limits = ["--array=0-1", "--gpus-per-task=0", "--time=1", "--signal=B:TERM@30"]
    slow = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "5"}  # a share takes longer than a task has
    array = submit(cluster, bench, "slurm.sh", *job(source), options=limits, **slow)
    wait_for("batch", lambda: is_begun(bench), bench)
    cluster.ask("scontrol", "requeue", f"{array}_1")
    cluster.wait(array, {"COMPLETED"}, 500)
    log = bench.log.read_text()
    assert "slurm.sh: exit code 75, units are left: requeue" in log
    assert "stopped (SIGTERM)" in log
    every_row_once(bench)


@pytest.mark.slow
def test_scancel_ends_a_task_for_good(bench, source, cluster):
    slow = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "5"}  # it must not end by itself
    array = submit(cluster, bench, "slurm.sh", *job(source), options=["--array=0-1", "--gpus-per-task=0"], **slow)
    wait_for("batch", lambda: is_begun(bench), bench)
    cluster.ask("scancel", array)
    cluster.wait(array, {"CANCELLED"}, 60)
    assert "stopped (SIGTERM)" in bench.log.read_text()
    assert "requeue" not in bench.log.read_text()


@pytest.mark.slow
def test_a_bad_job_ends_a_slurm_task(bench, source, cluster):
    task = submit(
        cluster, bench, "slurm.sh", *job(source), "--engine", "absent", options=["--array=0", "--gpus-per-task=0"]
    )
    cluster.wait(task, {"FAILED"}, 60)
    assert "ExitCode=2:0" in cluster.ask("scontrol", "show", "job", task)


@pytest.mark.slow
def test_a_slurm_job_over_several_nodes_comes_back_until_it_is_complete(bench, source, cluster):
    """Two tasks of one node stand for two nodes: each has its own torchrun, cache and workers."""
    nodes = ["--nodes=1", "--ntasks=2", "--ntasks-per-node=2", "--gpus-per-node=0"]
    slow = {"STILLROOM_FAKE_SECONDS_PER_BATCH": "2", "CACHE": bench.cache, "WORKERS_PER_NODE": 1}
    number = submit(cluster, bench, "slurm_multinode.sh", *job(source), options=nodes, **slow)
    wait_for("batch", lambda: is_begun(bench), bench)
    cluster.ask("scancel", "--batch", "--signal=TERM", number)  # what Slurm does --signal seconds before the end
    cluster.wait(number, {"COMPLETED"}, 300)
    assert "slurm_multinode.sh: units are left: requeue" in bench.log.read_text()
    assert {folder.name for folder in bench.cache.iterdir()} >= {"node-0", "node-1"}
    every_row_once(bench)


# --- hf_jobs.py


@pytest.fixture
def jobs_hub(tmp_path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as hub:
        yield hub


def hf_jobs(hub: HubServer, bench: Bench, *arguments: str, **settings: object) -> int:
    """Exit code of hf_jobs.py; `SETUP` takes this checkout, as jobs here have no packages to install."""
    setup = {"SETUP": f"cd {CHECKOUT} && export OMP_NUM_THREADS=1 STILLROOM_FAKE_SECONDS_PER_BATCH=4"}
    bench.hub = hub.env()
    with recipe(bench, "python", LAUNCH / "hf_jobs.py", *arguments, POLL_SECONDS=0.5, **(setup | settings)) as process:
        return process.wait(400)


@pytest.mark.slow
@pytest.mark.parametrize("num_jobs", [1, 2])
def test_hugging_face_jobs_follow_each_other_until_the_dataset_is_complete(jobs_hub, source, tmp_path, num_jobs):
    bench = Bench(tmp_path)
    small = job(source, chunk_rows=5)  # a job loses the unit in hand with its disk
    assert hf_jobs(jobs_hub, bench, *small, MINUTES=0.75, NUM_JOBS=num_jobs) == 0, bench.log.read_text()
    assert "24 chunks in user/out" in bench.log.read_text()
    every_row_once(bench)
    jobs = list(jobs_hub.jobs.all.values())
    assert len(jobs) > num_jobs, "one round was enough: it shows nothing"
    for each in jobs:
        assert each.spec["secrets"] == {"HF_TOKEN": jobs_hub.token}
        assert jobs_hub.token not in json.dumps({**each.spec, "secrets": {}}) + bench.log.read_text()
        assert each.spec["timeoutSeconds"] == round(60 * 20.75)
        assert each.stage == "COMPLETED"
    assert hf_jobs(jobs_hub, bench, *small) == 0, "a complete dataset starts no job"
    assert len(jobs_hub.jobs.all) == len(jobs)


def test_two_jobs_in_vain_end_the_loop_and_show_why(jobs_hub, source, tmp_path):
    bench = Bench(tmp_path)
    assert hf_jobs(jobs_hub, bench, *job(source), SETUP="echo no such branch; false") == 1
    log = bench.log.read_text()
    assert "no such branch" in log and "Job failed with exit code: 1" in log
    assert "two rounds of jobs brought nothing new" in log and len(jobs_hub.jobs.all) == 2


def test_a_job_at_its_timeout_is_killed_and_said_to_be(jobs_hub, source, tmp_path):
    bench = Bench(tmp_path)
    code = hf_jobs(jobs_hub, bench, *job(source), SETUP="sleep 60", MINUTES=0, SETUP_MINUTES=0.02)
    assert code == 1 and "Job timeout" in bench.log.read_text()


@pytest.mark.slow
def test_a_job_that_still_runs_is_taken_up_and_errors_that_pass_are_waited_out(jobs_hub, source, tmp_path):
    bench = Bench(tmp_path)
    bench.hub = jobs_hub.env()
    setup = {"SETUP": "sleep 35; false", "POLL_SECONDS": 0.5}
    with recipe(bench, "python", LAUNCH / "hf_jobs.py", *job(source), **setup) as process:
        wait_for("job", lambda: len(jobs_hub.jobs.all) == 1, bench)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    jobs_hub.faults = Faults(script={"api": ["500", "drop"]})
    assert hf_jobs(jobs_hub, bench, *job(source), SETUP="false") == 1
    assert len(jobs_hub.jobs.all) == 2, "the first round is the job that ran already"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--output", "./out"], "--output is './out': give a Hub dataset with its owner"),
        (["--output", "user/out", "--job", "job.toml"], "--job job.toml is not there inside a job"),
    ],
)
def test_what_a_job_cannot_do_is_refused(jobs_hub, tmp_path, arguments, says):
    bench = Bench(tmp_path)
    assert hf_jobs(jobs_hub, bench, *arguments) == 2
    assert says in bench.log.read_text() and not jobs_hub.jobs.all
