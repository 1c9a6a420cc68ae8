"""The transformers engine, on tiny models and all-MiniLM: python -m pytest tests/test_transformers_engine.py."""

import logging

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from builders.job import POOLINGS, Job
from builders.options import ConfigError
from extract.batching import TokenBudget
from extract.engines import EngineError, load_engine
from extract.engines.transformers import in_order, split_on_oom
from extract.model_files import read_model_files
from extract.sample import Batch, Sample

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 90,
}
DECODER = {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A folder with a Qwen3 of 2 layers and 16 dimensions, with random weights."""
    return save("Qwen3Config", tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def soft_capped(tmp_path_factory):
    """A Gemma2, which cannot run packed."""
    return save("Gemma2Config", tmp_path_factory.mktemp("gemma2"))


def save(config, folder):
    torch.manual_seed(0)
    options = getattr(transformers, config)(**SIZES, **DECODER, pad_token_id=0)
    transformers.AutoModelForCausalLM.from_config(options).save_pretrained(folder)
    return folder


def engine_of(folder, **options):
    job = Job(**{"model": str(folder), "max_length": 48, "dtype": "float32", "pooling": "mean", **options})
    return load_engine(job, read_model_files(job), "cpu")


def samples_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [Sample(i, 0, rng.integers(1, SIZES["vocab_size"], n).tolist()) for i, n in enumerate(lengths)]


def embed(engine, samples, size=4):
    """Vectors [B, D] of samples that were sent in batches of `size`."""
    batches = [Batch(None, samples[i : i + size]) for i in range(0, len(samples), size)]
    results = list(engine.run([*batches, Batch(None, is_last=True)], TokenBudget(1000)))
    assert [batch.samples for batch, _, _ in results] == [batch.samples for batch in batches] + [[]]
    assert results[-1][1].shape == (0, engine.dimension)
    assert all(padded >= batch.num_tokens for batch, _, padded in results)
    return np.concatenate([vectors for _, vectors, _ in results])


@torch.inference_mode()
def states(folder, samples, layer=-1):
    """Hidden states [T, D] of each sample, alone, from the model as it comes."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    got = [model(torch.tensor(s.input_ids)[None], output_hidden_states=True) for s in samples]
    return [(g[0] if layer == -1 else g.hidden_states[layer])[0].numpy() for g in got]


BY_HAND = {
    "mean": lambda t: t.mean(0),
    "max": lambda t: t.max(0),
    "cls": lambda t: t[0],
    "last": lambda t: t[-1],
    "mean-sqrt-len": lambda t: t.sum(0) / np.sqrt(len(t)),
    "weighted-mean": lambda t: np.average(t, axis=0, weights=np.arange(1, len(t) + 1)),
}


@pytest.mark.parametrize("how", sorted(BY_HAND))
@pytest.mark.parametrize("model", ["decoder", "soft_capped"])  # packed, and padded
def test_every_pooling_packed_and_padded(request, model, how):
    folder, samples = request.getfixturevalue(model), samples_of([1, 9, 30, 4, 17, 48])
    engine = engine_of(folder, pooling=how, normalize=False)
    assert (engine.packed is None) == (model == "soft_capped")
    expected = np.stack([BY_HAND[how](tokens) for tokens in states(folder, samples)])
    np.testing.assert_allclose(embed(engine, samples), expected, atol=1e-5)
    assert set(BY_HAND) == set(POOLINGS)


@pytest.mark.parametrize("layer", [0, 1, 2, -2])
def test_another_layer(decoder, layer):
    samples = samples_of([5, 12])
    expected = np.stack([tokens.mean(0) for tokens in states(decoder, samples, layer)])
    np.testing.assert_allclose(embed(engine_of(decoder, layer=layer, normalize=False), samples), expected, atol=1e-5)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_model_lacks_is_refused(decoder, layer):
    with pytest.raises(ConfigError, match=f"--layer is {layer}: the model has layers 0 to 2"):
        engine_of(decoder, layer=layer)


def test_dimensions_are_the_first_and_are_normalised_again(decoder):
    samples = samples_of([5, 12, 7])
    whole = embed(engine_of(decoder, normalize=False), samples)
    engine = engine_of(decoder, dimensions=6)
    assert engine.dimension == 6
    expected = whole[:, :6] / np.linalg.norm(whole[:, :6], axis=1, keepdims=True)
    np.testing.assert_allclose(embed(engine, samples), expected, atol=1e-5)


def test_the_mean_of_logits_is_the_mean_of_logits(decoder):
    samples = samples_of([5, 12, 7])
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder).eval()
    with torch.inference_mode():
        expected = [model(torch.tensor(s.input_ids)[None]).logits[0].mean(0).numpy() for s in samples]
    engine = engine_of(decoder, pooling="logits-mean", normalize=False)
    assert engine.dimension == SIZES["vocab_size"]
    np.testing.assert_allclose(embed(engine, samples), expected, atol=1e-5)


