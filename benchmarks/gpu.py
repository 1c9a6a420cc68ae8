"""What stillroom reaches on one GPU, with random weights in the shapes of Qwen3-Embedding-0.6B and of 0.6B and 7B teachers.

    python benchmarks/gpu.py                # some ten minutes and 40 GB of GPU memory; nothing is downloaded
    python benchmarks/gpu.py --tiny         # the same code on tiny shapes, on any machine: says that it runs, not how fast

Embeddings: ragged texts of made words, at most 256, 2,048 and 8,192 tokens. *End to end*: Parquet to chunks, by way of texts,
tokens, batches, model and records. *Engine*: batches ready. *transformers*: the same tokens sorted by length, 32 texts a
batch, padded, the model as it comes, the last token's state. *vLLM*: `LLM.embed` on the same tokens, where it is installed.
MFU is of the measured peak of a product of matrices; attention counts as causal.

Logits: *bare* is the backbone as it comes and the head on every row, nothing kept; *capture* is stillroom's. Extra memory is
what capture needs at its peak over the backbone alone.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import click
import torch
import transformers
from embed_vs_st import Ours
from made import SHAPES, TINY, config_of, flops, write_model, write_source
from turns import Bench, spread

from builders.job import Job
from extract.batching import TokenBudget
from extract.device import best_dtype, default_device
from extract.engines.capture import CaptureEngine
from extract.engines.causal import CausalModel
from extract.engines.nucleus import Rule, Selector
from extract.engines.packed import ATTENTION
from extract.token_logits import Conversation

PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "flash-attn")


@dataclass(frozen=True)
class Size:
    """How much is run."""

    shapes: dict[str, dict]
    lengths: tuple[int, ...] = (256, 2048, 8192)
    tokens: int = 4_000_000  # of each length
    peak: int = 8192  # rows of a square matrix
    chats: tuple[int, int] = (16, 2048)  # conversations, and tokens of each
    rows: int = 1024  # of logits, for the stage behind the head
    turns: int = 3


TINY_SIZE = Size(dict.fromkeys(SHAPES, TINY), (32,), 2_000, 64, (3, 32), 8, 1)


def matmul_peak(bench: Bench, n: int, dtype: str) -> float:
    """FLOP/s of a product of two n x n matrices."""
    a, b = (torch.randn(n, n, device=bench.device, dtype=getattr(torch, dtype)) for _ in range(2))
    peak = 2 * n**3 / min(bench.in_turns({"": lambda: [a @ b for _ in range(20)]})[""]) * 20
    bench.add("matmul", f"{n} x {n}", f"{peak / 1e12:,.1f} TFLOP/s", "1")
    return peak


@torch.inference_mode()
def plain_loop(model: torch.nn.Module, texts: Sequence[list[int]], device: torch.device) -> None:
    """transformers as most would write it: 32 texts a batch, sorted by length, padded; vectors go to the host."""
    texts = sorted(texts, key=len, reverse=True)
    for start in range(0, len(texts), 32):
        some = texts[start : start + 32]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in some], batch_first=True).to(device)
        lengths = torch.tensor([len(t) for t in some], device=device)
        mask = (torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]).long()
        states = model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        torch.nn.functional.normalize(
            states[torch.arange(len(some), device=device), lengths - 1].float(), dim=-1
        ).cpu()


def embeddings(bench: Bench, size: Size, dtype: str, parent: Path, peak: float) -> None:
    """Embed texts of each length in turns."""
    shape = size.shapes["0.6B"]
    for length in size.lengths:
        folder = parent / str(length)
        folder.mkdir()
        write_source(folder / "chats.parquet", length, size.tokens)
        model = write_model(folder / "model", shape, folder / "chats.parquet")
        rows = max(1, size.tokens // length)
        job = Job(source=str(folder / "chats.parquet"), model=str(model), dtype=dtype, pooling="last",
                  max_length=length, chunk_rows=rows)  # fmt: skip
        ours = Ours.load(job, folder)
        batches = ours.rows()[1]
        texts = [sample.input_ids for batch in batches for sample in batch.samples]
        plain = transformers.AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval().to(bench.device)
        works = {
            "transformers": lambda plain=plain, texts=texts: plain_loop(plain, texts, bench.device),
            "engine": lambda ours=ours, batches=batches: ours.run_engine(batches),
            "end to end": lambda ours=ours: ours.run()[1].wall,
        }
        taken = bench.in_turns(works)
        padding = ours.padding
        del ours, plain, works
        if bench.device.type == "cuda" and find_spec("vllm"):
            taken |= bench.in_turns({"vLLM": vllm_embed(model, dtype, length, texts)})
        tokens, work = sum(map(len, texts)), flops([len(t) for t in texts], shape)
        for name, seconds in taken.items():
            speed = spread([tokens / s for s in seconds], "{:,.0f}")
            over = spread([a / b for a, b in zip(taken["transformers"], seconds, strict=True)])
            mfu = work / statistics.median(seconds) / peak
            bench.add(f"embeddings <= {length}", name, f"{speed} tokens/s, MFU {mfu:.1%}", f"{over} of transformers")
        bench.add(f"embeddings <= {length}", "padding of the engine", f"{padding:.2%}")


def vllm_embed(model: Path, dtype: str, length: int, texts: Sequence[list[int]]) -> Callable[[], object]:
    """vLLM's own loop over token ids."""
    from vllm import LLM

    torch.cuda.empty_cache()
    llm = LLM(str(model), runner="pooling", dtype=dtype, max_model_len=length, gpu_memory_utilization=0.5)
    prompts = [{"prompt_token_ids": ids} for ids in texts]
    return lambda: llm.embed(prompts, use_tqdm=False)


