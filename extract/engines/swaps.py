"""Modules of a model that are replaced, and how to have them back."""

from __future__ import annotations

from torch import nn


class Swaps:
    """Replaces modules, and undoes all of it."""

    def __init__(self) -> None:
        self._old: list[tuple[nn.Module, str, nn.Module]] = []

    def put(self, parent: nn.Module, name: str, new: nn.Module) -> None:
        """Replace a child."""
        self._old.append((parent, name, getattr(parent, name)))
        setattr(parent, name, new)

    def undo(self) -> None:
        """Put every module back."""
        while self._old:
            setattr(*self._old.pop())


def has_hooks(module: nn.Module) -> bool:
    """Whether someone watches a module: what takes its place would not call him."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
