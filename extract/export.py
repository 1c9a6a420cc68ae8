"""A dataset as files that other programs read: `stillroom export OUTPUT DEST --to KIND`, teacher logits or embeddings."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builders.options import ConfigError
from extract.command import RunCommand, guarded, set_up_logging

if TYPE_CHECKING:
    import pyarrow as pa

    from builders.exports import Export
    from builders.stored_logits import StoredLogits

LOGITS_KINDS = ("distillkit", "axolotl")
VECTOR_KINDS = ("safetensors", "pt", "npy", "parquet", "faiss", "chroma", "lancedb")
GROUP_BYTES = 64 << 20  # of a row group, before compression: what is in memory at a time
GROUPS_PER_FILE = 32


def export(stored: StoredLogits, kind: str, folder: Path, sequence_length: int | None = None) -> Counter[str]:
    """Write all records to Parquet files in `folder`, and a README with the configuration that reads them.

    Returns how many "rows" were written, and records "left out" as they have no target within the length.

    Raises:
        ConfigError: the folder holds something, or the dataset cannot be exported to that kind.
    """
    import pyarrow.parquet as pq

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and not empty: give a new folder")
    try:
        target = _target(stored, kind, sequence_length)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with ExitStack() as file:
        for number, table in enumerate(_groups(_rows(stored, target, counts))):
            if number % GROUPS_PER_FILE == 0:
                file.close()
                path = folder / f"train-{number // GROUPS_PER_FILE:05d}.parquet"
                writer = file.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
            writer.write_table(table, row_group_size=len(table))
    config = target.config(str(folder))
    (folder / "README.md").write_text(
        f"Teacher logits of {stored.name}, for {kind}: {counts['rows']:,} rows.\n\n```yaml\n{config}```\n"
    )
    return counts


def _target(stored: StoredLogits, kind: str, sequence_length: int | None) -> Export:
    from builders.exports import Axolotl, DistillKit, columns_to_measure, measure

    if kind == "axolotl":
        return Axolotl(sequence_length)
    DistillKit(stored.form, 1, 1)  # refuses before everything is read
    sizes = measure(stored.records(columns_to_measure(stored.form)), stored.form)
    return DistillKit(stored.form, sequence_length or sizes.length, sizes.width)


def _rows(stored: StoredLogits, target: Export, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    for record in stored.records():
        row = target.row(stored.unpack(record))
        counts["left out" if row is None else "rows"] += 1
        if row is not None:
            yield row


def _groups(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Rows in tables of about GROUP_BYTES."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    for row in rows:
        held.append(row)
        if sum(one.nbytes for one in held) >= GROUP_BYTES:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


@click.command("export", cls=RunCommand, context_settings={"max_content_width": 100})
@click.argument("output")
@click.option("--to", "kind", required=True, type=click.Choice([*LOGITS_KINDS, *VECTOR_KINDS]), help="what to write")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--config-name", default="default", help="configuration within the output [default]")
@click.option("--column", help="vectors to write, where records have several [the only one]")
@click.option(
    "--sequence-length",
    type=click.IntRange(min=2),
    help="cut conversations to N tokens; rows for distillkit are padded to it [the longest conversation]",
)
def export_command(output: str, kind: str, dest: Path, **options: Any) -> None:
    """Write a dataset to the new folder DEST, in the form of another program.

    Teacher logits: rows that distillkit or axolotl trains on, with the configuration that reads them in a README. Every id is
    written with the log of what it weighs, so that the gradient of their loss is unbiased.

    Embeddings: safetensors (all, and each source alone), pt (ids and emb), npy, one parquet file, a faiss index, or a
    database of chroma or lancedb. Files are read back and compared, and SHA256SUMS has their hashes.
    """
    set_up_logging(is_debug=False)
    sys.exit(guarded(lambda: _export(output, kind, dest, **options)))


def _export(
    output: str, kind: str, dest: Path, config_name: str, column: str | None, sequence_length: int | None
) -> int:
    from builders.stored import open_stored

    try:
        build = open_stored(output, config_name=config_name).job.build
        kinds = {"logits": LOGITS_KINDS, "embeddings": VECTOR_KINDS}.get(build, ())
        if kind not in kinds:
            raise ConfigError(f"--to {kind}: {output} holds {build}; for these: {', '.join(kinds) or 'no export'}")
        if build == "embeddings":
            if sequence_length is not None:
                raise ConfigError(f"--sequence-length is for teacher logits: {output} holds embeddings")
            return _export_vectors(output, kind, dest, config_name, column)
        if column is not None:
            raise ConfigError(f"--column is for embeddings: {output} holds {build}")
        return _export_logits(output, kind, dest, config_name, sequence_length)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _export_vectors(output: str, kind: str, dest: Path, config_name: str, column: str | None) -> int:
    from builders.curate.extras import MissingExtraError
    from builders.curate.vectors import open_dataset
    from builders.curate.vectors_export import export_vectors

    dataset = open_dataset(output, config_name=config_name, column=column)
    try:
        done = export_vectors(dataset, kind, dest)
    except MissingExtraError as error:
        raise ConfigError(f"--to {kind}: {error}") from None
    sources = f", {len(done.sources)} sources" if done.sources else ""
    click.echo(
        f"{dest}: {done.num_rows:,} rows of {dataset.dimension} dimensions{sources}; {output} is {dataset.progress}"
    )
    return 0


def _export_logits(output: str, kind: str, dest: Path, config_name: str, sequence_length: int | None) -> int:
    from builders.stored_logits import open_logits

    counts = export(open_logits(output, config_name=config_name), kind, dest, sequence_length)
    left_out = f"; {counts['left out']:,} records have no target within the length" if counts["left out"] else ""
    click.echo(f"{dest}: {counts['rows']:,} rows{left_out}")
    return 0
