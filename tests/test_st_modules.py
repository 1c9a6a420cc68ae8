"""Models that sentence-transformers saves give its vectors: python -m pytest tests/test_st_modules.py."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel

from builders.job import Job
from builders.options import ConfigError
from builders.text import Text
from extract.batching import TokenBudget
from extract.engines import EngineError, load_engine
from extract.model_files import read_model_files
from extract.sample import Batch, Sample
from extract.settings import Settings
from extract.settle import settle
from extract.tokens import load_text_tokenizer
from tests.embedserver import EmbedServer

MIN_COSINE = 0.99999
SIZE = 24
TEXTS = [
    "What follows 7?",
    "A",
    "The Giant PANDA, also known as panda bear, is a bear native to south central China. " * 4,  # over 40 tokens
    "naïve Café ÄÖÜ İstanbul 北京",
    "x = [i**2 for i in range(10)]\nprint(x)",
]
SOURCE = SimpleNamespace(columns=["text"], revision="sha256:0", name="texts")


@pytest.fixture(scope="module")
def bert(minilm, tmp_path_factory):
    """A folder with a random BERT of two layers and the tokenizer of MiniLM."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cased(bert, tmp_path_factory):
    """The same with a tokenizer that keeps case."""
    folder = tmp_path_factory.mktemp("cased")
    BertModel.from_pretrained(bert).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    said["normalizer"] = {**said["normalizer"], "lowercase": False, "strip_accents": False}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    return str(folder)


def save(folder, *modules, **options):
    """Save a model as the library does, and return its folder."""
    torch.manual_seed(1)
    SentenceTransformer(modules=list(modules), device="cpu", **options).save(str(folder))
    return folder


def change(folder, name, **keys):
    path = folder / name
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, **keys} if isinstance(said, dict) else [*said[:-1], {**said[-1], **keys}]))


def settled(folder, **options):
    job = Job(model=str(folder), text_template="{text}", dtype="float32", **options)
    files = read_model_files(job)
    return settle(job, SOURCE, files, "cpu"), files


def ours(folder, **options):
    """The vectors of TEXTS, in order, and the job that a run would store."""
    job, files = settled(folder, **options)
    encoded = load_text_tokenizer(job, files).encode([Text("", text) for text in TEXTS])
    engine = load_engine(job, files, "cpu")
    samples = [Sample(i, 0, ids, truncated) for i, (ids, truncated) in enumerate(encoded)]
    batches = [Batch(None, samples[:2]), Batch(None, []), Batch(None, samples[2:])]
    done = list(engine.run(batches, TokenBudget(engine.max_batch_tokens)))
    vectors = np.concatenate([vectors for _, vectors, _ in done])
    assert vectors.dtype == np.float32 and vectors.shape[1] == engine.dimension
    return vectors, job


def check(folder, theirs=None, **options):
    """Compare with `encode` of the same folder; returns our vectors and the job."""
    vectors, job = ours(folder, **options)
    model = SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(TEXTS, batch_size=2, **(theirs or {}))
    assert vectors.shape == expected.shape
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= MIN_COSINE
    np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    return vectors, job


POOLINGS = [
    ("mean", "mean"),
    ("cls", "cls"),
    ("max", "max"),
    ("lasttoken", "last"),
    ("weightedmean", "weighted-mean"),
    ("mean_sqrt_len_tokens", "mean-sqrt-len"),
    (("mean", "cls", "weightedmean"), "mean+cls+weighted-mean"),
]


@pytest.mark.parametrize(
    ("mode", "word", "include_prompt"), [(*POOLINGS[0], True), *((*pooling, False) for pooling in POOLINGS)]
)
def test_every_pooling_with_and_without_its_prompt(bert, tmp_path, mode, word, include_prompt):
    pooling = Pooling(SIZE, mode, include_prompt=include_prompt)
    prompts = {"query": "Represent this question: ", "document": ""}
    folder = save(tmp_path / "m", Transformer(bert), pooling, prompts=prompts, default_prompt_name="query")
    vectors, job = check(folder)
    assert (job.pooling, job.instruction, job.normalize) == (word, prompts["query"], False)
    assert job.modules == (() if include_prompt else ("prompt not pooled",))
    other, plain = check(folder, {"prompt_name": "document"}, prompt_name="document")
    assert plain.instruction == "" and plain.fingerprint != job.fingerprint
    assert not np.allclose(other, vectors)


