"""docs/curation.md says what works: python -m pytest tests/test_curation_guide.py."""

import re
import shlex

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from builders.job import Job
from builders.source import open_source
from tests.embeddings_folder import write_embeddings
from tests.logits_folder import tiny_model, tiny_tokenizer
from tests.runs import CHECKOUT
from tests.test_density import clustered, run

GUIDE = (CHECKOUT / "docs" / "curation.md").read_text()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with 400 prompts and their embeddings, which is the current one."""
    vectors, which = clustered(400, 16)
    rows = {"id": [f"row-{i}" for i in range(400)], "prompt": [f"w{i % 7} w{i % 11}" for i in range(400)]}
    (tmp_path / "prompts").mkdir()
    Dataset.from_dict(rows).to_parquet(tmp_path / "prompts" / "train.parquet")
    monkeypatch.chdir(tmp_path)
    source = {"source": "./prompts", "revision": open_source(Job(source="./prompts"), tmp_path).revision}
    write_embeddings(tmp_path / "embeddings", vectors, sources=[f"s{w % 3}" for w in which], **source)
    return tmp_path


def here(text):
    return text.replace("user/prompts-embeddings", "./embeddings").replace("user/prompts", "./prompts")


def test_the_commands_of_the_guide_run(home):
    commands = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
    for command in commands:
        assert run(*shlex.split(here(command))[1:]).startswith("./embeddings: complete: 400 rows")
    assert len(commands) == 6
    assert len((home / "ids.txt").read_text().split()) == len(np.load(home / "indices.npy")) == 200
    assert load_dataset("./prompts-subset")["train"].column_names == ["index", "id", "prompt"]
    assert 0 < len(load_dataset("parquet", data_files="records.parquet")["train"]) < 400


def test_the_training_snippets_of_the_guide_run(home):
    """GRPO on a tiny model: the prompts that it generates for are the draws, in groups of four."""
    pytest.importorskip("trl")
    run("density", "./embeddings")
    tiny_model(2).save_pretrained(home / "student")
    tiny_tokenizer().save_pretrained(home / "student")
    seen = []
    names = {"user/student": "./student", "max_steps=100": "max_steps=2, report_to=[], use_cpu=True, bf16=False"}
    found: dict = {"seen": seen}
    snippets = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    for snippet in snippets:
        for name, value in names.items():
            snippet = snippet.replace(name, value)
        snippet = snippet.replace("    return [float", '    seen.extend(columns["id"])\n    return [float')
        exec(here(snippet), found)
    assert len(snippets) == 2 and found["trainer"].state.global_step == 2
    found["sampler"].set_epoch(0)
    drawn = {found["prompts"]["id"][i] for i in found["sampler"]}
    assert len(seen) == 8 and seen[:4] == [seen[0]] * 4 and set(seen) <= drawn
    assert len(next(iter(found["loader"]))["id"]) == 8
