"""Chats in a column of their own, `--keep-messages`: python -m pytest tests/test_messages.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from builders.chat import stored_messages
from builders.job import Job
from builders.stored_logits import open_logits
from tests.commands import Commands
from tests.runs import MINILM, Bench
from tests.test_logits_run import model  # noqa: F401  # fixture

QUESTION = {"role": "user", "content": "Which colour?"}
TRACED = {"role": "assistant", "content": "Blue.", "reasoning_content": "The sky, I think."}
WHOLE = "<think>\nThe sky, I think.\n</think>\n\nBlue."


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ([QUESTION], [QUESTION]),
        (json.dumps([QUESTION]), [QUESTION]),
        ([{"from": "human", "value": "Which colour?"}], [QUESTION]),
        ([{"role": "user", "content": [{"type": "text", "text": "Which colour?"}, {"type": "image"}]}], [QUESTION]),
        ([TRACED], [{"role": "assistant", "content": WHOLE}]),
        ([TRACED | {"content": WHOLE}], [{"role": "assistant", "content": WHOLE}]),
        ([{"role": "assistant", "content": "<think>a</think> b"}], [{"role": "assistant", "content": "<think>a</think> b"}]),
        ([{"role": "assistant", "tool_calls": [{"name": "look"}]}], [{"role": "assistant", "content": ""}]),
        (None, None),
        ("no JSON", None),
        ([{"content": "whose?"}], None),
    ],
)  # fmt: skip
def test_every_shape_of_a_chat_is_stored_as_role_and_content(value, stored):
    assert stored_messages(value) == stored


def test_jobs_of_before_there_was_the_option_keep_their_fingerprint():
    job = Job(source="user/chats", model="user/model", revision="a" * 40)
    assert "keep_messages" not in job.values and "keep_messages" in replace(job, keep_messages=True).values
    assert job.differences(replace(job, keep_messages=True)) == ["keep_messages: False -> True"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, chats):
    """A folder of chats in which commands run one after the other."""
    bench = Bench(tmp_path_factory.mktemp("messages"))
    pq.write_table(pa.Table.from_pylist(chats[:30]), bench.root / "chats.parquet")
    with Commands(bench.root, bench.env) as commands:
        yield bench.root, commands


def run(commands: Commands, *words: object) -> None:
    done = commands.run("run", *map(str, words), "--source", "chats.parquet", "--chunk-rows", "20")
    assert done.code == 0, done.err


def column(folder: Path, name: str = "messages") -> list:
    return [row for path in sorted(folder.glob("data/**/*.parquet")) for row in pq.read_table(path)[name].to_pylist()]


def test_vectors_have_their_chats_beside_them_and_an_update_has_the_new_ones(place, chats):
    root, commands = place
    job = ["--model", MINILM, "--engine", "fake", "--text-template", "{id}", "--keep-messages"]
    job += ["--output", "./vectors"]
    run(commands, *job, "--resume")
    assert column(root / "vectors") == [chat["messages"] for chat in chats[:30]], "the text is another column"
    readme = (root / "vectors/README.md").read_text()
    assert "| `messages` | list of {role, content} |" in readme and "keep_messages = true" in readme
    assert commands.run("verify", "./vectors", "--deep").code == 0
    loaded = load_dataset(str(root / "vectors"), split="train", cache_dir=str(root / "datasets"))
    assert loaded[3]["messages"] == chats[3]["messages"]
    changed = [chat | {"messages": [QUESTION]} if n == 3 else chat for n, chat in enumerate(chats[:30])]
    pq.write_table(pa.Table.from_pylist(changed), root / "chats.parquet")
    run(commands, *job, "--update")
    pq.write_table(pa.Table.from_pylist(chats[:30]), root / "chats.parquet")
    assert "30 records of the same text were carried over" in (root / "vectors/README.md").read_text()
    assert column(root / "vectors")[2:5] == [chats[2]["messages"], [QUESTION], chats[4]["messages"]]


@pytest.mark.parametrize("build", ["logits", "lengths"])
def test_other_builds_have_them_too(place, chats, model, build):  # noqa: F811
    root, commands = place
    run(commands, "--build", build, "--model", model, "--keep-messages", "--output", f"./{build}", "--resume")
    kept = [chats[index]["messages"] for index in column(root / build, "index")]
    assert kept and column(root / build) == kept
    assert commands.run("verify", f"./{build}", "--deep").code == 0
    if build == "logits":
        record = next(iter(load_dataset(str(root / build), split="train", streaming=True).with_format("numpy")))
        assert len(open_logits(str(root / build)).unpack(record).counts) == record["num_tokens"]
