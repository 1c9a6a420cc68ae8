"""The command line: options made from the fields of Job and Settings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builders.job import Job
from builders.job_files import check_names, job_from_dict, preset_names, read_preset, read_toml
from builders.options import ConfigError, element_type, from_mapping, option_fields, value_type
from extract.card_cli import card_command
from extract.command import CommandGroup, RunCommand, ThemedOption, guarded, set_up_logging
from extract.compare_cli import compare_command
from extract.curate_cli import density_command, sample_command
from extract.explore_cli import explore_command
from extract.export import export_command
from extract.listed import Listed
from extract.map_cli import map_command
from extract.search_cli import search_command
from extract.settings import Settings
from extract.status_cli import status_command

if TYPE_CHECKING:
    from extract.verify import Proof

Runner = Callable[[Job, Settings], int]  # extract.run.run, where none is given
DEFAULT_PRESET = "dolci-embeddings"
DEFAULT_JOB_FILE = Path("job.toml")
ALIASES = {"chunk_rows": ["--upload-every"], "endpoint_model": ["--triton-model"]}


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add one option for each field of Job and Settings, grouped as they are."""
    for cls in (Settings, Job):
        for name, spec in reversed(option_fields(cls).items()):
            command = _option(cls, name, spec)(command)
    command = click.option("--job", "job_file", type=click.Path(path_type=Path), help="job file, TOML [./job.toml]")(
        command
    )
    names = preset_names()
    return click.option(
        "--preset",
        help=f"job shipped with the code: {', '.join(names)} [{DEFAULT_PRESET}]",
        shell_complete=lambda _, __, typed: [name for name in names if name.startswith(typed)],
    )(command)


def _option(cls: type, name: str, spec: Field[Any]) -> Callable[..., Any]:
    kind, _ = value_type(cls, name)
    themed: dict[str, Any] = {"cls": ThemedOption, "theme": spec.metadata["group"]}
    flag = f"--{name.replace('_', '-')}"
    help_text = spec.metadata["help"]
    if kind is bool:
        negative = "--public" if name == "private" else f"--no-{flag[2:]}"
        if spec.default is not None:
            help_text += " [--private]" if name == "private" else f" [{'on' if spec.default else 'off'}]"
        return click.option(f"{flag}/{negative}", name, default=None, help=help_text, **themed)
    if spec.default is not None and kind is not tuple:
        help_text += f" [{spec.default}]"
    choices = spec.metadata["choices"]
    if kind is tuple:
        joined = lambda _, __, given: tuple(chain(*given)) if given else None  # noqa: E731  # one list, or several flags
        listed = Listed(element_type(cls, name))
        return click.option(flag, name, type=listed, multiple=True, callback=joined, help=help_text, **themed)
    param_type = click.Choice(choices) if choices else kind
    return click.option(flag, *ALIASES.get(name, []), name, type=param_type, default=None, help=help_text, **themed)


def read_options(preset: str | None, job_file: Path | None, flags: Mapping[str, Any]) -> tuple[Job, Settings]:
    """Put the job together: flags over --job, else over --preset, else over ./job.toml.

    With none of these and no --source, the default preset is what runs.

    Raises:
        ConfigError: an option is unknown or does not fit.
    """
    if preset is not None and job_file is not None:
        raise ConfigError("--preset and --job exclude each other: write `preset = ...` into the job file")
    if preset is not None:
        base = read_preset(preset)
    elif job_file is not None or DEFAULT_JOB_FILE.exists():
        base = read_toml(job_file or DEFAULT_JOB_FILE)
    elif flags.get("source") is None:
        base = read_preset(DEFAULT_PRESET)
    else:
        base = {}  # another source has nothing of the default job's lengths and names
    given = {name: value for name, value in flags.items() if value is not None}
    options = {**base, **given}
    check_names(options, [*option_fields(Job), *option_fields(Settings)])
    settings = {name: options.pop(name) for name in option_fields(Settings) if name in options}
    return job_from_dict(options), from_mapping(Settings, settings)


def execute(runner: Runner | None, preset: str | None, job_file: Path | None, flags: Mapping[str, Any]) -> int:
    """Run the job that the options describe and return the exit code."""
    job, settings = read_options(preset, job_file, flags)
    set_up_logging(is_debug=settings.debug, is_quiet=settings.quiet, is_json=settings.log_format == "json")
    if settings.dry_run:
        from extract.dry_run import dry_run

        click.echo(dry_run(job, settings))
        return 0
    # Arrow's own allocator holds more and more of what threads free: 190 MB an hour at a thousand rows a second
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if runner is None:
        from extract.run import run

        runner = run
    return runner(job, settings)


@click.command("run", cls=RunCommand, context_settings={"show_default": False, "max_content_width": 100})
@job_options
@click.pass_obj
def run_command(runner: Runner | None, preset: str | None, job_file: Path | None, **flags: Any) -> None:
    """Stream a dataset through a model, and pour what comes out into a Hub dataset or a folder."""
    set_up_logging(is_debug=bool(flags.get("debug")))
    sys.exit(guarded(lambda: execute(runner, preset, job_file, flags)))


