"""The GPU benchmark on tiny shapes, so that it is known to run: python -m pytest tests/test_gpu_bench.py."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_gpu_benchmark_runs_on_tiny_shapes():
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = [line.split(" | ")[0:2] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [case for _, case in cases if case in ("transformers", "engine", "end to end", "capture")] == [
        "transformers", "engine", "end to end", "capture", "capture"
    ]  # fmt: skip
