"""Local sources: python -m pytest tests/test_source.py."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.files import MAX_OPEN, SourceError
from builders.job import Job
from builders.options import ConfigError
from builders.source import is_local, open_source


def open_path(path, cache):
    return open_source(Job(source=str(path)), cache)


def write_parquet(path, start, stop, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(
        pa.table({"n": range(start, stop), "text": [f"row {i}" for i in range(start, stop)]}), path, **options
    )


@pytest.fixture
def folder(tmp_path):
    """25 rows in three Parquet files, and five more as JSON Lines."""
    write_parquet(tmp_path / "data" / "a.parquet", 0, 10, row_group_size=4)
    write_parquet(tmp_path / "data" / "b.parquet", 10, 11)
    write_parquet(tmp_path / "data" / "c" / "c.parquet", 11, 25, row_group_size=3)
    lines = [json.dumps({"n": i, "text": f"row {i}"}) + "\n" for i in range(25, 30)]
    (tmp_path / "data" / "d.jsonl").write_text("".join(lines))
    (tmp_path / "data" / "README.md").write_text("not a row")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/name", False),
        ("name", False),
        ("./name", True),
        ("/name", True),
        ("~/name", True),
        ("a/b/c.parquet", True),
        ("data/*.parquet", True),
    ],
)
def test_a_path_is_told_from_a_hub_id(name, expected):
    assert is_local(name) is expected


def test_a_folder_is_its_files_in_order(folder, cache):
    source = open_path(folder, cache)
    assert source.num_rows == 30
    assert source.columns == ("n", "text")
    rows = list(source.read(np.arange(30), ["n"]))
    assert [(row.index, row.data) for row in rows] == [(i, {"n": i}) for i in range(30)]


def test_of_thousands_of_files_some_are_open(tmp_path, cache):
    for number in range(40):
        write_parquet(tmp_path / "data" / f"{number:04}.parquet", number, number + 1)
    source = open_path(tmp_path / "data", cache)
    for _ in range(2):
        assert [row.data["n"] for row in source.read(np.arange(40), ["n"])] == list(range(40))
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert 0 < sum(path.startswith(str(tmp_path)) for path in opened) <= MAX_OPEN


def test_rows_are_read_across_files(folder, cache):
    rows = open_path(folder, cache).read(np.array([0, 9, 10, 11, 24, 25, 29]), ["n", "no such column"])
    assert [row.data["n"] for row in rows] == [0, 9, 10, 11, 24, 25, 29]


@pytest.mark.parametrize(
    ("pattern", "rows"), [("*.parquet", 11), ("**/*.parquet", 25), ("?.jsonl", 5), ("a.parquet", 10)]
)
def test_a_glob_takes_what_it_matches(folder, cache, pattern, rows):
    assert open_path(folder / pattern, cache).num_rows == rows


def test_brackets_in_a_name_are_letters_where_the_name_exists(tmp_path, cache):
    write_parquet(tmp_path / "run[1]" / "x[2].parquet", 0, 3)
    assert open_path(tmp_path / "run[1]", cache).num_rows == 3
    assert open_path(tmp_path / "run[1]" / "x[2].parquet", cache).num_rows == 3


def test_the_revision_is_the_content(folder, cache):
    before = open_path(folder, cache).revision
    assert before.startswith("sha256:")
    assert open_path(folder, cache).revision == before
    with (folder / "d.jsonl").open("a") as file:
        file.write('{"n": 30}\n')
    after = open_path(folder, cache).revision
    write_parquet(folder / "a.parquet", 0, 10, row_group_size=5)
    assert len({before, after, open_path(folder, cache).revision}) == 3


def test_the_place_of_a_folder_is_not_in_its_revision(folder, tmp_path, cache):
    before = open_path(folder, cache).revision
    assert open_path(folder.rename(tmp_path / "moved"), cache).revision == before


def test_an_empty_first_file_does_not_hide_the_columns_of_the_others(tmp_path, cache):
    (tmp_path / "a.jsonl").write_text("\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    source = open_path(tmp_path, cache)
    assert (source.num_rows, source.columns) == (1, ("text",))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.parquet", "none.parquet: no such .parquet or .jsonl file"),
        ("*.parquet", "no such .parquet or .jsonl file"),
        ("", "no such .parquet or .jsonl file"),
        ("table.csv", "local files are read as .parquet or .jsonl, not '.csv'"),
        ("table.jsonl.gz", "local files are read as .parquet or .jsonl, not '.gz'"),
    ],
)
def test_what_is_not_there_or_of_another_format_is_refused(tmp_path, cache, name, message):
    for table in ("table.csv", "table.jsonl.gz"):
        (tmp_path / table).write_text("a,b\n")
    with pytest.raises(ConfigError, match=message.replace("*", "\\*")):
        open_path(f"{tmp_path}/{name}", cache)


def test_a_file_that_is_no_parquet_is_a_failure_of_the_source(tmp_path, cache):
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(SourceError, match="not a readable Parquet file"):
        open_path(tmp_path / "x.parquet", cache)


def test_no_source_at_all():
    with pytest.raises(ConfigError, match="--source is missing"):
        open_source(Job(), None)


def test_a_hub_that_cannot_be_reached_is_a_failure_in_one_line(cache, monkeypatch):
    # the HTTP library's own error is neither OSError nor RuntimeError, and would be a traceback
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="--source user/name: the Hub cannot be reached"):
        open_path("user/name", cache)


def test_the_demo_chats_are_made_once(cache):
    source = open_path("demo:chat", cache)
    written = (cache / "demo" / "chat.parquet").stat().st_mtime_ns
    assert source.columns == ("id", "messages", "dataset_source")
    assert open_path("demo:chat", cache).revision == source.revision
    assert (cache / "demo" / "chat.parquet").stat().st_mtime_ns == written


def test_the_demo_without_its_package_says_what_to_install(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r'demo:chat: .* pip install "stillroom\[demo\]"'):
        open_path("demo:chat", cache)
