"""What every command does alike: help by theme, wrong options in one line, errors as exit codes, and where the log goes."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Any

import click

from builders.options import ConfigError
from extract.logs import JsonLines, is_json

INTERRUPTED = 130  # exit code, as shells have it
NO_READER = 141  # of a tool whose output nobody reads any more, as before `| head`
# groups of options, in their order
THEMES = ("Source", "Output", "Text", "Images", "Model", "Logits", "Engine", "Run")
COMMANDS = {  # of `stillroom --help`; one that is not named here comes last
    "Make": ("run", "status", "verify", "card", "export"),
    "Look": ("explore", "mask", "map", "compare", "doctor"),
    "Use": ("density", "sample", "search"),
}


class OneLineError(click.ClickException):
    """A wrong option, told like every other error of a job: one line, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Write the line to stderr."""
        click.echo(f"stillroom: {self.format_message()}", err=True)


class ThemedOption(click.Option):
    """An option that help shows under a theme."""

    def __init__(self, *names: Any, theme: str = "Options", **options: Any) -> None:
        super().__init__(*names, **options)
        self.theme = theme


class RunCommand(click.Command):
    """A command whose usage errors are one line, and whose help has options by theme, each with its default."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and shorten what is wrong."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _one_line(error) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section for each theme."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], **{theme: [] for theme in THEMES}}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                rows = sections.setdefault(getattr(param, "theme", "Options"), [])
                rows.append((record[0], with_default(param)))
        for theme, rows in sections.items():
            if rows:
                with formatter.section(theme):
                    formatter.write_dl(rows)


def with_default(option: click.Option) -> str:
    """The help text of an option, which ends in its default, in brackets: what the text itself says, else click's."""
    text = option.help or ""
    if text.endswith("]") or "--help" in option.opts:
        return text
    if option.required:
        return f"{text} [required]"
    if option.is_flag and not option.secondary_opts:
        return f"{text} [off]"
    default = option.default
    return f"{text} [{default if isinstance(default, str | int | float) else 'none'}]"


class CommandGroup(click.Group):
    """The commands by what they are for; a wrong one is one line, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and shorten what is wrong; without any argument, show the help."""
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _one_line(error) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and shorten what is wrong."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = ", ".join(self.list_commands(ctx))
            raise OneLineError(f"{_one_line(error).message.rstrip('.')}: the commands are {known}") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, one section for each theme."""
        left = dict.fromkeys(self.list_commands(ctx))
        themes = {theme: [name for name in names if name in left] for theme, names in COMMANDS.items()}
        named = {name for names in themes.values() for name in names}
        themes["Other"] = [name for name in left if name not in named]
        for theme, names in themes.items():
            if names:
                with formatter.section(theme):
                    formatter.write_dl([(name, self.commands[name].get_short_help_str(200)) for name in names])


def _one_line(error: click.UsageError) -> OneLineError:
    return OneLineError(" ".join(error.format_message().split()))


def guarded(call: Callable[[], int]) -> int:
    """Turn errors into one line and an exit code: 2 for a bad job, 1 for a failure, 130 for Ctrl-C.

    Tracebacks are for --debug. Where nobody reads the output any more there is nobody to tell: 141.
    """
    try:
        return call()
    except ConfigError as error:
        return _report(error, 2)
    except ModuleNotFoundError as error:  # of a bare checkout under another Python; extras have errors of their own
        advice = "activate the environment that has stillroom, or `pip install -e .`"
        return _report(ConfigError(f"{error}, under {sys.executable}: {advice}"), 2)
    except BrokenPipeError as error:
        return NO_READER if _is_unread() else _report(error, 1)
    except (RuntimeError, OSError) as error:  # SourceError, EngineError, CommitError, WorkerError and their causes
        return _report(error, 1)
    except KeyboardInterrupt:  # before a run takes signals itself, or in a command that is none
        return _report(RuntimeError("interrupted"), INTERRUPTED)


def _is_unread() -> bool:
    """Tell whether the reader of our standard output has gone; what is left to write then goes nowhere, in silence."""
    poll = select.poll()
    poll.register(1, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def _report(error: Exception, code: int) -> int:
    log = logging.getLogger("stillroom")
    log.debug("failed", exc_info=error)
    line = " ".join(str(error).split())  # libraries' own errors may have many lines
    if is_json():
        log.error("%s", line)
    else:
        click.echo(f"stillroom: {line}", err=True)
    return code


def set_up_logging(*, is_debug: bool, is_quiet: bool = False, is_json: bool = False) -> None:
    """Log to stderr, one line each; other workers than the first only warn."""
    is_main = os.environ.get("RANK", "0") == "0" and not is_quiet
    ours = logging.DEBUG if is_debug else logging.INFO if is_main else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, level=logging.WARNING)
    if is_json:
        for handler in logging.root.handlers:
            handler.setFormatter(JsonLines())
    for name in ("stillroom", "builders", "extract", "hub", "cards"):
        logging.getLogger(name).setLevel(ours)
