"""Options as dataclass fields: one definition gives the flag, the TOML key, the help text, the check and the card."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A job that cannot be run as it is written: one line that says what, which value and what to do. Exit code 2."""


def option(
    default: Any,
    help: str,
    *,
    group: str,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    values: bool = True,
    settled: bool = False,
    late: bool = False,
) -> Any:
    """Return a dataclass field with its help text.

    `values` says that the option decides what is written, so that it belongs to the job's fingerprint; `settled`, that a run
    finds it out and nobody gives it: it has no flag and no TOML key; `late`, that it came after datasets were made: its
    default is left out of the fingerprint, which stays theirs.
    """
    metadata = {"help": help, "group": group, "choices": choices, "minimum": minimum, "values": values}
    metadata |= {"settled": settled, "late": late}
    return field(default=default, metadata=metadata)


def value_type(cls: type, name: str) -> tuple[type, bool]:
    """Return (type, is optional) of a field: `int | None` gives (int, True), `tuple[str, ...]` gives (tuple, False)."""
    hint = _hints(cls)[name]
    if isinstance(hint, types.UnionType):
        return next(a for a in get_args(hint) if a is not type(None)), True
    return get_origin(hint) or hint, False


def element_type(cls: type, name: str) -> type:
    """Return the type of the elements of a field that is a tuple: `tuple[float, ...]` gives float."""
    kind: type = get_args(_hints(cls)[name])[0]
    return kind


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of all fields of a class: one evaluation for all of them, where one for each would take 60 ms of every start."""
    return get_type_hints(cls)


def check_fields(instance: Any) -> None:
    """Check every field of a frozen dataclass against its own definition.

    Raises:
        ConfigError: a wrong type, a value outside `choices`, a number under `minimum`.
    """
    for spec in fields(instance):
        value = getattr(instance, spec.name)
        kind, is_optional = value_type(type(instance), spec.name)
        if value is None and is_optional:
            continue
        flag = f"--{spec.name.replace('_', '-')}"
        if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
            raise ConfigError(f"{flag} is {value!r}: expected {kind.__name__}, got {type(value).__name__}")
        if isinstance(value, tuple):
            _check_elements(flag, value, element_type(type(instance), spec.name))
        _check_range(flag, value, spec)


def _check_elements(flag: str, values: tuple[Any, ...], kind: type) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ConfigError(f"{flag} has {value!r}: expected {kind.__name__}, got {type(value).__name__}")


def _check_range(flag: str, value: Any, spec: Field[Any]) -> None:
    choices, minimum = spec.metadata["choices"], spec.metadata["minimum"]
    if choices and value not in choices:
        raise ConfigError(f"{flag} is {value!r}: choose one of {', '.join(choices)}")
    if minimum is not None and not value >= minimum:  # nan is at least nothing
        raise ConfigError(f"{flag} is {value!r}: it must be at least {minimum:g}")


def from_mapping(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Build the dataclass from TOML or JSON keys; lists become tuples, ints become floats where a float is meant."""
    coerced = {}
    for name, value in mapping.items():
        kind, _ = value_type(cls, name)
        if kind is tuple and isinstance(value, list):
            is_float = element_type(cls, name) is float
            value = tuple(float(v) if is_float and type(v) is int else v for v in value)
        elif kind is float and type(value) is int:
            value = float(value)
        coerced[name] = value
    return cls(**coerced)


def option_fields(cls: type) -> dict[str, Field[Any]]:
    """Return the options of a dataclass by name; each has a default. What is only settled is none."""
    specs = {spec.name: spec for spec in fields(cls) if not spec.metadata["settled"]}
    assert all(spec.default is not MISSING for spec in specs.values()), "every option has a default"
    return specs
