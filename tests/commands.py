"""Many commands in one process, each by the real entry point of `stillroom`: torch and transformers are imported once.

    with Commands(folder, env) as commands:
        done = commands.run("verify", "./out")
        done.code, done.out, done.err

Each has files of its own as standard output and error, so that what C libraries and warnings print is seen, too. An exception
that gets through is the traceback that Python would print.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Commands:
    """A process that runs commands in a folder, one after the other."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env = folder, {**env, "PYTHONPATH": str(CHECKOUT)}

    def __enter__(self) -> Commands:
        command = [sys.executable, "-m", "tests.commands"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def run(self, *arguments: str, env: Mapping[str, str | None] | None = None, without: Sequence[str] = ()) -> Done:
        """Run one command; `env` changes variables for it alone, and None takes one away, as `without` does packages."""
        print(json.dumps([arguments, env or {}, without]), file=self.process.stdin, flush=True)
        return Done(*json.loads(self.process.stdout.readline()))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code, as the interpreter would."""
    from extract.cli import main

    try:
        main(arguments, prog_name="stillroom")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_apart(arguments: list[str], changes: Mapping[str, str | None], without: Sequence[str]) -> tuple[int, str, str]:
    """Run a command with its own output, error, variables and log; return (exit code, output, error)."""
    hidden = {name: sys.modules[name] for name in sys.modules if name.split(".")[0] in without}
    sys.modules.update(dict.fromkeys([*hidden, *without]))  # importing what is None here is an ImportError
    before, streams = dict(os.environ), [os.dup(1), os.dup(2)]
    files = [Path(f".{os.getpid()}.{number}") for number in (1, 2)]
    for number, path in enumerate(files, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    for name in [name for name, value in changes.items() if value is None]:
        os.environ.pop(name, None)
    try:
        code = run(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for name in without:
            del sys.modules[name]
        sys.modules.update(hidden)
        os.environ.clear()
        os.environ.update(before)
        logging.root.handlers.clear()
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
            os.close(stream)
    return code, *(path.read_text() for path in files)


def serve() -> None:
    for line in sys.stdin:
        print(json.dumps(run_apart(*json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
