"""Embeddings beside SentenceTransformer, the pipeline beside its bare engine, and the engine beside the machine's peak.

What is timed stands in embed_vs_st.py; these are its runs over generated chats, and, in the same turns, the largest rate at
which torch multiplies matrices (2,048 cubed, and the shape of the model's widest layer, all cores) in the same dtype.
FLOPs of a token: 2 for each weight of the encoder's linear layers, and 4 d for each pair of tokens that attend to each other.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.embed_vs_st import (
    DEFAULT_BATCH_SIZE,
    MODEL,
    Ours,
    best_batch_size,
    peer,
)
from benchmarks.table import Row
from builders.demo import write_demo
from builders.job import Job
from extract.model_files import read_model_files
from extract.sample import Batch

ROWS, CHUNK_ROWS, PAIRS = {"float32": 300, "bfloat16": 500}, 200, 3  # some seconds a run: its end takes 0.2 s of it
OVER_DEFAULT, OVER_BEST, OVER_ENGINE, OUTSIDE = 2.0, 1.5, 0.97, 3.0
SHAPES = ((2048, 2048, 2048), (4096, 384, 1536))


def peak_flops(dtype: str, repeats: int = 8) -> float:
    """FLOP/s of the best matrix product of those tried."""
    import torch

    rates = []
    for m, k, n in SHAPES:
        a, b = torch.randn(m, k, dtype=getattr(torch, dtype)), torch.randn(k, n, dtype=getattr(torch, dtype))
        a @ b
        for _ in range(repeats):
            start = time.perf_counter()
            a @ b
            rates.append(2 * m * k * n / (time.perf_counter() - start))
    return max(rates)


def model_flops(folder: Path, batches: Sequence[Batch]) -> float:
    """FLOPs of a BERT-like encoder over the batches, each text attending to itself alone."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    width, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * width**2 + 2 * width * config.intermediate_size)
    lengths = [sample.num_tokens for batch in batches for sample in batch.samples]
    return 2.0 * weights * sum(lengths) + 4.0 * width * layers * sum(length**2 for length in lengths)


def rows(dtype: str, num_rows: int | None = None, pairs: int = PAIRS) -> Iterator[Row]:
    """Yield the rows of the table."""
    num_rows = num_rows or ROWS[dtype]
    speeds: dict[str, list[float]] = {"default": [], "best": [], "whole": [], "poured": [], "engine": [], "peak": []}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        source = str(write_demo(folder / "demo.parquet", num_rows))
        job = Job(source=source, model=MODEL, limit=num_rows, chunk_rows=CHUNK_ROWS, dtype=dtype)
        ours = Ours.load(job, folder)
        sentences, batches = ours.rows()
        num_tokens = sum(batch.num_tokens for batch in batches)
        files, max_length = read_model_files(ours.job), ours.job.max_length
        assert max_length is not None
        flops = model_flops(files.folder, batches) / num_tokens
        with peer(files.folder, dtype, max_length, sentences) as encode:
            best = best_batch_size(encode)
            ours.run()  # what is imported and built at first use; the other side has run ten times
            ours.outside.clear()
            for _ in range(pairs):
                theirs = [encode(DEFAULT_BATCH_SIZE)[0].wall]
                poured, whole, _ = ours.run()
                engine = ours.run_engine(batches)
                taken = [*theirs, encode(best)[0].wall, whole.wall, poured.wall, engine.wall]
                for key, seconds in zip(speeds, taken, strict=False):
                    speeds[key].append(num_tokens / seconds)
                speeds["peak"].append(peak_flops(dtype) / flops)
    unit, name = "tokens/s", f"embeddings {dtype}"
    default, tuned = (f"`encode`, batch {size}" for size in (DEFAULT_BATCH_SIZE, best))
    yield Row(f"{name}, Parquet to folder", unit, speeds["whole"], speeds["default"], default, OVER_DEFAULT)
    yield Row(f"{name}, Parquet to folder", unit, speeds["whole"], speeds["best"], f"{tuned} (best)", OVER_BEST)
    yield Row(f"{name}, to the last chunk", unit, speeds["poured"], speeds["engine"], "our engine alone", OVER_ENGINE)
    outside = [100 * share for share in ours.outside]
    yield Row(f"{name}, CPU seconds outside of the model", "% of those in it", outside, goal=OUTSIDE, is_less=True)
    note = f"{flops / 1e6:.1f} MFLOP a token"
    yield Row(f"{name}, engine alone", unit, speeds["engine"], speeds["peak"], "matmul peak", note=note)