def test_dense_layers_a_norm_and_normalize(bert, tmp_path):
    layers = [Dense(SIZE, 40), LayerNorm(40), Dropout(0.5), Dense(40, 40, False, torch.nn.GELU(), use_residual=True)]
    layers += [Dense(40, 16, activation_function=torch.nn.Identity(), use_residual=True), Normalize()]
    vectors, job = check(save(tmp_path / "m", Transformer(bert), Pooling(SIZE), *layers))
    assert vectors.shape[1] == 16 and job.normalize is True
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    dense = ("Dense(24 -> 40, Tanh)", "LayerNorm", "Dense(40 -> 40, GELU, residual)")
    assert job.modules == (*dense, "Dense(40 -> 16, Identity, residual)")


def test_the_length_is_the_models_own_unless_told_otherwise(bert, tmp_path):
    """Models for dot products have no Normalize; one in the middle is no promise."""
    folder = save(tmp_path / "m", Transformer(bert), Pooling(SIZE), Normalize(), Dense(SIZE, 8))
    vectors, job = check(folder)
    assert job.normalize is False and np.ptp(np.linalg.norm(vectors, axis=1)) > 0.01
    assert job.modules == ("Normalize", "Dense(24 -> 8, Tanh)")
    scaled, job = check(folder, {"normalize_embeddings": True}, normalize=True)
    assert job.normalize is True
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-5)
    assert settled(bert)[0].normalize is True  # a model that is none of the library's


def test_matryoshka_dimensions_and_those_that_the_model_names(bert, tmp_path):
    modules = [Transformer(bert), Pooling(SIZE), Dense(SIZE, 32), Normalize()]
    folder = save(tmp_path / "m", *modules)
    check(folder, {"truncate_dim": 5, "normalize_embeddings": True}, dimensions=5)
    check(folder, {"truncate_dim": 30, "normalize_embeddings": True}, dimensions=30)  # more than a token's 24
    with pytest.raises(ConfigError, match="--dimensions 33: the model's vectors have 32"):
        settled(folder, dimensions=33)
    named = save(tmp_path / "n", *modules, truncate_dim=6)
    assert check(named, {"normalize_embeddings": True})[1].dimensions == 6


def test_length_and_lower_case(cased, tmp_path):
    """Version 6 writes the length into the tokenizer's file; older versions wrote both beside it."""
    folder = save(tmp_path / "m", Transformer(cased, max_seq_length=40), Pooling(SIZE))
    vectors, job = check(folder)
    assert (job.max_length, job.modules) == (40, ())
    change(folder, "sentence_bert_config.json", do_lower_case=True, max_seq_length=32)
    lower, job = check(folder)
    assert (job.max_length, job.modules) == (32, ("lower case",))
    assert not np.isclose(lower[:2], vectors[:2], atol=1e-3).all(1).any()  # texts that are not cut


def test_a_static_model_needs_no_transformer(bert, tmp_path):
    static = StaticEmbedding(Tokenizer.from_file(f"{bert}/tokenizer.json"), embedding_dim=12)
    folder = save(tmp_path / "m", static)
    vectors, job = check(folder)
    assert vectors.shape[1] == 12
    assert (job.pooling, job.modules, job.normalize) == ("mean", ("StaticEmbedding",), False)
    check(
        save(tmp_path / "n", static, Dense(12, 6), Normalize(), prompts={"q": "ask: "}),
        {"prompt": "ask: "},
        prompt_name="q",
    )
    check(folder, {"truncate_dim": 4, "normalize_embeddings": True}, dimensions=4, normalize=True)
    with pytest.raises(ConfigError, match="a StaticEmbedding has the mean of one layer"):
        settled(folder, pooling="cls")


def test_model2vec_files_with_shared_and_weighted_vectors(bert, tmp_path):
    tokenizer = Tokenizer.from_file(f"{bert}/tokenizer.json")
    folder = save(tmp_path / "m", StaticEmbedding(tokenizer, embedding_dim=8))
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    mapping = torch.arange(len(table)) % 500
    weights = torch.rand(len(table))
    save_file(
        {"embeddings": table[:500].clone(), "mapping": mapping, "weights": weights}, folder / "model.safetensors"
    )
    check(folder)


