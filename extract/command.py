"""What every command does alike: wrong options in one line, errors as exit codes, and where the log goes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from builders.options import ConfigError


class OneLineError(click.ClickException):
    """A wrong option, told like every other error of a job: one line, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Write the line to stderr."""
        click.echo(f"stillroom: {self.format_message()}", err=True)


class RunCommand(click.Command):
    """A command whose usage errors are one line, without the usage in front."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and shorten what is wrong."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise OneLineError(" ".join(error.format_message().split())) from None


def guarded(call: Callable[[], int]) -> int:
    """Turn errors into one line and an exit code: 2 for a bad job, 1 for a failure. Tracebacks are for --debug."""
    try:
        return call()
    except ConfigError as error:
        return _report(error, 2)
    except (RuntimeError, OSError) as error:  # SourceError, EngineError, CommitError, WorkerError and their causes
        return _report(error, 1)


def _report(error: Exception, code: int) -> int:
    logging.getLogger("stillroom").debug("failed", exc_info=error)
    click.echo(f"stillroom: {error}", err=True)
    return code


def set_up_logging(*, is_debug: bool) -> None:
    """Log to stderr, one line each; other workers than the first only warn."""
    rank = int(os.environ.get("RANK", "0"))
    ours = logging.DEBUG if is_debug else logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, level=logging.WARNING)
    for name in ("stillroom", "builders", "extract", "hub", "cards"):
        logging.getLogger(name).setLevel(ours)
