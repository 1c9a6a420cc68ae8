"""Several values in one option of the command line."""

from __future__ import annotations

from typing import Any

import click


class Listed(click.ParamType):
    """`think,response` as a tuple of words, or `1,2` of numbers."""

    def __init__(self, element: type) -> None:
        self.element, self.name = element, "words" if element is str else "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Split at commas."""
        try:
            words = value if isinstance(value, tuple) else filter(None, map(str.strip, value.split(",")))
            return tuple(map(self.element, words))
        except ValueError:
            self.fail(f"{value!r} is no list of {self.name}, as in 1,2", param, ctx)
