"""Token counts of every row, and what other builds plan with them: python -m pytest tests/test_lengths.py."""

import json
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from builders.columns import record_columns
from builders.demo import write_demo
from builders.job import Job
from builders.lengths import captured_tokens
from builders.lengths_schema import PARTS, wrong_lengths
from builders.options import ConfigError
from builders.selection import select
from builders.source import open_source
from builders.units import Unit, Units
from extract.builds import open_build
from extract.dry_run import dry_run
from extract.lengths import NoEngine
from extract.model_files import read_model_files
from extract.settings import Settings
from extract.settle import settle
from extract.token_plan import read_token_plan
from extract.tokens import load_tokenizer
from extract.verify import verify
from hub.folder import FolderRepo
from tests.runs import MINILM, Bench, download, hub_process, kill_group

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_IN_FRONT = "{{ messages[0].content }}\n" + TEMPLATE.replace("in messages", "in messages[1:]")
SAY = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello, you"}]
CHATS = [
    SAY,
    [{"role": "system", "content": "Be short."}, *SAY, *SAY, {"role": "tool", "content": "seen 3"}, SAY[1]],
    [{"role": "user", "content": "nobody answers"}],
    None,
    [{"role": "user", "content": "long " * 400}, SAY[1]],
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A byte-level tokenizer of 600 tokens with ChatML, and no weights at all."""
    folder = tmp_path_factory.mktemp("counter")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the quick brown fox and what it says of numbers 12345"] * 50, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    whole.chat_template = TEMPLATE
    whole.save_pretrained(folder)
    config = {"model_type": "llama", "max_position_embeddings": 4096, "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    return bench


@pytest.fixture
def job(bench, model):
    return Job(build="lengths", source=str(bench.root / "chat.jsonl"), model=str(model))


def count(job, tmp_path):
    """The records of a lengths job, and the rows that it skips, in this process."""
    source, files = open_source(job, tmp_path), read_model_files(job)
    job = settle(job, source, files, "cpu")
    build = open_build(job, source, files)
    work = build.work(Unit(0, 0, source.num_rows))
    for sample in build.samples(source.read(np.arange(source.num_rows), build.needed_columns), work):
        work.put([sample], [sample.counts], sample.num_tokens)
    work.finish()
    table = work.records(build.columns(NoEngine()))
    assert table.schema.names == [c.name for c in record_columns(job, source.columns, 0)]
    assert not [what for batch in table.to_batches() for what in wrong_lengths(batch)]
    return table, {index: reason for index, reason, _ in work.skipped}


def records(folder):
    return [row for path in sorted(folder.glob("data/**/*.parquet")) for row in pq.read_table(path).to_pylist()]


def write(folder, bench, job, **options):
    """Run a lengths job whole."""
    given = {"build": "lengths", "source": job.source, "model": job.model, "output": folder, **options}
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return bench.run(*flags, "--resume")


def test_counts_are_those_of_the_rendered_conversation(job, model, tmp_path):
    table, skipped = count(job, tmp_path)
    assert skipped == {3: "messages_missing"}
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokens(*messages):
        text = tokenizer.apply_chat_template(list(messages), tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    rows = {row["index"]: row for row in table.to_pylist()}
    assert {i: row["num_tokens"] for i, row in rows.items()} == {i: tokens(*CHATS[i]) for i in (0, 1, 2, 4)}
    assert all(sum(row[part] for part in PARTS) == row["num_tokens"] for row in rows.values())
    said = len(tokenizer("hello, you<|im_end|>")["input_ids"])
    assert [rows[i]["assistant_tokens"] for i in (0, 1, 2, 4)] == [said, 3 * said, 0, said]
    system, user, _, _, _, tool, _ = CHATS[1]
    assert [rows[1][f"{role}_tokens"] for role in ("system", "user", "tool")] == [
        tokens(system), 2 * tokens(user), tokens(tool)
    ]  # fmt: skip
    assert rows[1]["num_turns"] == 7
    starts, stops = rows[1]["assistant_runs"][::2], rows[1]["assistant_runs"][1::2]
    ids = tokenizer.apply_chat_template(CHATS[1], return_dict=False)
    assert [tokenizer.decode(ids[a:b]) for a, b in zip(starts, stops, strict=True)] == ["hello, you<|im_end|>"] * 3


def test_a_conversation_without_a_certain_mask_has_its_total(job, tmp_path):
    template = "{{ messages | map(attribute='content') | join(' ') }}"
    table, _ = count(replace(job, chat_template=template), tmp_path)
    first = table.to_pylist()[0]
    assert first["num_tokens"] > 0 and first["no_mask"] and not first["assistant_runs"]
    assert [first[part] for part in PARTS] == [None] * 5


def test_a_system_prompt_that_no_pass_prints_has_no_count(job, tmp_path):
    table, _ = count(replace(job, chat_template=SYSTEM_IN_FRONT), tmp_path)
    row = next(row for row in table.to_pylist() if row["index"] == 1)
    assert row["system_tokens"] is None and row["user_tokens"] > 0
    assert sum(row[part] or 0 for part in PARTS) == row["num_tokens"]


@pytest.mark.parametrize("fields", [(), ("prompt", "response")])
def test_texts_are_counted_as_an_embeddings_build_sees_them(fields, bench, tmp_path):
    write_demo(bench.root / "demo.parquet", num_rows=20)
    job = Job(build="lengths", count="text", source=str(bench.root / "demo.parquet"), model=MINILM, fields=fields)
    table, _ = count(job, tmp_path)
    source, files = open_source(job, tmp_path), read_model_files(job)
    other = settle(replace(job, build="embeddings", dtype="float32", count=None), source, files, "cpu")
    build = open_build(other, source, files)
    work = build.work(Unit(0, 0, 20))
    cut = {}
    for sample in build.samples(source.read(np.arange(20), build.needed_columns), work):
        cut[sample.position, sample.field] = sample.num_tokens
    names = [f"{name}_tokens" for name in fields] or ["num_tokens"]
    assert {(p, f): min(256, table[n][p].as_py()) for f, n in enumerate(names) for p in range(20)} == cut
    assert max(table["num_tokens"].to_pylist()) > 256


def test_tokens_within_a_length():
    runs, borders = np.array([3, 9, 20, 30, 5, 6]), np.array([0, 4, 4, 6])
    assert [captured_tokens(runs, borders, limit).tolist() for limit in (99, 25, 4)] == [
        [16, 0, 1], [11, 0, 1], [1, 0, 0]
    ]  # fmt: skip


def test_killed_and_finished_by_two_workers(bench, job):
    write_demo(bench.root / "demo.parquet", num_rows=1500)
    job = replace(job, source=str(bench.root / "demo.parquet"))
    arguments = ["--build", "lengths", "--source", job.source, "--model", job.model, "--chunk-rows", "50"]
    process = bench.start(*arguments, "--output", "./out", "--resume")
    until = time.monotonic() + 120
    while not any(bench.root.glob("out/data/**/*.parquet")) and time.monotonic() < until:
        time.sleep(0.01)
    kill_group(process)
    done = len(list(bench.root.glob("out/data/**/*.parquet")))
    assert "complete: 30 units" in bench.run(*arguments, "--output", "./out", "--resume", workers=2)
    expected, _ = count(job, bench.root)
    assert 0 < done < 30 and records(bench.root / "out") == expected.to_pylist()
    proof = verify(str(bench.root / "out"), "default", None, Settings(cache_dir=str(bench.root)), deep=True)
    assert proof.report.is_clean, str(proof.report)


def test_a_logits_build_sees_what_was_counted_longest_first(bench, job):
    """The units of a run with --lengths by falling tokens; what is captured and skipped as it was counted."""
    bench.options["STILLROOM_FAKE_LOG"] = str(bench.root / "log")
    flags = ["--build", "logits", "--engine", "fake", "--source", job.source, "--model", job.model]
    flags += ["--max-length", "300", "--chunk-rows", "1", "--lengths", "user/lengths", "--output", "./out", "--resume"]
    with hub_process(bench.root / "hub") as bench.hub:
        write("user/lengths", bench, job)
        rows = {row["index"]: row for row in records(download(bench.hub, "user/lengths", bench.root / "lengths"))}
        log = bench.run(*flags)
    assert {row["index"]: row["num_tokens"] for row in records(bench.root / "out")} == {
        i: rows[i]["assistant_tokens"]
        for i in (0, 1)  # the answer to the long question lies behind 300 tokens
    }
    total = rows[0]["num_tokens"] + rows[1]["num_tokens"]
    assert f"user/lengths: {total} tokens of 2 rows; 3 rows give no record" in log
    order = [int(line.split()[0]) for line in (bench.root / "log").read_text().splitlines()]
    assert order == sorted((0, 1), key=lambda i: -rows[i]["num_tokens"])
    status = json.loads(next(bench.cache.glob("jobs/out-*/status.json")).read_text())
    assert status["tokens"] == total and status["seconds_left"] == 0


def test_damaged_records_are_seen(job, tmp_path):
    table, _ = count(job, tmp_path)
    for name, value, why in (
        ("user_tokens", 1, "row 0: its parts sum to"),
        ("no_mask", "odd", "row 0: assistant_tokens and no_mask contradict each other"),
        ("num_tokens", 0, "row 0: 0 tokens"),
    ):
        where = table.schema.get_field_index(name)
        column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(where).type)
        damaged = table.set_column(where, table.schema.field(where), column)
        assert any(what.startswith(why) for batch in damaged.to_batches() for what in wrong_lengths(batch))


def test_a_dry_run_is_exact_and_lengths_that_do_not_fit_are_refused(bench, job, tmp_path):
    write("./lengths", bench, job)
    plan = dry_run(
        replace(job, build="logits", max_length=300),
        Settings(lengths=str(bench.root / "lengths"), cache_dir=str(bench.root)),
    )
    rows = [row for row in records(bench.root / "lengths") if row["index"] in (0, 1)]
    assert f"tokens    {sum(row['num_tokens'] for row in rows)} (exact" in plan
    assert f"assistant {sum(row['assistant_tokens'] for row in rows)} tokens" in plan
    assert "5, of which 2 give a record" in plan
    assert "20.0% of rows: messages_missing" in plan and "40.0% of rows: no_assistant_token" in plan
    other = bench.root / "other.jsonl"
    other.write_text((bench.root / "chat.jsonl").read_text() + json.dumps({"messages": SAY}) + "\n")
    logits = replace(job, build="logits", template_date="2026-01-01")
    for asked, why in (
        (logits, None),
        (replace(logits, source=str(other)), "another revision of the source"),
        (replace(logits, chat_template=TEMPLATE + " "), "another chat template"),
        (replace(logits, end_of_turn=False), "another --end-of-turn"),
        (replace(logits, build="embeddings"), "counts chat: this build needs --count text"),
    ):
        source, files = open_source(asked, tmp_path), read_model_files(asked)
        settled, selection = settle(asked, source, files, "cpu"), select(asked, source)
        folder, units = FolderRepo(bench.root / "lengths"), Units(selection.num_rows, 2)
        tokenizer = load_tokenizer(settled, files)
        if why is None:
            assert read_token_plan(folder, settled, tokenizer, selection, units).records.tolist() == [2, 0, 1]
            continue
        with pytest.raises(ConfigError, match=why):
            read_token_plan(folder, settled, tokenizer, selection, units)
    for path in bench.root.glob("lengths/data/**/*.parquet"):
        path.unlink()
    with pytest.raises(ConfigError, match="lacks 4 of 5 rows"):
        read_token_plan(folder, settle(logits, *_opened(logits, tmp_path), "cpu"), tokenizer, selection, Units(5, 2))
    with pytest.raises(ConfigError, match="no stillroom dataset"):
        read_token_plan(FolderRepo(tmp_path / "nothing"), settled, tokenizer, selection, units)


def _opened(job, cache):
    return open_source(job, cache), read_model_files(job)
