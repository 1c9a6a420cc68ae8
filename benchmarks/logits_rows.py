"""Logits capture beside the bare forward pass, and its nucleus beside the plain recipe; logits_capture.py has all of it.

SmolLM2-135M over generated chats, 1,024 tokens, all of them wanted, one thread. The plain recipe sorts a float64 softmax.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import Row
from builders.demo import write_demo
from tests.smollm2 import smollm2_folder

PAIRS, DEMO_ROWS, GOAL, SORT_GOAL = 3, 64, 0.9, 10.0
DTYPES = ("float32", "bfloat16")


def forward_rows(dtype: str, folder: str, texts: list[list[int]]) -> Iterator[Row]:
    """Tokens per second with and without the capture, in turns."""
    import torch
    import transformers

    from benchmarks.logits_capture import batches_of, timed
    from extract.batching import TokenBudget
    from extract.engines.capture import CaptureEngine
    from extract.engines.causal import CausalModel
    from extract.engines.nucleus import Rule

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    capture = CaptureEngine(CausalModel((folder, None), dtype, "cpu", max_length=len(texts[0])), Rule(), 0)
    batches, num_tokens = batches_of(texts, 1.0), sum(map(len, texts))

    @torch.inference_mode()
    def bare() -> None:
        plain(input_ids=torch.tensor(texts), use_cache=False)

    speeds = []
    for _ in range(PAIRS + 1):  # kernels are built in the first
        theirs = timed(bare)[0]
        ours = timed(lambda: list(capture.capture(batches, TokenBudget(10**6))))[0]
        speeds.append((num_tokens / ours, num_tokens / theirs))
    mine, others = zip(*speeds[1:], strict=True)
    yield Row(f"logits {dtype}, captured", "tokens/s", mine, others, "bare forward pass", goal=GOAL)


def nucleus_row() -> Row:
    """Nucleus, logsumexp and draws of 1,024 tokens beside the plain recipe, which is measured on 64 of them."""
    import torch

    from benchmarks.logits_capture import BLOCK, timed
    from extract.engines.nucleus import Rule, Selector

    torch.manual_seed(0)
    vocab, few = 49_152, 64
    logits, u = 3 * torch.randn(BLOCK, vocab), torch.rand(BLOCK, dtype=torch.float64)
    select, speeds = Selector(Rule(), vocab), []
    with torch.inference_mode():
        for _ in range(PAIRS + 1):
            ours = timed(lambda: select(logits, u))[0]
            theirs = timed(lambda: logits[:few].double().softmax(-1).sort(-1, descending=True))[0]
            speeds.append((BLOCK / ours, few / theirs))
    mine, others = zip(*speeds[1:], strict=True)
    return Row("nucleus, logsumexp and draws", "tokens/s", mine, others, "float64 softmax and sort", goal=SORT_GOAL)


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    import torch
    import transformers

    from benchmarks.logits_capture import BATCH, sequences

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    folder = smollm2_folder()
    if folder is None:
        yield Row("logits", "", (), note="SmolLM2 is not installed: see `MODEL_WHEELS` in the Makefile")
        return
    with tempfile.TemporaryDirectory() as root:
        texts = sequences(str(folder), str(write_demo(Path(root) / "demo.parquet", DEMO_ROWS)), BATCH)
    for dtype in DTYPES:
        yield from forward_rows(dtype, str(folder), texts)
    yield nucleus_row()
