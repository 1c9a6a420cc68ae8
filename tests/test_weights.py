"""Weights in a training run: python -m pytest tests/test_weights.py."""

import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub import HfApi, constants
from torch.utils.data import DataLoader

from builders.curate.weights import Weights, load_weights, weighted_sampler
from tests.embeddings_folder import write_embeddings
from tests.hubserver import HubServer
from tests.logits_folder import tiny_model, tiny_tokenizer
from tests.runs import CHECKOUT, use_hub
from tests.test_density import clustered, run

TWO_WORKERS = """
import json, sys
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tests.test_weights import made, weighted_sampler
accelerator = Accelerator(cpu=True)
sampler = weighted_sampler(made(range(1, 51)), range(50), num_samples=40)
loader = accelerator.prepare(DataLoader(range(50), batch_size=5, sampler=sampler))
passes = [[int(i) for batch in loader for i in batch] for _ in range(2)]
open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w").write(json.dumps(passes))
"""


def made(weights):
    import pyarrow as pa

    weights = np.asarray(weights, float)
    ids = pa.chunked_array([pa.array([f"row-{i}" for i in range(len(weights))])])
    return Weights(weights / weights.sum(), np.arange(len(weights)), ids, "stored")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """28,000 prompts with their density, in a folder."""
    vectors, _ = clustered(28_000, 16)
    folder = write_embeddings(tmp_path_factory.mktemp("prompts") / "out", vectors, chunk_rows=28_000)
    run("density", folder, "--method", "cells")
    return folder


@pytest.fixture
def hub_prompts(prompts, tmp_path, monkeypatch):
    """The same prompts on a test Hub, whose density is measured there."""
    with HubServer(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        HfApi().create_repo("tester/prompts", repo_type="dataset")
        HfApi().upload_folder(
            repo_id="tester/prompts", folder_path=prompts, repo_type="dataset", ignore_patterns="density/**"
        )
        run("density", "tester/prompts", "--method", "cells", "--cache-dir", tmp_path / "stillroom")
        yield "tester/prompts"
        assert not list((tmp_path / "cache").rglob("data/train/**/*.parquet"))  # the vectors stay where they are


@pytest.fixture(params=["a folder", "the Hub"])
def measured(request):
    """Name of a dataset of 28,000 prompts whose density was measured once."""
    return (
        request.getfixturevalue("hub_prompts")
        if request.param == "the Hub"
        else str(request.getfixturevalue("prompts"))
    )


def train(rows, folder):
    """Two steps of GRPO on the rows, in groups of two: ids of the prompts that the student answered."""
    from trl import GRPOConfig, GRPOTrainer

    seen = []

    def reward(completions, id, **columns):
        seen.extend(id)
        return [float(len(set(text))) for text in completions]

    sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 2, "max_steps": 2}
    args = GRPOConfig(str(folder / "out"), **sizes, report_to=[], use_cpu=True, bf16=False, save_strategy="no")
    GRPOTrainer(str(folder / "student"), reward_funcs=reward, args=args, train_dataset=rows).train()
    return seen


def test_density_once_then_three_starts_of_grpo_on_28k_prompts(measured, tmp_path):
    """Each start loads the weights in less than a second, and the student answers what they drew."""
    pytest.importorskip("trl")
    tiny_model(2).save_pretrained(tmp_path / "student")
    tiny_tokenizer().save_pretrained(tmp_path / "student")
    rows = Dataset.from_dict({"id": [f"row-{i}" for i in range(28_000)], "prompt": ["w1 w2", "w3"] * 14_000})
    for seed in range(3):
        started = time.perf_counter()
        weights = load_weights(measured, fallbacks=())
        assert time.perf_counter() - started < 1
        drawn = list(weighted_sampler(weights, rows["id"], num_samples=40, seed=seed))
        seen = train(rows.select(drawn), tmp_path)
        assert len(seen) == 4 and seen[::2] == seen[1::2] and set(seen) <= {f"row-{i}" for i in drawn}
    assert weights.origin == "stored" and weights.weights.sum() == pytest.approx(1)
    assert weights.about["n"] == 28_000 and weights.about["recall"] >= 0.95


