"""Sections of a card beside its generated part: one for each configuration that was made from the vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from builders.schema import Column
from cards.card import split_front_matter


def put_section(readme: str, name: str, text: str, configs: Sequence[Mapping[str, Any]]) -> str:
    """Return README.md with a section of that name, in the place of an older one, and its configurations in the YAML."""
    data, body = split_front_matter(readme)
    names = {config["config_name"] for config in configs}
    kept = [c for c in data.get("configs") or [] if c.get("config_name") not in names]
    data = {**data, "configs": [*kept, *map(dict, configs)]}
    begin, end = _bound("begin", name), _bound("end", name)
    part = f"{begin}\n\n{text.strip()}\n\n{end}"
    before, found, rest = body.partition(begin)
    _, found_end, after = rest.partition(end)
    body = f"{before}{part}{after}" if found and found_end else f"{body.rstrip()}\n\n{part}\n"
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n\n{body.lstrip()}"


def has_section(readme: str, name: str) -> bool:
    """Whether README.md has a section of that name."""
    return _bound("begin", name) in readme


def _bound(what: str, name: str) -> str:
    return f"<!-- stillroom: {what} of {name} -->"


def config_of(name: str, split: str) -> dict[str, Any]:
    """The YAML of a configuration whose chunks stand in a folder of its name."""
    return {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}/**/*.parquet"}]}


def column_table(columns: Sequence[Column]) -> str:
    """Columns as a Markdown table."""
    rows = [f"| `{c.name}` | {c.dtype}{f'[{c.length}]' if c.length else ''} | {c.about} |" for c in columns]
    return "\n".join(["| column | type | |", "|---|---|---|", *rows])


def density_section(
    name: str, load_name: str, split: str, columns: Sequence[Column], about: Mapping[str, Any], figures: Sequence[str]
) -> str:
    """What the card says of the configuration `density`, and of the vectors: `figures` of their sanity, a line each."""
    listed = "\n".join(f"- {line}" for line in figures)
    how = f"{about['method']}, {about['metric']}"
    if "recall" in about:
        how += f", k = {about['k']}, recall {about['recall']:.3f}"
    growing = (
        "" if about["is_complete"] else f" The dataset was still being built: {about['rows_covered']:,} rows so far."
    )
    return f"""## Density

Configuration `{name}`: how densely each of {about["n"]:,} vectors lies among the others, and the weight that evens this out
({how}).{growing} Weights, times their number, go from {about["min"]:.3g} to {about["max"]:.3g}.

```python
from datasets import load_dataset

density = load_dataset("{load_name}", "{name}", split="{split}")  # `index` is the key to the records
```

{column_table(columns)}

Of the vectors themselves:

{listed}
"""
