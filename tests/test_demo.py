"""The demo chats: python -m pytest tests/test_demo.py."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builders.chat import parse_messages
from builders.demo import ROW_GROUP_ROWS, SCHEMA, SOURCES, write_demo
from builders.text import TextView

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "new" / "demo.parquet")


@pytest.fixture(scope="module")
def rows(demo):
    return pq.read_table(demo).to_pylist()


def python(*args, **env):
    return subprocess.run(
        [sys.executable, *args], cwd=CHECKOUT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )


def test_it_is_parquet_with_groups_of_200_rows(demo):
    file = pq.ParquetFile(demo)
    assert file.schema_arrow.equals(SCHEMA)
    assert {file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)} == {ROW_GROUP_ROWS} == {200}
    assert os.listdir(demo.parent) == ["demo.parquet"]  # the temporary file is gone


def test_sources_take_turns(rows):
    assert len(rows) == 2400
    assert len({row["id"] for row in rows}) == 2400
    assert [row["dataset_source"] for row in rows[:32]] == [*SOURCES, *SOURCES]
    assert set(Counter(row["dataset_source"] for row in rows).values()) == {150}


def test_it_is_as_ragged_as_chat_data(rows):
    chats = [parse_messages(row["messages"]) for row in rows]
    answers = [turn for chat in chats for turn in chat if turn.role == "assistant"]
    words = sorted(len(turn.think.split()) for turn in answers if turn.think)
    assert 0.45 < sum(chat[0].role == "system" for chat in chats) / len(chats) < 0.55
    assert len({chat[0].content for chat in chats if chat[0].role == "system"}) >= 3
    assert 0.4 < len(words) / len(answers) < 0.6
    assert words[0] < 30
    assert words[-1] > 500
    assert 0.1 < sum(len(chat) > 3 for chat in chats) / len(chats) < 0.3
    assert all(turn.content.strip() for chat in chats for turn in chat)
    assert not any(turn.content == "None" for turn in answers)


def test_every_row_can_be_embedded(rows):
    assert all(TextView(system=True).render(row)[0].spans for row in rows)


def test_the_same_seed_gives_the_same_file_in_any_process(tmp_path):
    path = write_demo(tmp_path / "here.parquet", num_rows=100, seed=7)
    other = tmp_path / "there.parquet"
    # set and dict order of strings differ between processes; none of it may reach the data
    done = python("-m", "builders.demo", str(other), "--num-rows", "100", "--seed", "7", PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    assert "100 rows from 16 sources" in done.stderr
    assert path.read_bytes() == other.read_bytes()


def test_another_seed_gives_other_chats(tmp_path, rows):
    table = pq.read_table(write_demo(tmp_path / "demo.parquet", num_rows=160, seed=1))
    known = {str(row["messages"]) for row in rows}
    # the smallest families (weekday questions, short sums) may draw an item twice: about 5 of 2,400 chats do
    assert sum(str(row["messages"]) in known for row in table.to_pylist()) <= 8


def test_a_wrong_number_of_rows_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="num_rows is 0"):
        write_demo(tmp_path / "demo.parquet", num_rows=0)
    assert not any(tmp_path.iterdir())


def test_without_reasoning_gym_one_line_says_what_to_install(tmp_path):
    start = "import sys; sys.modules['reasoning_gym'] = None; from builders.demo import main; main()"
    done = python("-c", start, str(tmp_path / "demo.parquet"))
    assert done.returncode == 1
    assert done.stderr == 'Error: the demo data needs reasoning-gym: pip install "stillroom[demo]"\n'
    assert not any(tmp_path.iterdir())
