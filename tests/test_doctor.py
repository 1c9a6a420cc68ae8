"""What a bug report needs, whatever is broken: python -m pytest tests/test_doctor.py."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from builders.engines import ENGINES
from builders.job_files import preset_names
from extract.device import best_dtype, default_device
from extract.doctor import extras
from tests.runs import CHECKOUT, Bench, hub_process


def doctor(bench, *arguments, path=CHECKOUT):
    """Standard output of the command in a process of its own; it must end well and say nothing else."""
    command = [sys.executable, "-c", "from extract.cli import main; main()", "doctor", *arguments]
    env = bench.env | {"PYTHONPATH": f"{path}:{CHECKOUT}"}
    done = subprocess.run(command, env=env, cwd=bench.root, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_is_here_is_told_without_the_token(tmp_path):
    with hub_process(tmp_path / "hub") as hub:
        bench = Bench(tmp_path, hub)
        waiting = bench.cache / "jobs" / "x" / "pending" / "files" / "data" / "0.parquet"
        waiting.parent.mkdir(parents=True)
        waiting.touch()
        os.truncate(waiting, 2 * 10**8)
        text = doctor(bench, "--json")
    report = json.loads(text)
    assert hub["HF_TOKEN"] not in text
    assert report["hub"] == {"endpoint": hub["HF_ENDPOINT"], "user": "tester"}
    assert report["versions"]["torch"] == torch.__version__
    assert list(report["engines"]) == list(ENGINES)
    assert report["engines"]["transformers"] == report["engines"]["fake"] == "installed"
    has_vllm = find_spec("vllm") is not None
    assert report["engines"]["vllm"] == ("installed" if has_vllm else "cannot run: pip install 'stillroom[vllm]'")
    assert (report["versions"]["vllm"] is not None) == has_vllm
    assert report["engines"]["tei"] == "installed, and needs --endpoint URL"
    has_pillow = find_spec("PIL") is not None
    images = "installed" if has_pillow else "not installed: pip install 'stillroom[vision]'"
    assert report["extras"]["rows with images"] == images and (report["versions"]["pillow"] is not None) == has_pillow
    assert report["device"]["chosen"].startswith(f"{default_device()}, {best_dtype(default_device())}: it ")
    assert report["disk"]["pending"] == "1 files of 1 jobs, 0.2 GB"
    assert str(bench.cache) in report["disk"]["cache"] and "GB free" in report["disk"]["cache"]
    assert "GB available" in report["memory"]["host"]
    assert list(report["presets"]) == preset_names()


def test_an_extra_that_is_missing_has_its_command(monkeypatch):
    monkeypatch.setattr("extract.doctor.find_spec", lambda module: None if module == "PIL" else module)
    assert extras()["rows with images"] == "not installed: pip install 'stillroom[vision]'"
    assert extras()["models in GGUF"] == "installed"


def test_what_is_broken_takes_its_own_lines_only(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13 is not there')")
    bench = Bench(tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_secret"})
    lines = [line.split(maxsplit=1) for line in doctor(bench, path=tmp_path).splitlines()]
    found = {name: rest[0] for name, *rest in lines if rest}
    assert found["error"] == "ImportError: libcudart.so.13 is not there"
    assert found["user"].startswith("unknown, as the Hub does not answer (Connect")
    assert found["transformers"] == "installed" and found["torch"] == torch.__version__ and found["vllm"]
    assert "hf_secret" not in str(lines)
    assert [name for name, *rest in lines if not rest][-1] == "presets"


@pytest.mark.slow  # 20 s
def test_what_hangs_is_not_waited_for(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time; time.sleep(1000)")
    report = json.loads(doctor(Bench(tmp_path), "--json", path=tmp_path))
    assert report["device"] == {"error": "no answer within 20 s"}
    assert report["hub"]["user"] == "offline: $HF_HUB_OFFLINE is set"
