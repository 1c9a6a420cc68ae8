"""Cards of real builds: every block of code in them runs, a person's words outlive a resume, a page shows what is there.

python -m pytest tests/test_card_blocks.py
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner
from datasets import load_dataset

from builders.job import LOCAL_SHA
from cards.readme import BEGIN, END, split_front_matter
from extract.cli import main
from tests.hubserver import HubServer
from tests.runs import CHECKOUT, MINILM, Bench
from tests.test_logits_run import model  # noqa: F401  # fixture

OPTIONAL = ("polars", "duckdb")
SOURCE_CARD = b"---\nlicense: odc-by\nlanguage:\n- en\nsize_categories: [n<1K]\n---\n# Chats\n"
BUILDS = {
    "float32": ["--model", MINILM],
    "binary": ["--model", MINILM, "--storage-dtype", "binary"],
    "fields": ["--model", MINILM, "--engine", "fake", "--fields", "think,response", "--config-name", "parts"],
    "default": ["--build", "logits", "--max-length", "512"],
    "compact": ["--build", "logits", "--max-length", "512", "--encoding", "compact"],
    "lengths": ["--build", "lengths"],
}


def blocks(readme: str) -> list[str]:
    """The Python of a card, without the tools that are not installed."""
    found = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    return [
        code for code in found if not any(f"import {name}" in code and find_spec(name) is None for name in OPTIONAL)
    ]


def command(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def bench(tmp_path_factory, chat_parquet, model):  # noqa: F811
    """A place where each of BUILDS is made when it is first asked for."""
    bench = Bench(tmp_path_factory.mktemp("cards"))

    def made(kind: str) -> Path:
        folder = bench.root / kind
        if not folder.exists():
            teacher = [] if "--model" in BUILDS[kind] else ["--model", str(model), "--dtype", "float32"]
            limits = ["--limit", "30", "--chunk-rows", "20", "--resume"]
            bench.run("--source", str(chat_parquet), *BUILDS[kind], *teacher, *limits, "--output", f"./{kind}")
        return folder

    return SimpleNamespace(root=bench.root, made=made)


@pytest.mark.parametrize(
    "kind", ["float32", "default", *(pytest.param(k, marks=pytest.mark.slow) for k in ("binary", "fields", "compact"))]
)
def test_every_block_of_a_card_runs(bench, kind):
    folder = bench.made(kind)
    found: dict = {}
    with chdir(bench.root):
        for code in blocks((folder / "README.md").read_text()):
            exec(code, found)
        without_answer = 0 if kind in ("float32", "binary") else 3
        assert len(found["frame"]) == 30 - without_answer
        if "query" in found:
            assert found["query"].shape == (384,) and found["inputs"].shape[1] == 384 and len(found["nearest"]) == 10
        if "loss" in found:
            student = lambda ids, attention_mask: SimpleNamespace(logits=torch.zeros(*ids.shape, 704))  # noqa: E731
            assert found["loss"](student, next(iter(found["batches"]))) == pytest.approx(
                torch.log(torch.tensor(704.0))
            )
            assert len(found["entries"]) == len(found["logits"].ids)
    assert len(found["stream"].column_names) == len(found["dataset"].column_names)


@pytest.mark.slow
def test_every_block_of_a_lengths_card_runs(bench):
    readme, found = (bench.made("lengths") / "README.md").read_text(), {}
    with chdir(bench.root):
        for code in blocks(readme):
            exec(code, found)
    assert len(found["frame"]) == 30 and f"| tokens | {sum(found['dataset']['num_tokens']):,} |" in readme


def test_a_complete_card_has_plots_that_are_there(bench):
    folder = bench.made("float32")
    readme = (folder / "README.md").read_text()
    plots = re.findall(r"!\[.*?\]\((.*?)\)", readme)
    assert plots == ["assets/tokens.svg"]
    assert all(
        (folder / path).read_text().startswith("<svg") and (folder / path).stat().st_size < 10_000 for path in plots
    )
    assert "| `letters` | 10 |" in readme and "| versions | python" in readme and "| time of workers |" in readme
    assert load_dataset(str(folder), split="train").num_rows == 30, "the plots beside the data disturb nothing"


def test_the_command_makes_the_card_anew_and_keeps_words(bench):
    folder = bench.made("float32")
    path = folder / "README.md"
    whole = path.read_text()
    path.write_text(whole.replace(BEGIN, f"Mine.\n\n{BEGIN}").replace("**Complete**", "**Broken**"))
    (folder / "assets/tokens.svg").unlink()
    page = bench.root / "card.html"
    with chdir(bench.root):
        command("card", "./float32", "--preview", page)
        assert "**Broken**" in path.read_text() and not (folder / "assets/tokens.svg").exists(), "it only looks"
        command("card", "./float32")
    assert path.read_text() == whole.replace(BEGIN, f"Mine.\n\n{BEGIN}") and (folder / "assets/tokens.svg").exists()
    path.write_text(whole)


def test_a_preview_is_one_page_with_its_plots_and_without_scripts(bench):
    folder = bench.made("float32")
    path, page = folder / "README.md", bench.root / "page.html"
    whole = path.read_text()
    path.write_text(whole + "\n<script>alert(1)</script>\n\n![elsewhere](https://example.com/x.png)\n")
    with chdir(bench.root):
        command("card", "./float32", "--preview", page)
    path.write_text(whole)
    html = page.read_text()
    assert (
        html.count("<table>") == whole.count("|---|---|\n")
        and "<script" not in html
        and "https://example.com" not in html
    )
    (plot,) = re.findall(r'src="data:image/svg\+xml;base64,(.*?)"', html)
    assert base64.b64decode(plot) == (folder / "assets/tokens.svg").read_bytes()
    assert "stillroom: begin" not in html and "<code>" in html


@pytest.mark.parametrize(
    "words, said", [(["./nowhere"], "there is no such folder"), (["."], "there is no job of stillroom here")]
)
def test_what_has_no_card_is_said_in_one_line(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["card", *words])
    assert done.exit_code == 2 and said in done.output and len(done.output.splitlines()) == 1


def test_a_missing_markdown_library_names_its_extra(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    bench.made("float32")
    with chdir(bench.root):
        done = CliRunner().invoke(main, ["card", "./float32", "--preview", "x.html"])
    assert done.exit_code == 2 and 'pip install "stillroom[viz]"' in done.output


def test_words_of_a_person_outlive_a_resume_on_the_hub(tmp_path, chat_parquet):
    """Half of the units, an edit by hand, the other half: the edit is kept, the facts are of the whole."""
    with HubServer(tmp_path / "hub") as hub:
        hub.create_repo("user/chats")
        hub.write("user/chats", {"README.md": SOURCE_CARD, "data/train.parquet": chat_parquet.read_bytes()})
        bench = Bench(tmp_path, hub=hub.env())
        options = ["--source", "user/chats", "--model", MINILM, "--engine", "fake", "--chunk-rows", "15", "--resume"]
        options += ["--output", "user/out", "--num-jobs", "2", "--job-index"]
        bench.run(*options, "0")
        half = hub.read("user/out", "README.md").decode()
        assert "**Growing**" in half and "assets/" not in half
        edited = half.replace("license: odc-by", "license: cc-by-4.0").replace("pretty_name: out", "pretty_name: Mine")
        edited = edited.replace(BEGIN, f"# My words\n\n{BEGIN}").replace(END, f"{END}\n\nAsk me about *that*.\n")
        hub.write("user/out", {"README.md": edited.encode()})
        bench.run(*options, "1")
        data, body = split_front_matter(hub.read("user/out", "README.md").decode())
        assert (data["license"], data["pretty_name"], data["language"]) == ("cc-by-4.0", "Mine", ["en"])
        assert body.strip().startswith("# My words") and body.rstrip().endswith("Ask me about *that*.")
        assert "**Growing**" not in body and "**Complete**: 60 records and 0 skipped rows of 60." in body
        assert "| licence of the source | odc-by |" in body and data["source_datasets"] == ["user/chats"]
        assert data["dataset_info"][0]["splits"][0]["num_examples"] == 60
        sha = yaml.safe_load(re.search(r'revision = (".*")', body)[1])
        assert not sha.startswith(LOCAL_SHA) and f"](https://huggingface.co/datasets/user/chats/tree/{sha})" in body
        assert hub.read("user/out", "assets/tokens.svg").startswith(b"<svg")
        code = "\n".join(blocks(body)[:4])  # datasets, streaming, torch, pandas: the others have clients of their own
        asked = f"{code}\nprint(len(vectors), len(frame), inputs.shape[1])"
        done = subprocess.run([sys.executable, "-c", asked], env={**bench.env, "PYTHONPATH": str(CHECKOUT)},
                              capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
        assert done.stdout.split() == ["60", "60", "384"], done.stderr
