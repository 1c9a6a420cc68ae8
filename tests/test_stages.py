"""From the rows of a unit to its batches: python -m pytest tests/test_stages.py."""

import pytest
from transformers import AutoTokenizer

from builders.job import Job
from builders.row import Row, RowError
from builders.units import Unit
from extract.batching import TokenBudget
from extract.engines.fake import FakeEngine
from extract.stages import TOKENIZE_ROWS, batches, samples, texts
from extract.tokens import TextTokenizer
from extract.vectors import VectorWork

JOB = Job(text_template="{text}", source_column="origin", max_length=32)


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return TextTokenizer(AutoTokenizer.from_pretrained(minilm), 32)


def rows_of(*texts):
    return [Row(100 + i, {"text": text, "id": f"r{i}", "origin": "x"}) for i, text in enumerate(texts)]


def sent(rows, tokenizer, job=JOB, work=None):
    """The work of one unit, and the batches that it sends to an engine."""
    work = work or VectorWork(Unit(0, 100, 100 + len(rows)), job)
    return work, list(batches(samples(texts(rows, job.view, work), tokenizer, work), TokenBudget(64), work))


def run(rows, tokenizer, job=JOB):
    work, ready = sent(rows, tokenizer, job)
    for batch, vectors, padded in FakeEngine(4).run(ready, TokenBudget(64)):
        work.put(batch.samples, vectors, padded)
    work.finish()
    return work


def test_a_unit_ends_with_an_empty_batch(tokenizer):
    _, ready = sent(rows_of("one", "two", "three"), tokenizer)
    assert [batch.is_last for batch in ready] == [False] * (len(ready) - 1) + [True]
    assert ready[-1].samples == []
    assert sorted(s.position for batch in ready for s in batch.samples) == [0, 1, 2]


def test_a_unit_without_a_text_still_ends(tokenizer):
    work, ready = sent(rows_of("", None), tokenizer)
    assert [batch.is_last for batch in ready] == [True]
    assert len(work.skipped) == 2


def test_every_row_gives_a_record_or_a_line_of_why_not(tokenizer):
    broken = Row(103, error=RowError("invalid_json", "line \udcff"))
    rows = [*rows_of("one", "", "\u200b"), broken, *[Row(104 + i, {"text": f"text {i}"}) for i in range(600)]]
    work = run(rows, tokenizer)
    assert work.counts()["rows"] == len(rows) == len(work.rows) + len(work.skipped)
    assert sorted(index for index, _, _ in work.rows.values()) == [100, *range(104, 704)]
    assert work.skipped_table().to_pylist() == [
        {"index": 101, "reason": "empty_text", "detail": "nothing to embed in text"},
        {"index": 102, "reason": "empty_text", "detail": "the tokenizer finds no token in the text"},
        {"index": 103, "reason": "invalid_json", "detail": "line \ufffd"},
    ]


def test_a_row_keeps_its_position_whatever_is_skipped_before_it(tokenizer):
    work = run(rows_of("", "one", "", "two"), tokenizer)
    assert work.rows == {1: (101, "r1", "x"), 3: (103, "r3", "x")}
    assert work.is_done.tolist() == [[False, True, False, True]]


def test_several_fields_give_a_sample_each_and_an_empty_one_none(tokenizer):
    job = Job(fields=("question", "answer"), max_length=32)
    rows = [Row(0, {"question": "why?", "answer": "so"}), Row(1, {"question": "why?", "answer": None})]
    _, ready = sent(rows, tokenizer, job)
    assert sorted((s.position, s.field) for batch in ready for s in batch.samples) == [(0, 0), (0, 1), (1, 0)]


def test_what_an_earlier_run_left_is_not_tokenised_again(tokenizer):
    rows = rows_of("one", "two", "three")
    before = run(rows, tokenizer)
    work = VectorWork(before.unit, JOB)
    work.is_done[0, 1] = True
    _, ready = sent(rows, tokenizer, work=work)
    assert sorted(s.position for batch in ready for s in batch.samples) == [0, 2]
    assert len(work.rows) == 3


def test_rows_are_tokenised_in_parts(tokenizer):
    read = 0

    def rows():
        nonlocal read
        for row in rows_of(*["word"] * 1000):
            read += 1
            yield row

    work = VectorWork(Unit(0, 0, 1000), JOB)
    next(samples(texts(rows(), JOB.view, work), tokenizer, work))
    assert read == TOKENIZE_ROWS
