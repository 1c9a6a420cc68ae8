"""The command line: python -m pytest tests/test_cli.py."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from builders.job import Job
from builders.options import ConfigError, option_fields
from extract.cli import main, run_command
from extract.prepare import prepare
from extract.settings import Settings
from extract.stop import Stop
from extract.world import World
from tests.runs import CHECKOUT


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """No ./job.toml but the test's own, and levels of loggers as they were."""
    monkeypatch.chdir(tmp_path)
    names = ("stillroom", "builders", "extract", "hub", "cards")
    levels = {name: logging.getLogger(name).level for name in names}
    yield tmp_path
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run(*args, runner=None):
    """(exit code, stderr, job, settings) of a command whose job is not run but kept."""
    kept = [None, None]

    def keep(job, settings):
        kept[:] = job, settings
        return 0

    result = CliRunner().invoke(run_command, args, obj=runner or keep)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr, *kept


def job_of(*args):
    code, stderr, job, _ = run(*args)
    assert (code, stderr) == (0, "")
    return job


def test_without_any_option_the_default_preset_runs():
    assert job_of().source == "allenai/Dolci-Think-SFT-7B"


def test_flags_over_job_over_job_toml_over_the_default_preset(here):
    Path("job.toml").write_text('source = "in-job-toml"\nlimit = 1\nseed = 1\n')
    Path("other.toml").write_text('source = "in-other"\nlimit = 2\n')
    assert job_of().source == "in-job-toml"
    assert job_of("--job", "other.toml").source == "in-other"
    assert job_of("--job", "other.toml").seed == 0  # one base, not a pile of them
    assert job_of("--job", "other.toml", "--limit", "3").limit == 3
    assert job_of("--preset", "demo-embeddings").source == "demo:chat"
    assert job_of("--limit", "3").source == "in-job-toml"


def test_a_flag_may_say_the_opposite_of_the_file(here):
    Path("job.toml").write_text("normalize = false\nprivate = true\nresume = true\nfields = ['think']\n")
    _, _, job, settings = run("--normalize", "--public", "--no-resume", "--fields", "response, think")
    assert (job.normalize, job.private, settings.resume) == (True, False, False)
    assert job.fields == ("response", "think")
    assert job_of("--fields", "").fields == ()
    assert job_of("--fields", "think", "--fields", "response").fields == ("think", "response")


def test_a_job_file_holds_settings_too(here):
    Path("job.toml").write_text('source = "x"\nmax_runtime_minutes = 55\n')
    assert run()[3].max_runtime_minutes == 55.0


def test_chunk_rows_has_the_name_of_the_field_too():
    assert job_of("--upload-every", "7").chunk_rows == job_of("--chunk-rows", "7").chunk_rows == 7


@pytest.mark.parametrize("command", [run_command, main])
def test_help_shows_every_option_with_help_and_default(command):
    args = ["--help"] if command is run_command else ["run", "--help"]
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0
    options = [p for p in run_command.params if isinstance(p, click.Option)]
    assert {p.name for p in options} == {*option_fields(Job), *option_fields(Settings), "preset", "job_file"}
    for option in options:
        assert option.opts[0] in result.output
        assert re.search(r"\w.* \[.+\]$", option.help), option.name


NO_MODEL = ("--engine", "fake", "--model", "./no-model")

FLAGS = [
    (["--build", "x"], "'x' is not one of 'embeddings'"),
    (["--truncate", "top"], "'top' is not one of"),
    (["--limit", "many"], "'many' is not a valid integer"),
    (["--limit", "0"], "--limit is 0: it must be at least 1"),
    (["--max-lenth", "8"], "No such option '?--max-lenth'?"),
    (["--seed"], "'--seed' requires an argument"),
    (["surplus"], "unexpected extra argument"),
    (["--preset", "nope"], "--preset is 'nope': the presets are"),
    (["--job", "nope.toml"], "--job nope.toml: there is no such file"),
    (["--job", "x.toml", "--preset", "demo-embeddings"], "--preset and --job exclude each other"),
    (["--resume", "--restart"], "--resume and --restart exclude each other"),
    (["--update", "--restart"], "--update and --restart exclude each other"),
]


def check_one_line(code, stderr, message):
    assert code == 2
    assert stderr.startswith("stillroom: ")
    assert stderr.count("\n") == 1
    assert re.search(message, stderr), stderr


