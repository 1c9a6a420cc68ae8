"""The card: what it says, and that a reader's tools and an author's words get along with it."""

import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import DatasetCard

from builders.job import Job
from builders.job_files import job_from_dict
from builders.layout import Layout
from builders.units import Unit
from cards.card import BEGIN, END, Card, code, size_category, split_front_matter
from cards.limits import left_out
from hub.folder import FolderRepo
from hub.pending import Pending
from tests.test_chunk import table

JOB = Job(
    output="./out",
    source="user/source",
    revision="a" * 40,
    model="user/model",
    model_revision="b" * 40,
    max_length=256,
    pooling="mean",
    dtype="float32",
    instruction="",
    chunk_rows=5,
)
MINE = "license: mit\nlanguage: [en, de]\n"


def make(folder: Path, job: Job = JOB, units: int = 3, skipped: int = 1, done: int | None = None) -> Card:
    """A folder of `done` units of five rows, and the card of it."""
    repo, pending, layout = FolderRepo(folder), Pending(folder.parent / "pending"), Layout.of(job)
    receipts = []
    for number in range(units if done is None else done):
        unit = Unit(number, 5 * number, 5 * number + 5)
        tables = {unit.path(layout.skipped, layout.split_folder): table(skipped)} if skipped else {}
        tables |= {unit.path(layout.data, layout.split_folder): table(5 - skipped)} if skipped < 5 else {}
        counts = {"rows": 5, "records": 5 - skipped, "skipped": skipped, "tokens": 50, "truncated": 0, "dimension": 8}
        counts |= {"skipped_empty_text": skipped} if skipped else {}
        receipts.append(pending.add(unit.start, unit.stop, tables, {"counts": counts}))
        repo.upload({pending.files / e.path: e for e in receipts[-1].files})
        repo.commit({e.path: e for e in receipts[-1].files}, [], "")
    return Card(job, ["id", "messages"], 5 * units, units, receipts)


def write(folder: Path, card: Card, existing: str = "", *, is_complete: bool = True) -> str:
    text = card.render(existing, name=str(folder), is_complete=is_complete)
    (folder / "README.md").write_text(text)
    return text


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


def load(folder: Path, *args, **options):
    return load_dataset(str(folder), *args, cache_dir=str(folder.parent / f"cache{os.urandom(4).hex()}"), **options)


def test_a_complete_dataset(folder):
    data, body = split_front_matter(write(folder, make(folder)))
    assert data["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/train/**/*.parquet"}],
            "default": True,
        },
        {"config_name": "skipped", "data_files": [{"split": "train", "path": "skipped/train/**/*.parquet"}]},
    ]
    assert data["dataset_info"][0]["splits"][0]["num_examples"] == 12
    assert data["source_datasets"] == ["user/source"]
    assert data["size_categories"] == ["n<1K"]
    assert "**Complete**: 12 records and 3 skipped rows of 15." in body and "| … empty_text | 3 |" in body
    assert load(folder, split="train").num_rows == 12
    assert load(folder, "skipped", split="train").num_rows == 3
    assert get_dataset_config_names(str(folder)) == ["default", "skipped"]
    DatasetCard(folder.joinpath("README.md").read_text())


def test_load_dataset_verifies_the_number_of_records(folder):
    card = make(folder)
    text = write(folder, card)
    (folder / "README.md").write_text(text.replace("num_examples: 12", "num_examples: 11"))
    with pytest.raises(Exception, match="expected"):
        load(folder, split="train")


def test_a_growing_dataset_has_no_sizes_and_loads(folder):
    text = write(folder, make(folder, done=1), is_complete=False)
    data, body = split_front_matter(text)
    assert "dataset_info" not in data
    assert "**Growing**: at least 33 % of 3 chunks" in body
    assert load(folder, split="train").num_rows == 4
    make(folder, done=2)
    assert load(folder, split="train").num_rows == 8


def test_growing_takes_the_sizes_of_an_earlier_dataset_away(folder):
    """After --restart the card of the complete dataset is still there; its sizes would keep the new one from loading."""
    old = write(folder, make(folder))
    data, _ = split_front_matter(write(folder, make(folder, skipped=0, done=1), old, is_complete=False))
    assert "dataset_info" not in data
    assert [config["config_name"] for config in data["configs"]] == ["default"], "no folder of skipped rows any more"


