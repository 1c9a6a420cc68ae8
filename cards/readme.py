"""README.md as text: its YAML, our part between two marks, and the words of a person around it, which stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

BEGIN, END = "<!-- stillroom: begin of the generated part -->", "<!-- stillroom: end of the generated part -->"
FRONT_MATTER = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return (YAML, body) of a README."""
    match = FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError:  # not worth a run: it stays in the body, for its author to see
        return {}, text
    return (data if isinstance(data, dict) else {}), text[match.end() :]


def replace_generated(body: str, generated: str) -> str:
    """Put the generated part where the old one was, or in front of what is there."""
    part, body = f"{BEGIN}\n\n{generated}\n\n{END}", body.lstrip("\r\n")
    before, found, rest = body.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if found and found_end:
        return f"{before}{part}{after}"
    return f"{part}\n\n{body.strip()}\n" if body.strip() else f"{part}\n"


def merge_data(old: Mapping[str, Any], new: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Keep what a person set; configurations and tags of other jobs stay beside ours, which are those in `names`."""
    merged = {**new, **{key: value for key, value in old.items() if key not in ("configs", "dataset_info", "tags")}}
    merged["size_categories"] = new["size_categories"]
    for key in ("configs", "dataset_info"):
        mine = list(new.get(key, []))
        kept = _listed(old.get(key))
        parts = mine + [p for p in kept if isinstance(p, dict) and p.get("config_name", "default") not in names]
        if parts:
            merged[key] = parts
        else:
            merged.pop(key, None)
    merged["tags"] = list(dict.fromkeys([*new["tags"], *_listed(old.get("tags"))]))
    return merged


def _listed(value: Any) -> list[Any]:
    """One thing or several, as YAML has it."""
    return [] if not value else list(value) if isinstance(value, list) else [value]
