"""Answers and their reasoning: python -m pytest tests/test_think.py."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.think import split_think


@pytest.mark.parametrize(
    ("text", "response", "think"),
    [
        ("<think>why</think>so", "so", "why"),
        ("Hm. <think>why</think> so", "Hm.\n\nso", "why"),  # the naive pattern drops what stands before
        ("<think>a</think>x<think>b</think>y", "x\n\ny", "a\n\nb"),
        ("<think>cut while thin", "", "cut while thin"),
        ("Sure. <think>cut", "Sure.", "cut"),
        ("why</think>so", "so", "why"),  # the chat template opened the block in the prompt
        ("a</think>b<think>c", "b", "a\n\nc"),
        ("<think></think>so", "so", ""),
        ("<think>\n\n</think>\n\nso", "so", ""),
        ("<think></think>", "", ""),
        ("<think>a<think>b</think>c</think>d", "d", "a\n\nb\n\nc"),
        ("<think>a<think>b</think>c<think>d</think>e</think>f", "f", "a\n\nb\n\nc\n\nd\n\ne"),
        ("<think><think>a</think>b", "b", "a"),  # the tag said twice, once by the template
        ("<think>a</think></think>b", "b", "a"),
        ("<think>a</think>b</think>c", "c", "a\n\nb"),
        ("  no tag\n", "no tag", ""),
        ("", "", ""),
        (
            "a < b, </ think>, <Think> and <thinking> are words",
            "a < b, </ think>, <Think> and <thinking> are words",
            "",
        ),
    ],
)
def test_split(text, response, think):
    assert split_think(text) == (response, think)


TAGS = ("<think>", "</think>")
BITS = st.lists(st.sampled_from([*TAGS, "word", "\n", "<", "think>", "</", "ünï"]), max_size=24)


@given(BITS)
def test_nothing_but_tags_and_outer_space_is_lost(bits):
    # every word has its number, so that one lost, doubled or moved shows
    numbered = [bit if bit in TAGS else f"{bit}{i} " for i, bit in enumerate(bits)]
    words = " ".join(bit for bit in numbered if bit not in TAGS).split()
    response, think = split_think("".join(numbered))
    assert sorted(response.split() + think.split()) == sorted(words)
    for part in (response.split(), think.split()):
        assert part == [word for word in words if word in part]
    assert not any(tag in response + think for tag in TAGS)


@given(st.text().filter(lambda text: not any(tag in text for tag in TAGS)))
def test_a_text_without_tags_is_its_own_response(text):
    assert split_think(text) == (text.strip(), "")


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " "]), max_size=12).map("".join))
def test_a_response_holds_no_more_reasoning(text):
    response, _ = split_think(text)
    assert split_think(response) == (response, "")


@pytest.mark.parametrize("unit", ["<think>", "</think>", "<think>x</think>y", "</think>x<think>"])
def test_time_is_linear(unit):
    text = (unit * 100_000)[:1_000_000]
    started = time.perf_counter()
    split_think(text)
    assert time.perf_counter() - started < 1.0
