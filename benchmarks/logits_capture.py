"""What capturing teacher logits costs over a bare forward pass, and what its parts cost, on this machine.

    python benchmarks/logits_capture.py --model FOLDER --source CHATS.parquet --dtype float32 --dtype bfloat16

*Bare*: `model(input_ids)` as transformers has it, logits of all rows, nothing kept. *Engine*: this project's backbone and
head over all rows, nothing chosen. *Capture*: backbone, head on the wanted rows, nucleus, logsumexp, draws, arrays on the
host. Same batches, one thread, in turns; a ratio is of neighbours, and its median is given with the least and the largest.
Ratios of CPU seconds stand beside those of wall time: other work on the machine moves them less.
"""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import pyarrow.parquet as pq
import torch
import transformers

from extract.batching import TokenBudget
from extract.engines.capture import CaptureEngine
from extract.engines.causal import CausalModel
from extract.engines.nucleus import Rule, Selector
from extract.token_logits import Conversation, TokenLogits

LENGTH, BATCH = 512, 2  # tokens of a sequence, sequences of a batch
BLOCK = 1024  # tokens of the figures for parts
Seconds = tuple[float, float]  # wall, CPU


def timed(work: Callable[[], object]) -> Seconds:
    """Seconds that `work` takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Median (least to largest)."""
    middle, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    return f"{middle} ({low}–{high})"


def resident() -> int:
    """MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def peak() -> int:
    """The most MB that this process had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def sequences(model: str, source: str, number: int) -> list[list[int]]:
    """So many sequences of 512 tokens, one chat after the other."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids: list[int] = []
    for messages in pq.read_table(source, columns=["messages"])["messages"]:
        text = tokenizer.apply_chat_template(messages.as_py(), tokenize=False)
        ids += tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) >= number * LENGTH:
            return [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(number)]
    raise click.ClickException(f"{source} has fewer than {number * LENGTH:,} tokens")


def batches_of(texts: Sequence[list[int]], share: float) -> list[list[Conversation]]:
    """Batches in which the last `share` of each sequence is wanted."""
    first = LENGTH - round(share * (LENGTH - 1))
    rows = [Conversation(i, ids, list(range(first, LENGTH))) for i, ids in enumerate(texts)]
    return [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]


@torch.inference_mode()
def show_stage(logits: torch.Tensor, turns: int) -> None:
    """Time nucleus, logsumexp and draws of 1,024 tokens, beside a float64 softmax with a full sort."""
    select, u = Selector(Rule(), logits.shape[1]), torch.rand(BLOCK, dtype=torch.float64)
    everywhere = Selector(Rule(select="global"), logits.shape[1])
    few = logits[:64]
    sort = lambda: few.double().softmax(-1).sort(-1, descending=True)  # noqa: E731
    runs = {
        "nucleus, logsumexp, draws": (lambda: select(logits, u), 1),
        "the same with --select global": (lambda: everywhere(logits, u), 1),
        "float64 softmax and full sort": (sort, BLOCK // 64),
        "logsumexp of all rows at once": (lambda: torch.logsumexp(logits, -1), 1),
    }
    for work, _ in runs.values():
        work()
    click.echo(f"\nms per {BLOCK:,} tokens, V = {logits.shape[1]:,}: wall, CPU")
    for name, (work, times) in runs.items():
        taken = [timed(work) for _ in range(turns)]
        wall, cpu = ([seconds[i] * times * 1e3 for seconds in taken] for i in (0, 1))
        click.echo(f"  {name:32} {spread(wall, '{:,.0f}'):>24} {spread(cpu, '{:,.0f}'):>24}")


def show_ratios(
    bare: Callable[[], object], engine: Callable[[], object], capture: CaptureEngine, texts, turns
) -> None:
    """Time bare passes and captures in turns."""
    budget = TokenBudget(10**6)
    runs: dict[str, Callable[[], object]] = {"bare": bare, "engine": engine}
    for share in (1.0, 0.7):
        batches = batches_of(texts, share)
        runs[f"{share:.0%}"] = lambda batches=batches: list(capture.capture(batches, budget))
    taken: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, work in runs.items():
            seconds = timed(work)
            if turn:  # kernels are built in the first
                taken[name].append(seconds)
    for name in list(runs)[2:]:
        for base in ("bare", "engine"):
            cells = [[b[i] / c[i] for b, c in zip(taken[base], taken[name], strict=True)] for i in (0, 1)]
            click.echo(f"  {base} / capture, {name:>4} of rows wanted {spread(cells[0]):>24} {spread(cells[1]):>24}")


def show_memory(capture: CaptureEngine, texts: Sequence[list[int]], passes: int) -> None:
    """Capture the texts many times over, keeping what is found, as a unit does."""
    start, found = resident(), []
    batches = batches_of(texts, 1.0)
    sizes = []
    for _ in range(passes):
        found += list(capture.capture(batches, TokenBudget(10**6)))
        sizes.append(resident() - mega_bytes(found))
    ends = ", ".join(f"{sizes[round(i * (passes - 1))]:,}" for i in (0, 0.25, 0.5, 0.75, 1))
    click.echo(
        f"  {passes * len(texts) * LENGTH:,} tokens captured and kept ({mega_bytes(found):,} MB): {start:,} MB before, "
        f"then without what is kept {ends} MB; peak {peak():,} MB"
    )


def mega_bytes(found: Sequence[Sequence[TokenLogits]]) -> int:
    """MB of the arrays."""
    parts = (getattr(part, name).nbytes for batch in found for part in batch for name in part.__slots__)
    return sum(parts) // 2**20


@click.command()
@click.option("--model", required=True, help="folder or Hub id of a causal language model")
@click.option("--source", required=True, help="Parquet with a messages column")
@click.option("--dtype", "dtypes", multiple=True, default=("float32",), show_default=True, help="may be repeated")
@click.option("--batches", default=2, show_default=True, help=f"batches of {BATCH} x {LENGTH} tokens")
@click.option("--pairs", default=5, show_default=True, help="turns of each side")
@click.option("--passes", default=0, show_default=True, help="times the batches are captured to watch memory")
@click.option("--threads", default=1, show_default=True)
def main(
    model: str, source: str, dtypes: tuple[str, ...], batches: int, pairs: int, passes: int, threads: int
) -> None:
    """Measure the capture of teacher logits."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    click.echo(f"{date.today()}, {platform.machine()}, python {platform.python_version()}, torch {version('torch')}, ")
    texts = sequences(model, source, batches * BATCH)
    for dtype in dtypes:
        plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        ours = CausalModel((model, None), dtype, "cpu", max_length=LENGTH)
        pairs_of = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]

        @torch.inference_mode()
        def bare(plain=plain, pairs_of=pairs_of) -> None:
            for pair in pairs_of:
                plain(input_ids=torch.tensor(pair), use_cache=False)

        @torch.inference_mode()
        def engine(ours=ours, pairs_of=pairs_of) -> None:
            for pair in pairs_of:
                ours.logits(ours.hidden(pair)[0])

        click.echo(f"\n{dtype}, {len(texts) * LENGTH:,} tokens: ratios of wall time, of CPU seconds")
        capture = CaptureEngine(ours, Rule(), 0)
        if passes:
            show_memory(capture, texts, passes)
        show_ratios(bare, engine, capture, texts, pairs)
        if dtype == "float32":
            with torch.inference_mode():
                logits = plain(input_ids=torch.tensor(pairs_of[0]), use_cache=False).logits.flatten(0, 1)[:BLOCK]
            show_stage(logits, pairs)


if __name__ == "__main__":
    main()