def test_a_real_model(minilm):
    _, job = check(minilm)
    assert (job.pooling, job.normalize, job.modules) == ("mean", True, ())


def test_other_weights_behind_the_pooling_are_another_model(bert, tmp_path):
    modules = Transformer(bert), Pooling(SIZE)
    first = save(tmp_path / "a", *modules, Dense(SIZE, 8))
    second = save(tmp_path / "b", *modules, Dense(SIZE, 8))  # drawn anew
    assert settled(first)[0].fingerprint != settled(second)[0].fingerprint


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("modules.json", {"type": "sentence_transformers.models.LSTM"}, "has a LSTM module, which"),
        ("modules.json", {"type": "custom_st.Dense"}, "has a custom_st.Dense module, which"),
        (
            "modules.json",
            {"type": "sentence_transformers.models.Pooling"},
            "has a Pooling module behind its first ones",
        ),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "the activation 'os.system'"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Softmax"}, "the activation 'torch.nn.Softmax'"),
        ("2_Dense/config.json", {"activation_function": "torch.hub.load"}, "the activation 'torch.hub.load'"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "works on token_embeddings"),
        ("2_Dense/config.json", {"in_features": 48}, "the model's Dense(48 -> 8, Tanh) takes others"),
        ("2_Dense/config.json", {"in_features": None}, "does not say its in_features"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "a Pooling module of mode 'attention'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "the Transformer module"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line_that_names_it(bert, tmp_path, name, keys, message):
    folder = save(tmp_path / "m", Transformer(bert), Pooling(SIZE), Dense(SIZE, 8))
    change(folder, name, **keys)
    with pytest.raises(ConfigError) as caught:
        settled(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_are_not_read_and_other_weights_are_an_error(bert, tmp_path):
    folder = save(tmp_path / "m", Transformer(bert), Pooling(SIZE), Dense(SIZE, 8))
    weights = folder / "2_Dense" / "model.safetensors"
    change(folder, "2_Dense/config.json", out_features=9)
    with pytest.raises(EngineError, match=r"2_Dense/model.safetensors is not of the Dense\(24 -> 9, Tanh\)"):
        ours(folder)
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(
        ConfigError, match=r"has no 2_Dense/model.safetensors: stillroom reads safetensors, and no pickle"
    ):
        settled(folder)


def test_other_poolings_can_be_asked_for(bert, tmp_path):
    folder = save(tmp_path / "m", Transformer(bert), Pooling(SIZE))
    vectors, _ = ours(folder, pooling="max+last")
    expected = check(save(tmp_path / "n", Transformer(bert), Pooling(SIZE, ("max", "lasttoken"))))[0]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"--pooling is 'mean\+sum': choose one of mean, last"):
        Job(pooling="mean+sum")
    with pytest.raises(ConfigError, match="--prompt-name is 'ask': the model's prompts are 'document', 'query'"):
        settled(folder, prompt_name="ask")
    with pytest.raises(ConfigError, match="--instruction and --prompt-name exclude each other"):
        Job(instruction="x", prompt_name="query")


def test_a_server_runs_the_modules_and_gives_their_size(bert, tmp_path):
    folder = save(tmp_path / "m", Transformer(bert), Pooling(SIZE), Dense(SIZE, 8), Normalize())
    job, files = settled(folder, engine="openai")
    with EmbedServer(tmp_path / "m", dimension=8) as right, EmbedServer(tmp_path / "m", dimension=SIZE) as wrong:
        assert load_engine(job, files, None, Settings(endpoint=(right.url,))).dimension == 8
        with pytest.raises(EngineError, match=r"vectors of 24 dimensions, --model .* has 8"):
            load_engine(job, files, None, Settings(endpoint=(wrong.url,)))


def test_engines_that_do_not_run_the_modules_are_refused(bert, tmp_path):
    dense = save(tmp_path / "dense", Transformer(bert), Pooling(SIZE), Dense(SIZE, 8))
    with pytest.raises(ConfigError, match=r"--engine vllm does not run what .* has: Dense\(24 -> 8, Tanh\)"):
        settled(dense, engine="vllm")
    prompted = save(tmp_path / "prompted", Transformer(bert), Pooling(SIZE, include_prompt=False))
    with pytest.raises(ConfigError, match="--engine tei pools all tokens"):
        settled(prompted, engine="tei")