def test_rows_are_matched_by_id_in_any_order(prompts):
    weights = load_weights(str(prompts))
    order = np.random.default_rng(0).permutation(28_000)
    assert np.allclose(weights.align([f"row-{i}" for i in order]), weights.weights[order], rtol=1e-9, atol=0)
    few = weights.align(order[:100], is_subset=True)
    assert few.sum() == pytest.approx(1)
    assert np.allclose(few / few[0], weights.weights[order[:100]] / weights.weights[order[0]])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["row-0", "row-1", "x", "y"], r"2 of 4 rows have no weight, as 'x', 'y'; the others have 'row-0', 'row-1'"),
        (["row-0"], r"2 of 3 weights have no row, as 'row-1', 'row-2'.*is_subset=True"),
        (["row-0", "row-1", "row-1"], r"ids that name several rows in the trainer's dataset, as 'row-1'"),
    ],
)
def test_a_mismatch_is_an_error_with_examples(keys, message):
    with pytest.raises(ValueError, match=message):
        weighted_sampler(made([1, 2, 3]), keys)


def test_rare_rows_are_drawn_in_proportion():
    """Chi-square of 20 rows, 19 degrees of freedom: over 43.8 with probability 0.001 if draws are right; the seed is fixed."""
    expected = np.arange(1, 21) / 210
    sampler = weighted_sampler(made(expected), [f"row-{i}" for i in range(20)], num_samples=40_000, seed=4)
    counts = np.bincount(list(sampler), minlength=20)
    assert ((counts - 40_000 * expected) ** 2 / (40_000 * expected)).sum() < 43.8
    sampler.set_epoch(0)
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(1)  # as after a restart
    assert list(sampler) == second


def test_workers_share_the_draws():
    keys = list(range(50))
    alone = list(weighted_sampler(made(np.ones(50)), keys, num_samples=40))
    shares = [weighted_sampler(made(np.ones(50)), keys, num_samples=40, rank=r, world_size=4) for r in range(4)]
    assert [len(s) for s in shares] == [10] * 4
    assert Counter(i for s in shares for i in s) == Counter(alone)
    assert len(list(DataLoader(keys, batch_size=5, sampler=shares[1]))) == 2
    without = weighted_sampler(made(np.ones(50)), keys, replacement=False)
    assert sorted(without) == keys
    with pytest.raises(ValueError, match="51 rows without replacement: there are 50"):
        weighted_sampler(made(np.ones(50)), keys, replacement=False, num_samples=51)


@pytest.mark.slow
def test_accelerate_shares_out_the_batches_of_one_sampler(tmp_path):
    (tmp_path / "two.py").write_text(TWO_WORKERS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    subprocess.run([*launch, tmp_path / "two.py", tmp_path], check=True, env=environment, timeout=200)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    sampler = weighted_sampler(made(range(1, 51)), range(50), num_samples=40)
    for mine, theirs in zip(first, second, strict=True):
        assert Counter(mine + theirs) == Counter(sampler)
        assert len(mine) == len(theirs) == 20


def test_fallbacks_are_said_aloud(tmp_path, caplog):
    folder = write_embeddings(tmp_path / "out", clustered(500)[0])
    with caplog.at_level(logging.WARNING):
        computed = load_weights(str(folder))
    assert computed.origin == "computed" and "they are computed from its vectors" in caplog.text
    run("density", folder)
    stored = load_weights(str(folder))
    assert stored.origin == "stored" and (stored.weights == computed.weights).all()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        uniform = load_weights(str(tmp_path))
    assert uniform.origin == "uniform" and "all rows weigh the same" in caplog.text
    assert (uniform.align(["a", "b"]) == 0.5).all()
    with pytest.raises(ValueError, match="run `stillroom density"):
        load_weights(str(tmp_path), fallbacks=())
