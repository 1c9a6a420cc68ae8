"""docs/tutorial.md, docs/embeddings.md and docs/format.md do what they say: python -m pytest tests/test_guides.py."""

from __future__ import annotations

import re
from contextlib import chdir
from shutil import which

import numpy as np
import pyarrow.parquet as pq
import pytest

from builders.packing import unpack
from builders.stored_logits import open_logits
from builders.stored_vectors import open_vectors
from tests.guides import blocks, commands, run_commands, shell, write_tools
from tests.runs import CHECKOUT, MINILM, Bench
from tests.test_readers import outputs  # noqa: F401  # fixture

TUTORIAL, EMBEDDINGS, FORMAT = "docs/tutorial.md", "docs/embeddings.md", "docs/format.md"


def chunks(folder):
    return sorted((folder / "data" / "train").rglob("*.parquet"))


@pytest.fixture(scope="module")
def decoders():
    """The functions of the page on the format, which import nothing of ours."""
    found: dict = {}
    for block in blocks(FORMAT, "python"):
        assert not re.search(r"import (builders|extract|hub|cards)|from (builders|extract|hub|cards)", block)
        exec(block, found)
    return found


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_the_page_on_the_format_reads_vectors(outputs, decoders, dtype):  # noqa: F811
    stored = open_vectors(str(outputs / dtype))
    for path in chunks(outputs / dtype):
        column = pq.read_table(path)["embedding"]
        plain = np.stack(column.to_numpy()) if dtype == "int8" else np.array(column.to_pylist(), object)
        np.testing.assert_allclose(decoders[f"read_{dtype}"](path), stored.dequantize(plain), atol=1e-6)


def test_the_page_on_the_format_reads_logits(outputs, decoders):  # noqa: F811
    for path in chunks(outputs / "default"):
        for record in pq.read_table(path).to_pylist():
            counts, ids, logits, sampled_ids, sampled_logits = decoders["read_default"](record)
            wanted = unpack(record)
            assert np.array_equal(counts, wanted.counts) and np.array_equal(ids, wanted.ids)
            assert np.array_equal(sampled_ids, wanted.sampled_ids)
            np.testing.assert_allclose(logits, wanted.logits, atol=1e-4)
            np.testing.assert_allclose(sampled_logits, wanted.sampled_logits, atol=1e-4)


def test_the_page_on_the_format_reads_compact_logits(outputs, decoders):  # noqa: F811
    stored = open_logits(str(outputs / "compact"))
    ranks = np.frombuffer((outputs / "compact/_stillroom/ranks.bin").read_bytes(), "<u2")
    for path in chunks(outputs / "compact"):
        for record in pq.read_table(path).to_pylist():
            counts, ids, p = decoders["read_compact"](record, ranks)
            wanted = stored.unpack(record)
            assert np.array_equal(counts, wanted.counts) and np.array_equal(ids, wanted.ids)
            np.testing.assert_allclose(p, wanted.probabilities, rtol=1e-4)


def test_pages_link_to_pages_that_are_there():
    for page in [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_begins_with_the_tutorial():
    assert commands(TUTORIAL) == blocks("README.md", "bash")[0].splitlines()
    assert len(commands(TUTORIAL)) <= 10


@pytest.mark.slow
@pytest.mark.skipif(not (CHECKOUT / ".git").exists() or which("git") is None, reason="needs git, and a checkout of it")
def test_a_first_time_user_gets_to_the_end_of_the_tutorial(tmp_path):
    """A clone, with an environment that is there already: what `make demo` installs is what these tests run in."""
    bench = Bench(tmp_path)
    lines = commands(TUTORIAL, {"ADDRESS_OF_THIS_REPOSITORY": str(CHECKOUT)})
    tools = write_tools(tmp_path / "venv" / "bin", tmp_path / "stillroom")
    (tools / "activate").write_text(f'PATH="{tools}:$PATH"\n')
    ready = f"ln -s {tools.parent} .venv && touch .venv/ready"
    options = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    options["DEMO_OPTIONS"] = "--limit 200 --chunk-rows 80"
    out = shell([lines[0], ready, *lines[1:]], tmp_path, bench.env | options)
    assert "num_rows: 200" in out and "nothing is missing, doubled or damaged" in out
    assert "sort" in out.lower() or "order" in out.lower()
    page = (tmp_path / "stillroom" / "card.html").read_text()
    assert "Embeddings of 200 rows" in page and "data:image/svg+xml" in page


@pytest.mark.slow
def test_the_commands_and_snippets_of_the_embeddings_guide_run(tmp_path, chat_parquet):
    names = {"user/chats": str(chat_parquet), "user/model": MINILM}
    out = run_commands(commands(EMBEDDINGS, names), tmp_path, Bench(tmp_path).env)
    assert "nothing is missing, doubled or damaged" in out and (tmp_path / "card.html").exists()
    found: dict = {}
    with chdir(tmp_path):
        for block in blocks(EMBEDDINGS, "python"):
            exec(block, found)
    assert found["vectors"].shape == found["restored"].shape == (60, 384)
    assert any("7" in text for text in found["texts"])