@pytest.mark.parametrize(("args", "message"), FLAGS)
def test_a_wrong_flag_is_one_line_and_exit_code_2(args, message):
    code, stderr, job, _ = run(*args)
    check_one_line(code, stderr, message)
    assert job is None


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("modle = 'x'", "unknown option 'modle': did you mean 'model'"),
        ("zzz = 1", "unknown option 'zzz': the options are build, "),
        ("model = ", "is not valid TOML"),
        ("[model]\nname = 1", "--model is {'name': 1}: expected str"),
        ("preset = 'nope'", "the presets are"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(here, toml, message):
    Path("job.toml").write_text(toml)
    check_one_line(*run()[:2], message)


def prepare_only(job, settings):
    prepare(job, settings, World(), Stop(None))
    return 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", ""], "--source"),
        (["--source", "./none.parquet"], "--source ./none.parquet: no such .parquet or .jsonl file"),
        (["--source", "rows.csv"], "local files are read as .parquet or .jsonl, not '.csv'"),
        (["--text-template", "{nope}"], "no column 'nope' for the text: the source has id, messages, dataset_source"),
        (["--fields", "think,nope"], "no column 'nope' for the text"),
        (["--text-template", "none"], "names no {placeholder}"),
        (["--sample-per-source", "3", "--source-column", "nope"], "--sample-per-source needs column 'nope'"),
        (["--max-length", "257"], "--max-length 257: the model takes at most 256 tokens"),
        (["--max-length", "2"], "--max-length 2 leaves no room for text"),
        (["--model", "./none"], "--model ./none: there is no such folder"),
        (["--model", "a/b/c"], "--model a/b/c: there is no such folder"),
        (["--model", "package:no_such_package/model"], "no such package"),
        (["--model", "."], "has no config.json"),
    ],
)
def test_a_job_that_cannot_be_run_is_one_line_and_exit_code_2(here, chat_parquet, minilm, args, message):
    Path("rows.csv").write_text("a,b\n")
    whole = ["--source", str(chat_parquet), "--output", "./out", "--engine", "fake", "--model", str(minilm)]
    check_one_line(*run(*whole, *args, runner=prepare_only)[:2], message)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("source", "--source is missing"), ("output", "--output is missing"), ("model", "--model is missing")],
)
def test_what_is_missing_is_one_line_and_exit_code_2(here, chat_parquet, minilm, missing, message):
    options = {"source": str(chat_parquet), "output": "./out", "model": str(minilm), "engine": "fake"}
    Path("job.toml").write_text("".join(f"{k} = '{v}'\n" for k, v in options.items() if k != missing))
    check_one_line(*run(runner=prepare_only)[:2], message)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("no"), 2), (RuntimeError("no"), 1), (OSError("no"), 1), (FileNotFoundError("no"), 1)],
)
def test_an_error_of_the_run_is_one_line_and_its_exit_code(error, code):
    def fail(job, settings):
        raise error

    assert run(runner=fail)[:2] == (code, "stillroom: no\n")


def test_debug_shows_where_it_happened(caplog):
    def fail(job, settings):
        raise RuntimeError("no")

    assert run("--debug", runner=fail)[0] == 1
    assert "Traceback" in caplog.text


def test_the_exit_code_of_the_run_is_the_command_s():
    assert run(runner=lambda job, settings: 7)[0] == 7


def test_a_dry_run_prints_the_plan_and_runs_nothing(here, chat_parquet, minilm):
    args = ["--source", str(chat_parquet), "--model", str(minilm), "--chunk-rows", "7", "--dry-run"]
    result = CliRunner().invoke(run_command, args, obj=lambda job, settings: pytest.fail("ran"))
    assert result.exit_code == 0, result.output
    assert "rows      60\n" in result.output
    assert "units     9 of 7 rows\n" in result.output
    assert not Path("out").exists()


@pytest.mark.parametrize(("asked", "pool"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_a_run_takes_its_memory_from_the_system_unless_asked_otherwise(here, asked, pool):
    """Where nothing has imported pyarrow before: it chooses once."""
    code = """
import contextlib, extract.cli
with contextlib.suppress(Exception):
    extract.cli.execute(None, None, None, {"source": "missing.parquet", "model": "missing", "output": "./out"})
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    environment |= {"PYTHONPATH": str(CHECKOUT)} | ({"ARROW_DEFAULT_MEMORY_POOL": asked} if asked else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == pool
