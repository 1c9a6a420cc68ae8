"""All benchmarks as one table: `make bench`, or

    python benchmarks/bench.py [--only NAME]... [--json FILE]

Each group runs in a process of its own, one after the other, under a limit of time, so that no setting of one reaches another
and a group that fails costs its own rows alone. Both sides of a ratio take turns in one process of a group, three times and
more. On two quiet cores all groups take less than 15 minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from importlib import import_module
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(CHECKOUT), *(path for path in sys.path if path != str(CHECKOUT / "benchmarks"))]

import click

from benchmarks.table import Row, from_dict, machine, markdown, to_json, versions

GROUPS: dict[str, tuple[str, tuple, float]] = {  # name -> module, arguments of its `rows`, most seconds
    "float32": ("embeddings", ("float32",), 240),
    "bfloat16": ("embeddings", ("bfloat16",), 180),
    "vllm": ("vllm_rows", (), 300),
    "logits": ("logits_rows", (), 180),
    "codec": ("codec", (), 60),
    "padding": ("padding", (), 60),
    "chunks": ("chunks", (), 60),
    "sources": ("sources", (), 90),
    "resume": ("resume", (), 60),
    "startup": ("startup", (), 90),
    "uploads": ("uploads", (), 120),
    "scaling": ("scaling", (), 300),
    "goodput": ("goodput", (), 180),
    "memory": ("memory", (), 120),
}
FAR = 2000  # characters of a failed group's output that are kept


def measured(name: str) -> Iterator[Row]:
    """Run a group in a process; its rows, or one that says why there are none."""
    limit = GROUPS[name][2] * float(os.environ.get("STILLROOM_BENCH_PATIENCE", "1"))
    environment = {"TOKENIZERS_PARALLELISM": "true"} | dict(os.environ)
    command = [sys.executable, __file__, "--one", name]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        yield Row(name, "", (), note=f"ran past {limit:.0f} s")
        return
    if process.returncode:
        click.echo(err[-FAR:], err=True)
        lines = err.strip().splitlines() or ["no output"]
        yield Row(name, "", (), note=f"failed: {lines[-1][:200]}")
        return
    yield from (from_dict(value) for value in json.loads(out.splitlines()[-1]))


def one(name: str) -> Iterable[Row]:
    """The rows of a group, measured in this process."""
    module, arguments, _ = GROUPS[name]
    rows: Callable[..., Iterable[Row]] = import_module(f"benchmarks.{module}").rows
    return rows(*arguments)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(GROUPS)), help="a group of rows; may be repeated [all]")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="write all figures there, too")
@click.option("--one", "alone", type=click.Choice(list(GROUPS)), hidden=True)
def main(only: tuple[str, ...], json_path: Path | None, alone: str | None) -> None:
    """Print one table; exit code 1 where a group gave no rows."""
    if alone is not None:
        click.echo(json.dumps([row.to_dict() for row in one(alone)]))
        return
    began, rows = time.monotonic(), list[Row]()
    for name in only or GROUPS:
        start = time.monotonic()
        rows += measured(name)
        click.echo(f"{name}: {time.monotonic() - start:.0f} s", err=True)
    click.echo(f"{date.today()}, {machine()}; load {os.getloadavg()[0]:.1f}\n{versions()}\n")
    click.echo(markdown(rows))
    click.echo(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
    if json_path is not None:
        json_path.write_text(to_json(rows))
    sys.exit(any(not row.ours and row.note.startswith(("failed", "ran past")) for row in rows))


if __name__ == "__main__":
    main()
