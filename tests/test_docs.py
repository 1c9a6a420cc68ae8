"""docs/ as a whole: options of all pages, the examples, two machines, the API page: python -m pytest tests/test_docs.py.

Pages have tests of their own, too: test_guides.py and test_*_guide.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from extract.cli import main, run_command
from tests.guides import OURS, blocks, commands, run_commands, write_tools
from tests.runs import CHECKOUT, MINILM, Bench, read_vectors
from tests.test_logits_run import model  # noqa: F401  # fixture

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((CHECKOUT / "docs").glob("*.md")))]
EXAMPLES = sorted((CHECKOUT / "docs" / "examples").glob("*.py"))
STILLROOM = re.compile(r"(?:^|[;|&] *)stillroom (.*)")
RUN = re.compile(r"extract/run\.py(.*)")


def lines_of(page: str) -> list[str]:
    """The commands of a page's blocks of bash, each on one line."""
    return [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]


def words_of(text: str) -> list[str]:
    """Arguments as the shell splits them, without those that stand for others."""
    return [word for word in shlex.split(text, comments=True) if word not in ("…", "(")]


def asked() -> list[tuple[str, click.Command, list[str]]]:
    """Every call of ours in a page: where, the command, its arguments."""
    found = []
    for page in PAGES:
        for line in lines_of(page):
            if call := RUN.search(line.partition(" #")[0]):
                found.append((f"{page}: {line}", run_command, words_of(call[1])))
            elif call := STILLROOM.search(line):
                name, *rest = words_of(call[1])
                found.append((f"{page}: {line}", main.commands[name], rest))
    return found


def test_every_command_of_every_page_has_options_that_there_are():
    calls = asked()
    assert len(calls) > 45
    for where, command, words in calls:
        try:
            command.make_context("stillroom", words)
        except click.ClickException as error:
            pytest.fail(f"{where}: {error.format_message()}")


def test_the_page_on_python_is_what_docstrings_say():
    spec = importlib.util.spec_from_file_location("api_page", CHECKOUT / "docs" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    assert (CHECKOUT / "docs" / "api.md").read_text() == api.page(), "run: python docs/api.py"


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_from_its_first_cell_to_its_last(path, tmp_path, model):  # noqa: F811
    """As it stands, but for a smaller teacher."""
    tools = write_tools(tmp_path / "bin", CHECKOUT)
    for name in OURS:
        (tmp_path / name).symlink_to(CHECKOUT / name)
    code = re.sub(r'TEACHER = ".*"', f'TEACHER = "{model}"', path.read_text())
    env = Bench(tmp_path).env
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=env | {"PATH": f"{tools}:{env['PATH']}"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]
    if path.stem == "embeddings":
        assert "(200, 384)" in done.stdout and re.match(r"0\.\d\d\d \w+ .*", last)
    elif path.stem == "curation":
        assert last.startswith("50 [(")
    else:
        first, end = re.fullmatch(r"(\S+) to (\S+) nats", last).groups()
        assert float(end) < float(first)


@pytest.mark.slow
def test_the_commands_of_the_distillation_guide_make_a_dataset(tmp_path, chat_parquet, model):  # noqa: F811
    names = {"user/chats-logits": "./logits", "user/chats": str(chat_parquet), "user/teacher": str(model)}
    lines = [line for line in commands("docs/distillation.md", names) if not re.search("^pip |benchmarks/", line)]
    out = run_commands(lines, tmp_path, Bench(tmp_path).env)
    assert len(lines) == 6 and "nothing is missing, doubled or damaged" in out and "What follows 0?" in out
    assert (tmp_path / "rows" / "README.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch", "accelerate"])
def test_the_commands_of_the_page_on_machines_share_the_work(tmp_path, chat_parquet, launcher):
    """Two machines that are one: a process group of its own each, and a cache of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names = {"HOST": "127.0.0.1", "29500": port, "--nproc_per_node 8": "--nproc_per_node 1"}
    names |= {"--num_processes 16": "--num_processes 2", "\\\n": " "}
    (line,) = [
        line for line in commands("docs/machines.md", names) if re.match(rf"\w+ .*\b{launcher}|{launcher}", line)
    ]
    job = {"source": str(chat_parquet), "model": MINILM, "engine": "fake", "chunk_rows": 5, "output": "./out"}
    (tmp_path / "job.toml").write_text("".join(f"{name} = {value!r}\n" for name, value in job.items()))
    tools = write_tools(tmp_path / "bin", CHECKOUT)
    (tmp_path / "extract").symlink_to(CHECKOUT / "extract")
    machines = []
    for number in range(2):
        bench = Bench(tmp_path, options={"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.2"}, cache_number=number)
        env = bench.env | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": ""}
        command = ["bash", "-c", line.replace("machine_rank R", f"machine_rank {number}")]
        machines.append(subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True))
    errors = [machine.communicate(timeout=250)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    index, _ = read_vectors(tmp_path / "out")
    assert index.tolist() == list(range(60))
    done = [len(list(Path(tmp_path).glob(f"cache-{number}/jobs/*"))) for number in range(2)]
    assert done == [1, 1], "both took part"
