"""Search with a real model, and docs/search-and-maps.md does what it says: python -m pytest tests/test_search_guide.py."""

import json
import re
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from extract.cli import main
from extract.search import open_search
from tests.embeddings_folder import write_embeddings
from tests.hubserver import HubServer
from tests.runs import CHECKOUT, MINILM, Bench, use_hub

QUESTIONS = {
    "How do plants turn sunlight into energy?": "what is photosynthesis and how does it feed a tree",
    "What is the capital of Australia?": "which city is the seat of the Australian government",
    "Why is the sky blue?": "reason for the colour of the heavens in daytime",
    "How do I boil an egg so that the yolk stays soft?": "cooking eggs with a runny middle",
    "What causes the tides of the sea?": "moon and ocean water levels going up and down",
    "How do vaccines protect against disease?": "immunisation and how it keeps people from getting ill",
    "Who painted the Mona Lisa?": "artist of the famous portrait of a smiling woman in the Louvre",
    "How can I remove a red wine stain from a carpet?": "cleaning a rug after spilling Merlot",
}
FILLER = [f"Compute {i} plus {i * 7 % 13} and show the steps." for i in range(72)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Eight questions among eighty texts, embedded by MiniLM with a prompt; and other vectors of the same ids."""
    root = tmp_path_factory.mktemp("guide")
    texts = [*FILLER[:36], *QUESTIONS, *FILLER[36:]]
    sources = ["questions" if text in QUESTIONS else "sums" for text in texts]
    rows = pa.table({"text": texts, "dataset_source": sources, "id": [f"row-{i}" for i in range(len(texts))]})
    pq.write_table(rows, root / "rows.parquet")
    bench = Bench(root)
    options = ["--source", str(root / "rows.parquet"), "--chunk-rows", "30", "--max-length", "64", "--resume"]
    bench.run(*options, "--model", MINILM, "--instruction", "question: ", "--output", "./out")
    write_embeddings(root / "other", np.random.default_rng(0).standard_normal((80, 24)).astype(np.float32))
    return bench


@pytest.fixture(autouse=True)
def cache(made, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(made.cache))
    monkeypatch.chdir(made.root)


def run(*words):
    done = CliRunner().invoke(main, [*words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_question_in_other_words_finds_its_row(made):
    dataset = open_search("./out")
    for question, query in QUESTIONS.items():
        hits = dataset.retrieve(query, k=5)
        assert question in [hit.record["text"] for hit in hits], (
            query
        )  # read from the source: the dataset keeps no text
        assert hits[0].score <= 1 and hits[0].record["id"] == f"row-{hits[0].index}"
    assert dataset.embedder.embedder.prompt == "question: "


def test_the_text_of_a_row_finds_itself_with_the_datasets_own_prompt(made):
    """Cosine 1 is only reached with prompt, length and pooling of the dataset."""
    question = "Who painted the Mona Lisa?"
    (hit,) = [json.loads(line) for line in run("search", "./out", question, "--top-k", "1", "--json").splitlines()]
    assert (
        hit["text"] == question and hit["score"] == pytest.approx(1, abs=1e-4) and hit["dataset_source"] == "questions"
    )
    assert open_search("./out", instruction="").retrieve(question, 1)[0].score < 0.999


def test_a_hub_dataset_answers_as_the_folder_does(made, tmp_path, monkeypatch):
    with HubServer(tmp_path / "hub") as hub:
        use_hub(monkeypatch, hub)
        HfApi().create_repo("user/x", repo_type="dataset")
        HfApi().upload_folder(repo_id="user/x", repo_type="dataset", folder_path=made.root / "out")
        words = ["why do oceans rise and fall", "--where", "dataset_source=questions", "--top-k", "3"]
        assert run("search", "user/x", *words) == run("search", "./out", *words)
        out = run("export", "user/x", str(tmp_path / "np"), "--to", "npy")
        assert "80 rows of 384 dimensions; user/x is complete" in out
        assert json.loads((tmp_path / "np" / "export.json").read_text())["revision"]


def test_the_commands_and_snippets_of_the_guide_run(made):
    guide = (CHECKOUT / "docs" / "search-and-maps.md").read_text()
    guide = (
        guide.replace("user/x-embeddings", "./out")
        .replace("user/x-other", "./other")
        .replace("--dims 64", "--dims 16")
    )
    commands = [line for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "stillroom"
        out = run(*words[1:], *["--method", "pca"] * (words[1] == "map"))
        if "--to ./x-map" in command:
            atlas = re.search(r"```text\n(.*?)\n```", guide, re.DOTALL)[1]
            assert out.splitlines()[-1].strip() == atlas
    found = {}
    snippets = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    for snippet in snippets:
        exec(snippet, found)
    assert len(snippets) == 2 and found["context"][0] <= 1 and found["saved"]["emb"].shape == (80, 384)
