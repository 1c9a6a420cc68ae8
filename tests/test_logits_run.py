"""A whole logits build: a small random causal model, real conversations, and what comes out decoded again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from builders.demo import write_demo
from builders.job import Job
from builders.packing import unpack
from extract.chats import open_encoder
from tests.runs import CHECKOUT, Bench

ROWS, CHUNK_ROWS = 24, 6
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two layers, a vocabulary of 700 byte-level tokens, ChatML."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the quick brown fox and what it says of numbers 12345"] * 50, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    whole.chat_template = TEMPLATE
    whole.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=704, max_position_embeddings=4096, **sizes, num_key_value_heads=2)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def bench(tmp_path):
    write_demo(tmp_path / "chat.parquet", num_rows=ROWS)
    return Bench(tmp_path)


def options(bench: Bench, model: Path, output: str, *more: object) -> list[str]:
    job = ["--build", "logits", "--source", bench.root / "chat.parquet", "--model", model, "--chunk-rows", CHUNK_ROWS]
    job += ["--max-length", 2000, "--dtype", "float32", "--output", output, "--resume"]
    return [str(part) for part in [*job, *more]]


def test_a_pilot_passes_over_conversations_without_an_answer(tmp_path, model, chat_parquet):
    """Every tenth row has none; without --chunk-rows the size of a unit is measured first."""
    bench = Bench(tmp_path)
    job = ["--build", "logits", "--source", str(chat_parquet), "--limit", "20", "--model", str(model)]
    log = bench.run(*job, "--dtype", "float32", "--output", "./out", "--resume")
    assert "rows per chunk" in log and "18 records of 20 rows, skipped: no_assistant_token 2" in log


def records(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("data/**/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_logits_dataset_from_end_to_end(bench, model):
    log = bench.run(*options(bench, model, "./out"))
    assert "complete: 4 units" in log
    rows = records(bench.root / "out")
    assert [row["index"] for row in rows] == list(range(ROWS))
    tokenizer, teacher = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    source = pq.read_table(bench.root / "chat.parquet").to_pylist()
    for row, chat in list(zip(rows, source, strict=True))[:6]:
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:2000]
        assert row["input_ids"] == ids and row["num_tokens"] == len(row["positions"])
        answer = tokenizer.decode([ids[p] for p in row["positions"]])
        said = [message["content"] for message in chat["messages"] if message["role"] == "assistant"]
        assert answer == "".join(f"{content}<|im_end|>" for content in said)
        found = unpack(row)
        with torch.inference_mode():
            logits = teacher(input_ids=torch.tensor([ids])).logits[0, [p - 1 for p in row["positions"]]].double()
        np.testing.assert_allclose(found.logsumexp, logits.logsumexp(-1), atol=1e-5)
        places = np.repeat(np.arange(len(found.counts)), found.counts)
        step = np.array(row["top_max"]) - np.array(row["top_min"])
        error = np.abs(found.logits - logits.numpy()[places, found.ids])
        assert (error <= step[places] / 131070 + 1e-5).all()
        mass = np.add.reduceat(np.exp(found.logprobs()), np.cumsum(found.counts) - found.counts)
        assert ((mass >= 0.98 - 1e-4) | (found.counts == 100)).all()
    card = (bench.root / "out/README.md").read_text()
    assert "Teacher logits of 24 conversations" in card and "tokens captured" in card
    assert "nothing left to do" in bench.run(*options(bench, model, "./out"))


def test_a_model_spread_over_devices(bench, model):
    """Here the only device is the CPU; what placement gives and what hooks do is in test_placement and test_capture."""
    bench.run(*options(bench, model, "./out", "--limit", 6))
    bench.run(*options(bench, model, "./spread", "--limit", 6, "--device-map", "auto", "--max-memory", "cpu=4GiB"))
    for one, two in zip(records(bench.root / "out"), records(bench.root / "spread"), strict=True):
        assert one["input_ids"] == two["input_ids"] and len(one["positions"]) > 0
        np.testing.assert_allclose(one["logsumexp"], two["logsumexp"], atol=1e-5)
    process = bench.start(*options(bench, model, "./other", "--build", "embeddings", "--device-map", "auto"))
    assert process.wait(timeout=60) == 2
    assert "--device-map is for --build logits" in bench.log.read_text()


@pytest.mark.parametrize("said", [5, [5, 3], None])
def test_stops_are_those_of_the_generation_config(model, tmp_path, said):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = open_encoder(Job(build="logits", model=str(folder), max_length=100), tokenizer)
    own = AutoConfig.from_pretrained(folder).eos_token_id
    named = [said] if isinstance(said, int) else said or []
    assert encoder.stops == {"<|im_end|>", *tokenizer.convert_ids_to_tokens([own, *named])}


def test_verify_knows_the_build(bench, model):
    """A clean proof, and each of two kinds of damage that only the values show."""
    bench.run(*options(bench, model, "./out", "--engine", "fake"))
    assert "nothing is missing" in verify(bench, 0)
    path = sorted(bench.root.glob("out/data/**/*.parquet"))[1]
    for name, value, what in (("top_min", 9.0, "a nucleus of mass"), ("positions", 0, "positions do not name")):
        content = path.read_bytes()
        table = pq.read_table(path)
        column = table[name].to_pylist()
        column[2] = [value] * len(column[2])
        where = table.schema.get_field_index(name)
        damaged = pa.array(column, table.schema.field(where).type)
        pq.write_table(table.set_column(where, table.schema.field(where), damaged), path)
        said = verify(bench, 1)
        assert f"row 8: {what}" in said, said
        path.write_bytes(content)


def verify(bench: Bench, code: int) -> str:
    command = [sys.executable, "-c", "from extract.cli import main; main()", "verify", "./out", "--deep"]
    env = bench.env | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=env, cwd=bench.root, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_same_in_every_world(bench, model):
    """One worker, or two with other batches: the same ids, samples and logits."""
    bench.run(*options(bench, model, "./one"))
    bench.run(*options(bench, model, "./two", "--max-batch-tokens", 300), workers=2)
    for one, two in zip(records(bench.root / "one"), records(bench.root / "two"), strict=True):
        for name in ("input_ids", "positions", "top_indices_low", "top_counts", "sampled_indices_low"):
            assert one[name] == two[name], name
        np.testing.assert_allclose(one["logsumexp"], two["logsumexp"], atol=1e-5)


def test_rows_without_an_answer_are_listed(bench, model):
    lines = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"messages": None},
        {"messages": [{"role": "user", "content": "x" * 9000}, {"role": "assistant", "content": "too late"}]},
    ]
    (bench.root / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = options(bench, model, "./out", "--engine", "fake")
    arguments[arguments.index("--source") + 1] = "chat.jsonl"
    bench.run(*arguments)
    assert [row["index"] for row in records(bench.root / "out")] == [0]
    (path,) = bench.root.glob("out/skipped/**/*.parquet")
    skipped = {row["index"]: row["reason"] for row in pq.read_table(path).to_pylist()}
    assert skipped == {1: "no_assistant_token", 2: "messages_missing", 3: "no_assistant_token"}


def test_what_the_template_never_prints_is_told(bench, model):
    """ChatML without tools: a call of one is an empty turn, and the card says how often."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "seen"},
        {"role": "assistant", "content": "There."},
    ]
    (bench.root / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    arguments = options(bench, model, "./out", "--engine", "fake")
    arguments[arguments.index("--source") + 1] = "chat.jsonl"
    bench.run(*arguments)
    card = (bench.root / "out/README.md").read_text()
    assert "The chat template never prints `tool_calls`, which 1 conversation has: the teacher saw none." in card


def test_a_template_that_gives_no_certain_mask_is_refused_before_the_model_is_loaded(bench, model):
    (bench.root / "odd.jinja").write_text("{{ messages | map(attribute='content') | join(' ') }}")
    process = bench.start(*options(bench, model, "./out", "--chat-template", "odd.jinja"))
    assert process.wait(timeout=120) == 2
    said = bench.log.read_text()
    assert "--chat-template" in said and "Traceback" not in said