@click.command("verify", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("output")
@click.option("--config-name", default="default", help="configuration within the output [default]")
@click.option("--split", help="split [the one that the output's job makes]")
@click.option("--deep", is_flag=True, help="read all data, not only the footers [off]")
@click.option("--repair", is_flag=True, help="take damaged units out and compute them again, and no others [off]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object with all problems [off]")
@click.option("--cache-dir", help="folder of unfinished and pending work [$STILLROOM_CACHE or ~/.cache/stillroom]")
def verify_command(output: str, config_name: str, split: str | None, cache_dir: str | None, **flags: bool) -> None:
    """Prove a dataset against its source: every unit once, every file whole, every row accounted for.

    On the Hub a proof reads the file list, the receipts and one range of each chunk; with --deep, each chunk once.

    \b
    Exit code 0  complete, and nothing is wrong (or --repair has mended it)
              1  something is wrong, or units are missing: --resume goes on
              2  it cannot be told: no such output, no job in it, a wrong
                 option, or no answer from the Hub
    """  # noqa: D301  # \b is click's mark of lines that it must not join
    set_up_logging(is_debug=False)
    settings = Settings(resume=True, cache_dir=cache_dir)
    sys.exit(guarded(lambda: _verify(output, config_name, split, settings, **flags)))


def _verify(
    output: str, config_name: str, split: str | None, settings: Settings, *, deep: bool, repair: bool, as_json: bool
) -> int:
    from extract.mend import mend
    from extract.verify import verify

    def prove() -> Proof:
        try:
            return verify(output, config_name, split, settings, deep=deep)
        except (RuntimeError, OSError) as error:  # a fault of the line says nothing of the dataset
            raise ConfigError(f"{output} cannot be verified: {error}") from error

    proof = prove()
    found, report = proof.report.problems, proof.report
    if found and repair:
        if not as_json:
            click.echo(str(report))
        if mend(proof, settings):
            from extract.run import run

            run(proof.job, settings)
        report = replace(prove().report, repaired=found)
    click.echo(report.to_json() if as_json else str(report))
    return 0 if report.is_clean else 1


@click.command("mask", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("model")
@click.option("--source", required=True, help="Hub dataset, or local .parquet/.jsonl path or glob, or demo:chat")
@click.option("--split", default="train", help="split of the source [train]")
@click.option("--messages-column", default="messages", help="column that holds the chat [messages]")
@click.option("--rows", default=3, type=click.IntRange(min=1), help="show the first N rows [3]")
@click.option("--chat-template", type=click.Path(path_type=Path), help="Jinja file [the model's own template]")
@click.option("--date", type=click.DateTime(["%Y-%m-%d"]), help="date that a template may print [today]")
@click.option("--end-of-turn/--no-end-of-turn", default=True, help="mask the end-of-turn token [--end-of-turn]")
def mask_command(model: str, rows: int, chat_template: Path | None, date: datetime | None, **flags: Any) -> None:
    """Show which text the assistant generated, in green (or between ⟦ and ⟧), as a chat template prints it.

    Exit code 1 if a row has no mask that is certain.
    """
    set_up_logging(is_debug=False)
    options = {"end_of_turn": flags.pop("end_of_turn"), "date": date.date() if date else None}
    sys.exit(guarded(lambda: _mask(job_from_dict({"model": model, **flags}), rows, chat_template, options)))


def _mask(job: Job, rows: int, chat_template: Path | None, options: Mapping[str, Any]) -> int:
    from extract.mask import show_masks

    num_refused = 0
    for row in show_masks(job, Settings().cache, chat_template, rows, color=sys.stdout.isatty(), **options):
        click.echo(f"{row.text}\n")
        num_refused += row.is_refused
    return int(num_refused > 0)


@click.command("doctor", cls=RunCommand)
@click.option("--device", help="device to look at, as in cuda:1 or cpu [the accelerator]")
@click.option("--cache-dir", help="folder of unfinished and pending work [$STILLROOM_CACHE or ~/.cache/stillroom]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object [off]")
def doctor_command(as_json: bool, **options: str | None) -> None:
    """Show what this machine has for stillroom: versions, engines, device, memory, disk, Hub login, presets."""
    from extract.doctor import LATE, as_text, examine

    report = examine(Settings(device=options["device"], cache_dir=options["cache_dir"]))
    click.echo(json.dumps(report, indent=1) if as_json else "\n".join(as_text(report)))
    if LATE in report.values():  # a thread that hangs in a driver would hold up the end of the process
        sys.stdout.flush()
        os._exit(0)


@click.group(cls=CommandGroup, context_settings={"max_content_width": 100})
def main() -> None:
    """Make and use datasets of embeddings and teacher logits."""


main.add_command(run_command)
main.add_command(status_command)
main.add_command(verify_command)
main.add_command(doctor_command)
main.add_command(mask_command)
main.add_command(card_command)
main.add_command(explore_command)
main.add_command(export_command)
main.add_command(search_command)
main.add_command(map_command)
main.add_command(density_command)
main.add_command(sample_command)
main.add_command(compare_command)
