"""Versions of what decides values, for chunk metadata and the card."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "huggingface_hub", "pyarrow", "numpy", "pillow")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


VERSIONS = {"python": platform.python_version(), **{name: v for name in PACKAGES if (v := _version(name))}}
