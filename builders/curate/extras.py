"""Packages that only some commands need, and that an extra brings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

CURATE = "pip install 'stillroom[curate]'"
VIZ = "pip install 'stillroom[viz]'"


class MissingExtraError(ImportError):
    """A package that only some commands need is not installed; the text says how to get it."""


def needed(module: str, hint: str) -> Any:
    """Import a module.

    Raises:
        MissingExtraError: it is not installed; the text ends with the hint.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{error}: {hint}") from None