def logits(bench: Bench, size: Size, dtype: str, name: str) -> None:
    """Capture all tokens of some conversations, in turns with a bare pass; and the stage behind the head by itself."""
    shape = size.shapes[name]
    with torch.device(bench.device):
        whole = transformers.AutoModelForCausalLM.from_config(config_of(shape), dtype=getattr(torch, dtype)).eval()
    number, length = size.chats
    chats = torch.randint(2, shape["vocab_size"], (number, length)).tolist()
    attention = whole.config._attn_implementation
    with mock.patch("extract.engines.causal._load", return_value=whole):
        model = CausalModel((name, None), dtype, str(bench.device), max_length=length)
    capture = CaptureEngine(model, Rule(), 0)
    per_batch = max(1, capture.max_batch_tokens // length)
    groups = [chats[i : i + per_batch] for i in range(0, number, per_batch)]
    batches = [[Conversation(i, ids, list(range(1, length))) for i, ids in enumerate(group)] for group in groups]

    @torch.inference_mode()
    def backbone() -> None:
        whole.set_attn_implementation(attention)
        for group in groups:
            whole.base_model(input_ids=torch.tensor(group, device=bench.device), use_cache=False)

    @torch.inference_mode()
    def bare() -> None:
        whole.set_attn_implementation(attention)
        for group in groups:
            states = whole.base_model(input_ids=torch.tensor(group, device=bench.device), use_cache=False)[0]
            for block in states.flatten(0, 1).split(capture.head_rows):
                model.logits(block)

    def captured() -> None:
        if model.packed is not None:
            whole.set_attn_implementation(ATTENTION)
        list(capture.capture(batches, TokenBudget(10**9)))

    part = f"logits, {name}"
    taken = bench.in_turns({"bare": bare, "capture": captured})
    ratios = [b / c for b, c in zip(taken["bare"], taken["capture"], strict=True)]
    speed = spread([number * length / s for s in taken["capture"]], "{:,.0f}")
    bench.add(part, "capture", f"{speed} tokens/s", f"{spread(ratios)} of bare")
    extra = bench.peak_bytes(captured) - bench.peak_bytes(backbone)
    bench.add(
        part, "extra memory", f"{extra / 1e9:.2f} GB" if bench.device.type == "cuda" else "not measured on a CPU"
    )
    stage(bench, part, size.rows, shape["vocab_size"])


@torch.inference_mode()
def stage(bench: Bench, part: str, rows: int, vocab_size: int) -> None:
    """Nucleus, logsumexp and draws of some tokens, beside a float64 softmax with a full sort."""
    x = torch.randn(rows, vocab_size, device=bench.device) * 3
    u, select = torch.rand(rows, device=bench.device, dtype=torch.float64), Selector(Rule(), vocab_size, bench.device)
    sort = lambda: [block.double().softmax(-1).sort(-1, descending=True) for block in x.split(64)]  # noqa: E731
    taken = bench.in_turns({"stage": lambda: select(x, u), "sort": sort})
    ratios = [b / a for a, b in zip(*taken.values(), strict=True)]
    shown = spread([s * 1e3 for s in taken["stage"]])
    bench.add(part, f"nucleus of {rows:,} x {vocab_size:,}", f"{shown} ms", f"{spread(ratios)} times the float64 sort")


def has(package: str) -> bool:
    """Whether it is installed, under the name that it is installed by."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


@click.command()
@click.option("--tiny", is_flag=True, help="tiny shapes: says that the code runs, not how fast")
@click.option("--device", help="as in cuda:0 [the first GPU, else the CPU]")
@click.option("--only", type=click.Choice(["embeddings", "logits"]), help="one half of the table")
def main(tiny: bool, device: str | None, only: str | None) -> None:
    """Measure embeddings and teacher logits on one device."""
    device = device or default_device()
    if device == "cpu" and not tiny:
        raise click.ClickException("there is no GPU here: --tiny runs the same code on small shapes")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="stillroom-gpu-"))
    size, dtype = TINY_SIZE if tiny else Size(SHAPES), best_dtype(device)
    bench = Bench(device, size.turns)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES if has(package))
    click.echo(f"{date.today()}, {name}, {dtype}, python {platform.python_version()}, {packages}\n")
    click.echo("| part | case | figure | ratio |\n|---|---|---|---|")
    try:
        peak = matmul_peak(bench, size.peak, dtype)
        if only != "logits":
            embeddings(bench, size, dtype, folder, peak)
        if only != "embeddings":
            for shape in size.shapes:
                logits(bench, size, dtype, shape)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
