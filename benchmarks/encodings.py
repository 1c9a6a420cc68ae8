"""Bytes per token of whole logits builds: the default, --encoding compact, and compact with --select global.

    python benchmarks/encodings.py --source CHATS.parquet --rows 60

Each is a run of extract/run.py into a folder, by SmolLM2-135M-Instruct (the model of the preset demo-logits). Bytes are those
of the Parquet files, over the tokens that were captured; `record alone` leaves out input_ids, positions, ids and hashes. Codec
KL: from what the default record says of a token's exact entries (right to 1e-9) to the other, with all else as one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import click
import numpy as np
import pyarrow.parquet as pq

from benchmarks.packing import chunk_bytes
from builders.packing import Array, Logits
from builders.stored_logits import open_logits

WAYS = {
    "default": [],
    "compact": ["--encoding", "compact"],
    "compact, global 1/256": ["--encoding", "compact", "--select", "global"],
    "temperatures 1,2": ["--temperatures", "1,2"],
}
RECORD = ("top_", "sampled_", "exact_", "rest", "logsumexp", "sample_weight", "tail_mass")


def read(folder: Path) -> list[Logits]:
    stored = open_logits(str(folder))
    paths = sorted(folder.glob("data/**/*.parquet"))
    return [stored.unpack(row) for path in paths for row in pq.read_table(path).to_pylist()]


def codec_kl(true: Logits, other: Logits) -> Array:
    """Per token, over the ids that are exact in both."""
    keys = [np.repeat(np.arange(len(x.counts)), x.counts) << 18 | x.ids for x in (true, other)]
    _, a, b = np.intersect1d(*keys, return_indices=True)
    tokens, size = keys[0][a] >> 18, len(true.counts)
    p, q = true.probabilities[a].astype(np.float64), other.probabilities[b].astype(np.float64)
    rest = [np.clip(1 - np.bincount(tokens, x, minlength=size), 1e-9, 1) for x in (p, q)]
    return np.bincount(tokens, p * np.log(p / q), minlength=size) + rest[0] * np.log(rest[0] / rest[1])


@click.command()
@click.option("--source", required=True, help="chats, Parquet")
@click.option("--rows", default=60, show_default=True, help="the first so many")
@click.option("--max-length", default=512, show_default=True, help="tokens per conversation")
def main(source: str, rows: int, max_length: int) -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as folder:
        job = ["--preset", "demo-logits", "--source", os.path.abspath(source), "--limit", str(rows)]
        job += ["--max-length", str(max_length), "--dtype", "bfloat16", "--chunk-rows", str(rows), "--resume"]
        click.echo("| way | exact, drawn per token | B/token | record alone | codec KL |\n|---|---|---|---|---|")
        first: list[Logits] = []
        for name, options in WAYS.items():
            output = Path(folder) / name.split("/")[0].replace(" ", "-")
            command = [sys.executable, str(CHECKOUT / "extract/run.py"), *job, "--output", str(output), *options]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            found = read(output)
            first = first or found
            tokens = sum(len(one.counts) for one in found)
            sizes = [size for path in output.glob("data/**/*.parquet") for size in chunk_bytes(path).items()]
            record = sum(size for column, size in sizes if column.startswith(RECORD))
            whole = sum(path.stat().st_size for path in output.glob("data/**/*.parquet"))
            kl = np.concatenate([codec_kl(one, other) for one, other in zip(first, found, strict=True)]).mean()
            exact, drawn = (
                sum(int(getattr(x, n).sum()) for x in found) / tokens for n in ("counts", "sampled_counts")
            )
            line = f"{exact:.1f}, {drawn:.1f} | {whole / tokens:.1f} | {record / tokens:.1f} | {kl:.0e}"
            click.echo(f"| {name} | {line} |")
        click.echo(f"\n{tokens:,} tokens")


if __name__ == "__main__":
    main()