def test_a_dataset_of_skipped_rows_only(folder):
    data, _ = split_front_matter(write(folder, make(folder, skipped=5)))
    assert "dataset_info" not in data
    assert load(folder, "skipped", split="train").num_rows == 15


def test_rendering_again_changes_nothing(folder):
    card = make(folder)
    text = write(folder, card)
    for _ in range(3):
        assert write(folder, card, text) == text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_authors_words_stay(folder, newline):
    card = make(folder)
    text = write(folder, card, is_complete=False)
    text = text.replace("---\n", f"---\n{MINE}", 1).replace("pretty_name: out", "pretty_name: My vectors")
    text = text.replace(BEGIN, f"# Mine\n\nwords before\n\n{BEGIN}").replace(END, f"{END}\n\nwords after\n")
    text = text.replace("tags:\n", "tags:\n- mine\n").replace("**Growing**", "edited inside")
    again = write(folder, card, text.replace("\n", newline))
    data, body = split_front_matter(again)
    assert (data["license"], data["language"], data["pretty_name"]) == ("mit", ["en", "de"], "My vectors")
    assert data["tags"] == ["stillroom", "embeddings", "mine"]
    assert data["dataset_info"][0]["splits"][0]["num_examples"] == 12
    assert body.strip().startswith("# Mine") and body.rstrip().endswith("words after")
    assert "edited inside" not in body and "**Complete**" in body
    assert again.count("---") == text.count("---") and body.count(BEGIN) == body.count(END) == 1


def test_a_readme_without_our_part_gets_it_in_front(folder):
    card = make(folder)
    _, body = split_front_matter(write(folder, card, "# An old page\n"))
    assert body.strip().startswith(BEGIN) and body.endswith("# An old page\n")


@pytest.mark.parametrize(
    "existing",
    [
        "---\na: [\n---\n\nwords",
        "---\n- a\n---\nwords",
        "---\ntags: one\nconfigs: x\ndataset_info: 3\n---\nwords",
        "---\nwords",
        "\ufeff---\nlicense: mit\n---\nwords",
    ],
)
def test_a_strange_readme_is_no_reason_to_fail(folder, existing):
    data, body = split_front_matter(write(folder, make(folder), existing))
    assert data["configs"] and "words" in body
    assert load(folder, split="train").num_rows == 12


def test_another_configuration_stays(folder):
    first = write(folder, make(folder))
    named = replace(JOB, config_name="small")
    data, _ = split_front_matter(write(folder, make(folder, named, skipped=0), first))
    assert [config["config_name"] for config in data["configs"]] == ["small", "default", "skipped"]
    assert [info["config_name"] for info in data["dataset_info"]] == ["small", "default"]
    assert load(folder, "small", split="train").num_rows == 15
    assert load(folder, split="train").num_rows == 12


HOSTILE = replace(
    JOB,
    text_template="{a} | `{b}`\n\n{c}",
    instruction="Instruct: `find` | <b>\nQuery: ",
    source="./a|b `c`.jsonl",
    source_config='x"y',
)


@pytest.mark.parametrize(
    "job", [JOB, HOSTILE, replace(JOB, fields=("think", "response")), replace(JOB, config_name="c")]
)
@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("skipped", [0, 2])
def test_the_markdown_is_clean(folder, job, is_complete, skipped):
    text = write(folder, make(folder, job, skipped=skipped), is_complete=is_complete)
    assert "\n\n\n" not in text
    assert text.endswith("\n") and not re.search(r"[ \t]+$", text, re.MULTILINE)
    assert "{{" not in text and "{%" not in text and "None" not in text
    for block in re.split(r"\n\n", text):
        table_rows = [re.sub(r"\\\|", "", line).count("|") for line in block.splitlines() if line.startswith("|")]
        assert len(set(table_rows)) <= 1
        assert not table_rows or len(table_rows) == len(block.splitlines()), "a table is a block of its own"


