"""Reading stored teacher logits: Parquet, decoding by record and by batch, and the figures of `stillroom explore`.

    python benchmarks/read_logits.py OUTPUT [--min-tokens 200000]

OUTPUT: a folder that a logits build made. Its chunks are measured as they are ("small"), and put together into one file, again
and again until it has the tokens ("large"); for both, a compact encoding of the same records beside the default one. One
thread, processor time (others may use the machine), the best of several passes. Repeated rows compress better than new ones
would: B/token and Parquet of a large file are best cases, most of all of the compact encoding.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.compact import pack_compact
from builders.logits_schema import LogitsFormat, logits_columns
from builders.logits_stats import LogitsStats
from builders.packing import unpack
from builders.rank_table import RankTable
from builders.read_logits import read_batch, read_logits
from builders.schema import arrow_schema
from hub.chunk import write_chunk

PARTS = ("Parquet alone", "and decoded by record", "and decoded by batch", "and the figures of explore")


def to_compact(table: pa.Table, form: LogitsFormat) -> tuple[pa.Table, RankTable]:
    """Pack the records of a default table again."""
    (batch,) = table.combine_chunks().to_batches(max_chunksize=None)
    whole = read_batch(batch)
    ranks = RankTable.from_frequencies(np.bincount(whole.logits.ids, minlength=form.vocab_size))
    rows = []
    for n in range(len(whole)):
        one = whole.record(n)
        place = {"input_ids": one.input_ids, "positions": one.positions}
        arrays = (one.ids, one.logits, one.counts, one.logsumexp, one.sampled_ids, one.sampled_logits)
        rows.append({"index": int(whole.index[n]), **pack_compact(*arrays, ranks=ranks, **place)})
    form = LogitsFormat("compact", form.vocab_size, form.tokenizer, form.num_sampled, ranks_sha256=ranks.sha256)
    made = pa.Table.from_pylist(rows, schema=arrow_schema(logits_columns(form)))
    return made.replace_schema_metadata(made.schema.metadata | form.to_metadata()), ranks


def parquet(paths: list[Path], ranks: RankTable | None, form: LogitsFormat) -> None:
    for path in paths:
        pq.read_table(path, use_threads=False)


def by_record(paths: list[Path], ranks: RankTable | None, form: LogitsFormat) -> None:
    for path in paths:
        table = pq.read_table(path, use_threads=False)
        columns = {name: table[name] for name in table.column_names}
        for i in range(table.num_rows):
            unpack({name: column[i] for name, column in columns.items()}, ranks)


def by_batch(paths: list[Path], ranks: RankTable | None, form: LogitsFormat) -> None:
    for path in paths:
        for _ in read_logits(pq.ParquetFile(path), ranks):
            pass


def figures(paths: list[Path], ranks: RankTable | None, form: LogitsFormat) -> None:
    stats = LogitsStats(form)
    for path in paths:
        for batch in read_logits(pq.ParquetFile(path), ranks):
            stats.add(batch.logits, batch.targets, len(batch))


def rate(tokens: int, call: Callable[..., None], *arguments: object, passes: int) -> float:
    """Million tokens per second of processor time."""
    seconds = []
    for _ in range(passes):
        start = time.process_time()
        call(*arguments)
        seconds.append(time.process_time() - start)
    return tokens / min(seconds) / 1e6


@click.command()
@click.argument("output", type=click.Path(path_type=Path, exists=True))
@click.option("--min-tokens", default=200_000, show_default=True, help="Tokens of the large file.")
@click.option("--passes", default=5, show_default=True, help="Passes; the best counts.")
def main(output: Path, min_tokens: int, passes: int) -> None:
    """Print one table."""
    chunks = [pq.read_table(path) for path in sorted(output.glob("data/**/*.parquet"))]
    form = LogitsFormat.from_metadata(chunks[0].schema.metadata)
    tokens = sum(sum(chunk["num_tokens"].to_pylist()) for chunk in chunks)
    times = -(-min_tokens // tokens)
    click.echo(f"| M tokens/s/core | tokens in files | B/token | {' | '.join(PARTS)} |\n|{'---|' * (3 + len(PARTS))}")
    with tempfile.TemporaryDirectory() as folder:
        for encoding in ("default", "compact"):
            whole, ranks = pa.concat_tables(chunks), None
            if encoding == "compact":
                whole, ranks = to_compact(whole, form)
            per_file = -(-whole.num_rows // len(chunks))
            small = [whole.slice(i, per_file) for i in range(0, whole.num_rows, per_file)]
            for size, tables, total in (
                ("small", small, tokens),
                ("large", [pa.concat_tables([whole] * times)], tokens * times),
            ):
                paths = [Path(folder) / f"{encoding}-{size}-{i}.parquet" for i in range(len(tables))]
                for path, table in zip(paths, tables, strict=True):
                    write_chunk(path, table.combine_chunks(), {})
                own = LogitsFormat.from_metadata(pq.read_schema(paths[0]).metadata)
                calls = (parquet, by_record, by_batch, figures)
                rates = [rate(total, call, paths, ranks, own, passes=passes) for call in calls]
                bytes_per_token = sum(path.stat().st_size for path in paths) / total
                cells = [f"{total:,} in {len(paths)}", f"{bytes_per_token:.0f}", *(f"{r:.2f}" for r in rates)]
                click.echo(f"| {encoding}, {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
