"""`stillroom sample --to`: the rows of the source that a subset names, as a dataset of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from builders.curate.chosen import chosen_rows
from builders.curate.vectors import VectorDataset, cache_folder
from builders.layout import Layout
from builders.source import Source
from builders.units import Unit
from cards.section import put_section
from extract.derived import commit_derived

SECTION = "subset"


def put_subset(
    dataset: VectorDataset,
    source: Source,
    indices: np.ndarray,
    facts: Mapping[str, Any],
    target: str,
    *,
    private: bool,
    cache: str | None,
) -> str:
    """Write rows of the dataset's source, at sorted `indices`, into `target`, and return the line that loads them.

    `facts` are the card's table: how the rows were chosen, and what they cover.

    Raises:
        ConfigError: `target` holds something else.
        SourceError: the source cannot be read.
        CommitError: `target` refuses.
    """
    folder, layout = cache_folder(cache), Layout("default", dataset.stored.job.split)
    config = {"config_name": "default", "data_files": [{"split": layout.split, "path": layout.glob(layout.data)}]}

    def write_card(readme: str, loaded: str) -> str:
        return put_section(readme, SECTION, _section(dataset, source, facts, loaded), [config])

    about = {"n": len(indices), "source": source.name, "revision": source.revision, "embeddings": dataset.name}
    parts = _parts(source, indices, layout)
    loaded = commit_derived(target, layout.data, parts, about, write_card, folder, private=private, replaces=SECTION)
    return f'load_dataset("{loaded}", split="{layout.split}")'


def _parts(source: Source, indices: np.ndarray, layout: Layout) -> Iterator[tuple[str, pa.Table]]:
    start = 0
    for number, table in enumerate(chosen_rows(source, indices)):
        yield Unit(number, start, start + len(table)).path(layout.data, layout.split), table
        start += len(table)


def _section(dataset: VectorDataset, source: Source, facts: Mapping[str, Any], loaded: str) -> str:
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# A subset of {source.name}

Rows of {source.name} (split `{dataset.stored.job.split}`, revision `{source.revision}`), all columns, chosen by their
embeddings in {dataset.name}. `index` is the row of the source, and the key to the records there.

| | |
|---|---|
{table}

```python
from datasets import load_dataset

dataset = load_dataset("{loaded}", split="{dataset.stored.job.split}")
```
"""