@pytest.mark.parametrize("job", [JOB, HOSTILE, replace(JOB, fields=("think", "response"))])
def test_the_job_in_the_card_is_the_job(folder, job):
    text = write(folder, make(folder, job))
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert job_from_dict(tomllib.loads(block)) == job


def test_local_sources_are_no_datasets_of_the_hub(folder):
    for source in ("./a.jsonl", "/x/a.jsonl", "data/*.parquet", "a/b/c.parquet", "demo:chat"):
        data = replace(make(folder), job=replace(JOB, source=source)).data(is_complete=False)
        assert "source_datasets" not in data, source


def test_front_matter_is_plain_yaml(folder):
    text = write(folder, make(folder))
    assert yaml.safe_load(text.split("---\n")[1])["pretty_name"] == "out"


def test_what_the_text_leaves_out():
    def left(**options) -> str:
        return left_out(replace(JOB, **options))

    assert left() == "turns before the last and system prompts"
    assert left(text_template="{prompt}", turns="all") == "the answer, the reasoning and system prompts"
    assert (
        left(fields=("think",), system=False)
        == "the user's prompt, the answer, turns before the last and system prompts"
    )
    assert left(text_template="{system}{history}{prompt}{response}{think}") == ""
    assert left(text_template="{title}: {abstract}") == "", "columns of a source without chats"


def test_a_growing_card_says_how_far_it_is_and_when_it_ends(folder):
    card = make(folder, units=20, done=5)
    ends = [{"finished": f"2026-11-21T10:0{n}:00+00:00"} for n in range(5)]
    receipts = [replace(r, counts={**r.counts, **end}) for r, end in zip(card.receipts, ends, strict=True)]
    text = replace(card, receipts=receipts).render("", name="user/x", is_complete=False)
    assert "at least 25 % of 20 chunks are here, 20 records" in text and "`█████░░░░░░░░░░░░░░░`" in text
    assert "the rest is there around 2026-11-21 10:19 UTC" in text, "a minute each, 15 are left after 10:04"
    assert "around" not in card.render("", name="user/x", is_complete=False), "of receipts without times"


def test_figures_by_source_and_length(folder):
    card = make(folder, skipped=0)
    one, two = {"a": [3, 20], "b": [2, 30]}, {"a": [5, 50]}
    tallies = [{"tokens": {"12": 4, "20": 1, "most": 33}}] * 2
    counts = [{"sources": s, "tallies": t} for s, t in zip([one, two], tallies, strict=True)]
    receipts = [replace(r, counts={**r.counts, **c}) for r, c in zip(card.receipts, counts, strict=False)]
    text = write(folder, replace(card, receipts=receipts))
    assert "| `a` | 8 | 70 |\n| `b` | 2 | 30 |" in text
    assert "| tokens of a record | 8 | 8 | 8 | 8 | 32 | 32 | 33 |" in text
    assert replace(card, receipts=receipts).assets().keys() == {"assets/tokens.svg"} and "](assets/tokens.svg)" in text
    part = [*receipts[:1], card.receipts[1]]
    assert not replace(card, receipts=part).assets(), "a part of the units would mislead"
    assert "| `a` |" not in replace(card, receipts=part).render("", name="user/x", is_complete=True)


def test_the_sources_licence_and_languages_are_carried_over(folder):
    origin = {"license": "odc-by", "language": ["en"]}
    data, body = split_front_matter(write(folder, replace(make(folder), origin=origin)))
    assert (data["license"], data["language"]) == ("odc-by", ["en"]) and "| licence of the source | odc-by |" in body
    data, _ = split_front_matter(write(folder, replace(make(folder), origin=origin), "---\nlicense: mit\n---\n"))
    assert data["license"] == "mit", "a person knows better"


def test_size_categories():
    assert [size_category(n) for n in (0, 999, 1000, 10**6, 10**9, 10**12)] == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "1M<n<10M",
        "1B<n<10B",
        "n>1T",
    ]


def test_code_in_a_table():
    assert code("a") == "`a`"
    assert code("a|`b`\n") == "`` a\\|`b`\\n ``"
