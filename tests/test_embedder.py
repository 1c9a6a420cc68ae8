"""Queries are embedded as the dataset's own texts, or refused: python -m pytest tests/test_embedder.py."""

import json
import re
import shutil

import numpy as np
import pytest
from datasets import load_dataset
from sentence_transformers import SentenceTransformer

from builders.options import ConfigError
from extract.embedder import Embedder
from extract.engines import EngineError
from tests.embedserver import EmbedServer
from tests.hubserver import HubServer
from tests.runs import Bench, use_hub

PROMPTS = {"query": "query: ", "document": "passage: "}


@pytest.fixture(scope="module")
def made(minilm, chat_parquet, tmp_path_factory):
    """A dataset of sixty chats, by MiniLM with prompts, of 128 dimensions and texts of 14 tokens; and its model's folder."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(minilm, root / "model", symlinks=False)
    said = {"prompts": PROMPTS, "default_prompt_name": "document"}
    (root / "model" / "config_sentence_transformers.json").write_text(json.dumps(said))
    options = ["--dimensions", "128", "--max-length", "14", "--dtype", "float32", "--keep-text", "--chunk-rows", "30"]
    bench = Bench(root)
    bench.run("--source", str(chat_parquet), "--model", str(root / "model"), "--output", "./out", *options, "--resume")
    return root


@pytest.fixture(scope="module")
def documents(made):
    """Texts of the dataset, and their vectors."""
    rows = load_dataset(str(made / "out"), split="train", cache_dir=str(made / "hf")).with_format("numpy")[:]
    assert set(rows["truncated"]) == {False, True}
    return list(rows["text"]), rows["embedding"]


def test_a_documents_own_text_gives_its_vector(made, documents):
    texts, stored = documents
    embedder = Embedder.from_dataset(str(made / "out"))
    assert (embedder.dimension, embedder.prompt) == (128, "passage: ")
    vectors = embedder.embed_batch(texts)
    assert vectors.dtype == np.float32 and vectors.shape == stored.shape
    assert (vectors * stored).sum(1).min() > 0.9999
    np.testing.assert_allclose(embedder.embed_text(f" {texts[3]}\n"), stored[3], atol=1e-5)
    np.testing.assert_allclose(
        embedder.embed_text("a\ud83d"), embedder.embed_text("a\ufffd"), atol=1e-5
    )  # half a sign
    assert embedder.embed_batch([]).shape == (0, 128)
    embedder.check()


def test_the_card_says_how(made, documents):
    card = (made / "out/README.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "Embedder" in block]
    scope = {"vectors": documents[1]}
    exec(block.replace('from_dataset("./out"', f'from_dataset("{made / "out"}"'), scope)
    assert scope["nearest"].shape == (10,)
    assert "stood `passage: `" in card


def test_a_query_has_its_own_prompt_where_the_model_names_one(made, documents):
    texts, stored = documents
    library = SentenceTransformer(str(made / "model"), device="cpu", truncate_dim=128)
    library.max_seq_length = 14
    for asked, prompt in (({"prompt_name": "query"}, "query: "), ({"instruction": "find: "}, "find: ")):
        embedder = Embedder.from_dataset(str(made / "out"), **asked)
        assert embedder.prompt == prompt
        theirs = library.encode(texts, prompt=prompt, normalize_embeddings=True)
        assert (embedder.embed_batch(texts) * theirs).sum(1).min() > 0.9999
        assert (theirs * stored).sum(1).max() < 0.9999
        with pytest.raises(ConfigError, match="compares documents"):
            embedder.check()
    with pytest.raises(ConfigError, match="prompts are 'document', 'query'"):
        Embedder.from_dataset(str(made / "out"), prompt_name="title")
    with pytest.raises(ConfigError, match="exclude each other"):
        Embedder.from_dataset(str(made / "out"), prompt_name="query", instruction="find: ")


def test_what_cannot_be_embedded_is_refused_in_one_line(made):
    embedder = Embedder.from_dataset(str(made / "out"))
    for text in ("", " \n", "\u200b"):
        with pytest.raises(ValueError, match="text 1 has nothing to embed"):
            embedder.embed_batch(["a", text])
    with pytest.raises(ValueError, match="takes a list of texts"):
        embedder.embed_batch("a")
    with pytest.raises(ValueError, match="embeds text alone"):
        embedder.embed_multimodal("a", b"")


def test_the_job_on_the_hub_is_enough(made, documents, tmp_path, monkeypatch):
    texts, stored = documents
    with HubServer(tmp_path / "hub") as server:
        use_hub(monkeypatch, server)
        server.create_repo("user/x")
        server.write(
            "user/x", {"_stillroom/job.json": (made / "out/_stillroom/job.json").read_bytes()}, "the job alone"
        )
        embedder = Embedder.from_dataset("user/x")
        np.testing.assert_allclose(embedder.embed_text(texts[0]), stored[0], atol=1e-5)
        with pytest.raises(ValueError, match="user/y: no dataset of stillroom here"):
            Embedder.from_dataset("user/y")
    with pytest.raises(OSError, match="cannot be reached"):
        Embedder.from_dataset("user/x")


def test_a_model_that_moved_is_found_and_another_one_refused(made, minilm, tmp_path):
    shutil.copytree(made / "out/_stillroom", tmp_path / "out/_stillroom")
    job = tmp_path / "out/_stillroom/job.json"
    job.write_text(job.read_text().replace(str(made / "model"), "/nowhere/model"))
    with pytest.raises(ConfigError, match="/nowhere/model: there is no such folder"):
        Embedder.from_dataset(str(tmp_path / "out"))
    moved = Embedder.from_dataset(str(tmp_path / "out"), model=str(made / "model"))
    assert moved.embed_text("a").shape == (128,)
    with pytest.raises(ConfigError, match="was made with sha256:"):
        Embedder.from_dataset(str(tmp_path / "out"), model=str(minilm))


def test_while_an_update_runs_readers_have_the_job_before_it(made, tmp_path):
    shutil.copytree(made / "out/_stillroom", tmp_path / "out/_stillroom")
    job = tmp_path / "out/_stillroom/job.json"
    said = json.loads(job.read_text())
    job.rename(job.with_name("previous.json"))
    job.write_text(json.dumps(said | {"job": said["job"] | {"dimensions": 64}}))
    assert Embedder.from_dataset(str(tmp_path / "out")).dimension == 128


def test_what_is_no_dataset_of_embeddings_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match="no dataset of stillroom here"):
        Embedder.from_dataset(str(tmp_path))
    shutil.copytree(made / "out/_stillroom", tmp_path / "out/_stillroom")
    job = tmp_path / "out/_stillroom/job.json"
    said = json.loads(job.read_text())
    job.write_text(json.dumps(said | {"job": said["job"] | {"build": "logits"}}))
    with pytest.raises(ConfigError, match="is a dataset of logits"):
        Embedder.from_dataset(str(tmp_path / "out"))


def test_a_server_can_embed_and_is_checked(made, documents):
    texts, stored = documents
    with EmbedServer(made / "model") as server:
        with pytest.raises(ConfigError, match="give endpoint=URL"):
            Embedder.from_dataset(str(made / "out"), engine="openai")
        embedder = Embedder.from_dataset(str(made / "out"), engine="openai", endpoint=server.url)
        vectors = embedder.embed_batch(texts)
        assert vectors.shape == stored.shape
        with pytest.raises(EngineError, match="other vectors"):  # its vectors are a hash of the tokens
            embedder.check()
