"""`stillroom density` and `stillroom sample`: from a dataset's vectors to what is stored or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from builders.curate.chosen import open_unchanged
from builders.curate.density_table import DensityTable, derived_name
from builders.curate.measure import measure
from builders.curate.sanity import equal_texts, sanity
from builders.curate.subset import SUFFIXES, choose, write_subset
from builders.curate.vectors import VectorDataset, cache_folder, open_dataset
from builders.options import ConfigError
from cards.section import config_of, density_section, put_section
from extract.derived import commit_derived
from extract.subset import put_subset


def open_vectors(output: str, column: str | None, config_name: str, revision: str | None = None) -> VectorDataset:
    """Open a dataset; what is wrong with it is a ConfigError."""
    try:
        return open_dataset(output, column=column, config_name=config_name, revision=revision)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def run_density(
    dataset: VectorDataset, *, k: int, method: str, seed: int, save: Path | None, commit: bool, cache: str | None
) -> Iterator[str]:
    """Measure, store as a configuration, and tell line by line."""
    yield f"{dataset.name}: {dataset.progress}"
    matrix = dataset.matrix(cache_folder(cache))
    figures = list(sanity(matrix.vectors, equal_texts(dataset)).lines())
    yield from figures
    try:
        table = measure(dataset, matrix, k=k, method=method, seed=seed)
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    about = table.about
    recall = f", recall@{about['k']} {about['recall']:.3f}" if "recall" in about else ""
    yield f"{about['n']:,} rows of {about['dim']} dimensions by {about['method']}{recall}"
    yield f"weights times N: min {about['min']:.3g}, max {about['max']:.3g}, std {about['std']:.3g}"
    if save is not None:
        save_weights(table, save)
        yield f"{save}: density_weights.npy, ids.json, metadata.json"
    if commit:
        name, split = derived_name("density", dataset), dataset.stored.job.split

        def write_card(readme: str, loaded: str) -> str:
            text = density_section(name, loaded, split, table.columns, about, figures)
            return put_section(readme, name, text, [config_of(name, split)])

        folder = cache_folder(cache)
        loaded = commit_derived(dataset.name, name, table.parts(name, split), about, write_card, folder)
        yield f'load_dataset("{loaded}", "{name}", split="{split}")'


def run_sample(
    dataset: VectorDataset, *, out: Path | None, to: str | None, private: bool, cache: str | None, **options: Any
) -> Iterator[str]:
    """Choose rows, write them, and tell what they cover beside a random subset; options are those of `choose`."""
    yield f"{dataset.name}: {dataset.progress}"
    if out is not None and out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: a subset is written as {', '.join(SUFFIXES)}")
    source = None if to is None else open_unchanged(dataset.stored.job, cache_folder(cache))
    matrix = dataset.matrix(cache_folder(cache))
    try:
        subset = choose(dataset, matrix, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    if options.get("threshold") is not None:
        gone = len(matrix) - subset.num_left
        yield f"{gone:,} of {len(matrix):,} rows are semantic duplicates, of a cosine of {options['threshold']} or more"
    facts = {f"{len(subset.positions):,} of {len(matrix):,} rows": subset.figures, "as many at random": subset.random}
    yield from (f"{name}: {figures}" for name, figures in facts.items())
    if out is not None:
        write_subset(dataset, matrix, subset.positions, out)
        yield f"{out}: {len(subset.positions):,} rows"
    if to is not None and source is not None:
        how = {name: value for name, value in options.items() if value is not None}
        indices = np.asarray(matrix.indices[subset.positions])
        yield put_subset(dataset, source, indices, {**facts, **how}, to, private=private, cache=cache)


def save_weights(table: DensityTable, folder: Path) -> None:
    """Write density_weights.npy (float64 [N]), ids.json (ids, or indices, in the same order) and metadata.json."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "density_weights.npy", table.weights)
    ids = table.indices.tolist() if table.ids is None else table.ids.to_pylist()
    (folder / "ids.json").write_text(json.dumps(ids))
    (folder / "metadata.json").write_text(json.dumps(table.about, indent=1))
