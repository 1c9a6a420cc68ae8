"""vLLM: bare, as our engine, and beside our own engine for CPUs. Its rows need its environment (`make test-vllm` makes it).

vllm_build.py runs there, bare and as our engine in turns; our own engine runs next to it, before and after, in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.embed_vs_st import MODEL, Ours
from benchmarks.table import Row
from builders.demo import write_demo
from builders.job import Job
from extract.model_files import read_model_files

CHECKOUT = Path(__file__).resolve().parents[1]
ROWS, PAIRS, DTYPE, GOAL = 60, 3, "float32", 0.97
PYTHON = os.environ.get("STILLROOM_VLLM_PYTHON") or str(CHECKOUT / ".venv-vllm" / "bin" / "python")


def of_vllm(source: Path, model: Path) -> dict[str, list[float]]:
    """Seconds of each side, as vllm_build.py prints them."""
    command = [PYTHON, str(CHECKOUT / "benchmarks" / "vllm_build.py"), "--source", str(source), "--rows", str(ROWS)]
    command += ["--model", str(model), "--pairs", str(PAIRS), "--dtype", DTYPE, "--json"]
    out = subprocess.run(command, check=True, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def rows() -> Iterator[Row]:
    """Yield the rows of the table."""
    if not Path(PYTHON).exists():
        yield Row("vLLM", "", (), note="not installed: `make test-vllm` does it")
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        source = write_demo(folder / "demo.parquet", ROWS)
        job = Job(source=str(source), model=MODEL, limit=ROWS, chunk_rows=ROWS, dtype=DTYPE)
        ours = Ours.load(job, folder)
        num_tokens = sum(batch.num_tokens for batch in ours.rows()[1])
        own = [ours.run()[0].wall for _ in range(PAIRS)][1:]
        theirs = of_vllm(source, read_model_files(job).folder)  # its environment has no such package
        own += [ours.run()[0].wall for _ in range(PAIRS - len(own))]
    speeds = {name: [num_tokens / seconds for seconds in taken] for name, taken in theirs.items()}
    bare = "`LLM.embed` of one list"
    built = speeds["stillroom, to the last chunk"]
    best = speeds["LLM.embed, one list"]
    yield Row(f"embeddings {DTYPE} by --engine vllm", "tokens/s", built, best, bare, GOAL)
    mine = [num_tokens / seconds for seconds in own]
    yield Row(f"embeddings {DTYPE}, own engine", "tokens/s", mine, best, bare, note="before and after")