def test_a_model_that_cannot_run_packed_says_so_and_pads(soft_capped, caplog):
    with caplog.at_level(logging.WARNING):
        engine = engine_of(soft_capped)
    assert engine.packed is None
    assert "padded batches: this model does not run without padding" in caplog.text
    ((_, _, padded),) = engine.run([Batch(None, samples_of([3, 9]))], TokenBudget(100))
    assert padded == 18


def test_batches_may_be_of_any_size_and_the_engine_runs_again(decoder):
    engine, samples = engine_of(decoder), samples_of(np.random.default_rng(0).integers(1, 48, 40))
    first = embed(engine, samples, size=1)
    np.testing.assert_allclose(embed(engine, samples, size=7), first, atol=1e-5)
    np.testing.assert_allclose(embed(engine, samples, size=40), first, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_a_model_without_weights_is_an_error_in_one_line(tmp_path, decoder):
    (tmp_path / "config.json").write_bytes((decoder / "config.json").read_bytes())
    with pytest.raises(EngineError, match=r"^--model .* cannot be loaded: ") as caught:
        engine_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_error_in_a_batch_arrives_and_ends_the_threads(decoder):
    engine = engine_of(decoder)
    batches = [Batch(None, samples_of([3])), Batch(None, [Sample(0, 0, [SIZES["vocab_size"] + 5])])]
    with pytest.raises(IndexError):
        list(engine.run(batches, TokenBudget(100)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(30, 200))
def test_what_does_not_fit_is_run_in_halves_in_order(lengths, memory):
    seen = []

    def forward(samples):
        padded = max(s.num_tokens for s in samples) * len(samples)
        if padded > memory:
            raise torch.OutOfMemoryError("out of memory")
        seen.extend(s.position for s in samples)
        return torch.tensor([[float(s.position)] for s in samples]), padded

    budget = TokenBudget(10_000)
    vectors, padded = split_on_oom(forward, samples_of(lengths), budget)
    assert vectors[:, 0].tolist() == seen == list(range(len(lengths)))
    assert sum(lengths) <= padded
    fits = max(lengths) * len(lengths) <= memory
    assert budget.max_batch_tokens == 10_000 if fits else budget.max_batch_tokens < 10_000


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_one_text_that_does_not_fit_is_an_error_that_says_what_to_do(error):
    def forward(samples):
        raise error

    with pytest.raises(
        EngineError, match=r"one text of 9 tokens does not fit into memory: give a smaller --max-length"
    ):
        split_on_oom(forward, samples_of([9, 9]), TokenBudget(100))


def test_any_other_error_is_not_taken_for_a_lack_of_memory():
    def forward(samples):
        raise RuntimeError("shapes do not match")

    budget = TokenBudget(100)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        split_on_oom(forward, samples_of([9]), budget)
    assert budget.max_batch_tokens == 100


@given(st.integers(0, 20), st.integers(1, 5))
def test_results_come_in_order_with_so_many_launched_ahead(num_items, depth):
    flying = set()

    def launch(item):
        flying.add(item)
        assert len(flying) <= depth

        def fetch():
            flying.remove(item)
            return item

        return fetch

    assert list(in_order(launch, range(num_items), depth)) == list(range(num_items))
