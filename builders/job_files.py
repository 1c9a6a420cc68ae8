"""Jobs as files: TOML that people write, JSON that an output holds, presets that come with the code."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from builders.job import Job
from builders.options import ConfigError, from_mapping, option_fields


def job_from_dict(mapping: Mapping[str, Any]) -> Job:
    """Build a job from TOML or JSON keys.

    Raises:
        ConfigError: an unknown key (with the known ones) or a value that does not fit.
    """
    check_names(mapping, option_fields(Job))
    return from_mapping(Job, mapping)


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that are not known.

    Raises:
        ConfigError: with the known ones that are nearest, or else all.
    """
    known = sorted(known)
    for name in sorted(set(given) - set(known)):
        near = get_close_matches(name, known)
        which = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the options are {', '.join(known)}"
        raise ConfigError(f"unknown option {name!r}: {which}")


def stored_job(mapping: Mapping[str, Any]) -> Job:
    """Build a job from what `Job.to_dict` gave: its options, and what was settled beside them."""
    settled = {spec.name for spec in fields(Job)} - option_fields(Job).keys()
    job_from_dict({name: value for name, value in mapping.items() if name not in settled})
    return from_mapping(Job, mapping)


def preset_names() -> list[str]:
    """Names of the jobs shipped with the code."""
    return sorted(f.name.removesuffix(".toml") for f in resources.files("builders").joinpath("presets").iterdir())


def read_preset(name: str) -> dict[str, Any]:
    """Return the options of a shipped job.

    Raises:
        ConfigError: no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"--preset is {name!r}: the presets are {', '.join(preset_names())}")
    return tomllib.loads(resources.files("builders").joinpath("presets", f"{name}.toml").read_text())


def read_toml(path: Path) -> dict[str, Any]:
    """Return the options of a job file. A key `preset` names a shipped job that the other keys build on.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    try:
        options = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"--job {path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--job {path} is not valid TOML: {error}") from None
    preset = options.pop("preset", None)
    return {**read_preset(preset), **options} if preset is not None else options
