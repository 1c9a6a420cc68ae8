"""A dataset on a Hub as other tools open it, by the lines of its own card: python -m pytest tests/test_hub_readers.py.

polars alone knows no other Hub than huggingface.co: its line reads the same files in a folder here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.runs import CHECKOUT, MINILM, Bench, download, hub_process

ROWS = 30
ADDRESS = "hf://datasets/user/out"
SAME = """
import json
import numpy as np

counted = duckdb.sql("SELECT count(*), sum(num_tokens) FROM 'ADDRESS/data/train/**/*.parquet'").fetchall()[0]
first = duckdb.sql("SELECT messages, embedding FROM 'ADDRESS/data/train/**/*.parquet' ORDER BY index LIMIT 1").fetchall()[0]
chats = pd.read_parquet("ADDRESS/data/train", columns=["messages", "embedding"])
streamed = next(iter(stream))
print(json.dumps({
    "rows": [len(dataset), len(frame), len(lengths), counted[0], sum(1 for _ in stream)],
    "tokens": [int(sum(dataset["num_tokens"])), int(frame.num_tokens.sum()),
               int(lengths["num_tokens"].sum()), int(counted[1])],
    "chats": [list(chats.messages[0]), first[0], streamed["messages"]],
    "vectors": [bool(np.allclose(dataset[0]["embedding"], v)) for v in (chats.embedding[0], first[1], streamed["embedding"])],
    "nearest": len(nearest),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("polars") and find_spec("duckdb")), reason="pip install polars duckdb")
def test_every_line_of_the_card_opens_a_private_dataset_of_a_hub(tmp_path, chat_parquet):
    with hub_process(tmp_path / "hub") as hub:
        bench = Bench(tmp_path, hub, {"PYTHONPATH": str(CHECKOUT)})
        job = ["--source", str(chat_parquet), "--limit", str(ROWS), "--chunk-rows", "20", "--model", MINILM]
        bench.run(*job, "--keep-messages", "--output", "user/out", "--resume")
        here = download(hub, "user/out", tmp_path / "here")
        blocks = re.findall(r"```python\n(.*?)```", (here / "README.md").read_text(), re.DOTALL)
        assert sum(ADDRESS in block for block in blocks) == 3
        blocks = [block.replace(ADDRESS, str(here)) if "polars" in block else block for block in blocks]
        code = "\n".join([*blocks, SAME.replace("ADDRESS", ADDRESS)])
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=bench.env, capture_output=True, text=True, timeout=200
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["rows"]) == {ROWS} and len(set(found["tokens"])) == 1 and found["nearest"] == 10
    assert found["vectors"] == [True] * 3
    assert [chat[0]["content"] for chat in found["chats"]] == ["What follows 0?"] * 3
