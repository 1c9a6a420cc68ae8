"""Which engine a job may name, and what is missing for it: python -m pytest tests/test_engines.py."""

import importlib.util
import os

import pytest

from builders.engines import ENGINES, SERVERS
from builders.job import Job
from builders.options import ConfigError
from extract.device import pin_device
from extract.engines import load_engine
from extract.model_files import read_model_files


def test_a_dataset_may_change_its_engine_but_not_from_or_to_fake():
    prints = {engine: Job(engine=engine).fingerprint for engine in ENGINES}
    assert len({prints[engine] for engine in ENGINES if engine != "fake"}) == 1
    assert prints["fake"] != prints["transformers"]


@pytest.mark.parametrize("engine", ["vllm", *SERVERS])
def test_what_an_engine_cannot_give_is_refused(engine):
    with pytest.raises(ConfigError, match=f"--engine {engine} makes no logits"):
        Job(engine=engine, build="logits")
    with pytest.raises(ConfigError, match="--layer is 3"):
        Job(engine=engine, layer=3)
    with pytest.raises(ConfigError, match="--pooling logits-mean"):
        Job(engine=engine, pooling="logits-mean")
    for pooling in ("max", "weighted-mean", "cls+mean"):
        if engine == "vllm":
            with pytest.raises(ConfigError, match="--engine vllm does not pool so"):
                Job(engine=engine, pooling=pooling)
        else:  # a server of sentence-transformers pools as the model says
            assert Job(engine=engine, pooling=pooling)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_extra_names_its_command(minilm):
    job = Job(model=str(minilm), engine="vllm", dtype="float32", pooling="mean", max_length=16)
    with pytest.raises(ConfigError, match=r"^--engine vllm: pip install 'stillroom\[vllm\]'"):
        load_engine(job, read_model_files(job), None)


@pytest.mark.parametrize(
    ("visible", "rank", "device", "pinned"),
    [("", "1", None, "1"), ("4,5", "1", None, "5"), ("4,5", "2", None, "4"), ("GPU-a,GPU-b", "0", "cuda:1", "GPU-b")],
)
def test_a_worker_sees_its_own_gpu_alone(monkeypatch, visible, rank, device, pinned):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_RANK", rank)
    pin_device(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == pinned
