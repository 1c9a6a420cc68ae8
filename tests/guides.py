"""The pages of docs/ as programs: their commands and snippets, run as they stand but for names of other things."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.runs import CHECKOUT

START = shlex.quote("from extract.cli import main; main(prog_name='stillroom')")
OURS = ("builders", "cards", "extract", "hub")


def blocks(page: str, language: str, names: Mapping[str, str] | None = None) -> list[str]:
    """The blocks of a page in a language, with each of `names` replaced."""
    found = re.findall(rf"```{language}\n(.*?)```", (CHECKOUT / page).read_text(), re.DOTALL)
    for old, new in (names or {}).items():
        found = [block.replace(old, new) for block in found]
    return found


def commands(page: str, names: Mapping[str, str] | None = None) -> list[str]:
    """The commands of a page, one a line."""
    return [line for block in blocks(page, "bash", names) for line in block.splitlines()]


def write_tools(folder: Path, checkout: Path) -> Path:
    """`python`, `stillroom` and `accelerate` as an installation has them, over the packages of this interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    run, package = shlex.quote(sys.executable), shlex.quote(str(checkout))
    scripts = {
        "python": f'exec {run} "$@"',
        "stillroom": f'PYTHONPATH={package} exec {run} -c {START} "$@"',
        "accelerate": f'exec {run} -m accelerate.commands.accelerate_cli "$@"',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def run_commands(lines: list[str], root: Path, env: Mapping[str, str]) -> str:
    """Run commands in one shell, in a folder that has the code, and return what they print. All must succeed."""
    tools = write_tools(root / "bin", CHECKOUT)
    for name in OURS:
        if not (root / name).exists():
            (root / name).symlink_to(CHECKOUT / name)
    return shell(lines, root, {**env, "PATH": f"{tools}:{env['PATH']}"})


def shell(lines: list[str], root: Path, env: Mapping[str, str]) -> str:
    """Run lines in one shell that stops at the first failure."""
    script = "\n".join(["set -ex", *lines])
    done = subprocess.run(["bash", "-c", script], cwd=root, env=env, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
