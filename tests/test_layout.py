"""Where things stand in an output: python -m pytest tests/test_layout.py."""

from dataclasses import replace

import pytest

from builders.job import Job
from builders.layout import Layout

FIRST = Job(split="train", revision="a" * 40)
SECOND = replace(FIRST, revision="sha256:" + "1a2b3c4d" * 8, updated_from=FIRST.revision)
META = "_stillroom"
OLD = ["data/train/", "skipped/train/", f"{META}/ledger.jsonl", f"{META}/receipts/"]
NEW = [
    "data/train.1a2b3c4d/",
    "skipped/train.1a2b3c4d/",
    f"{META}/ledger.1a2b3c4d.jsonl",
    f"{META}/receipts.1a2b3c4d/",
]
FILES = [path if path.endswith("jsonl") else f"{path}0000/file" for path in [*OLD, *NEW]]
FOREIGN = [
    "README.md", f"{META}/job.json", "data/train.notes/x", "data/train.1a2b3c4d5/x", "data/test/x", "data/train.txt",
    "other/train/x", f"{META}/other/ledger.jsonl", f"{META}/other/receipts/x", f"{META}/ledger.1a2b3c4d.jsonl.txt",
]  # fmt: skip


def paths(layout):
    folders = [layout.of_split(layout.data), layout.of_split(layout.skipped), layout.receipts]
    return sorted([*(f"{folder}/" for folder in folders), layout.ledger])


def test_a_generation_is_named_after_its_revision():
    assert paths(Layout.of(FIRST)) == sorted(OLD)
    assert paths(Layout.of(SECOND)) == sorted(NEW)
    assert Layout.of(SECOND).glob("data") == "data/train.1a2b3c4d/**/*.parquet"


@pytest.mark.parametrize("job", [FIRST, SECOND])
def test_all_generations_share_their_job(job):
    assert (Layout.of(job).job, Layout.of(job).previous) == (f"{META}/job.json", f"{META}/previous.json")


@pytest.mark.parametrize(("job", "others"), [(FIRST, NEW), (SECOND, OLD)])
def test_the_end_of_an_update_takes_away_all_others_and_last_what_says_that_it_runs(job, others):
    files = [*FILES, *FOREIGN, f"{META}/previous.json"]
    *found, last = Layout.of(job).outdated(files)
    assert sorted(found) == sorted(others)
    assert last == f"{META}/previous.json"
    assert Layout.of(job).outdated([*FILES, *FOREIGN]) == [], "no update, nothing to take away"


def test_a_named_configuration_has_its_own():
    layout = Layout.of(replace(SECOND, config_name="other"))
    files = ["other/train/x", "other-skipped/train/x", f"{META}/other/ledger.jsonl", f"{META}/other/previous.json"]
    assert layout.outdated([*files, *FILES]) == [
        f"{META}/other/ledger.jsonl", "other-skipped/train/", "other/train/", f"{META}/other/previous.json",
    ]  # fmt: skip
