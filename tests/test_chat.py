"""Conversations of every make: python -m pytest tests/test_chat.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.chat import Turn, clean_text, parse_messages
from builders.row import RowError

ASKED, ANSWERED = Turn("user", "Why?", ""), Turn("assistant", "So.", "hm")
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>hm</think>So."}]
SHAREGPT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "<think>hm</think>So."}]
MIXED = [  # one Parquet struct that holds both kinds: the other kind's keys are there, and null
    {"role": None, "content": None, "from": "human", "value": "Why?"},
    {"role": "assistant", "content": "<think>hm</think>So.", "from": None, "value": None},
]


@pytest.mark.parametrize("value", [CHAT, SHAREGPT, MIXED, tuple(CHAT), json.dumps(CHAT), json.dumps(SHAREGPT)])
def test_every_shape_gives_the_same_turns(value):
    assert parse_messages(value) == [ASKED, ANSWERED]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ("  kept as it is\n", "  kept as it is\n"),
        (7, "7"),
        (0, "0"),
        (1.5, "1.5"),
        (True, "True"),
        ([], ""),
        ({"type": "text", "text": "one part"}, "one part"),
        ({"type": "image", "text": "caption"}, ""),
        ([{"type": "text", "text": "a"}, {"type": "image", "url": "u"}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"text": "no type"}, "bare", None, 3, [], {"type": "text", "text": None}], "no type\nbare"),
        ("half a pair \ud83d", "half a pair \ufffd"),
        ([{"type": "text", "text": "\udfff"}], "\ufffd"),
        ("a\0b", "a\0b"),
        ("<think>users may say so</think>", "<think>users may say so</think>"),
    ],
)
def test_content(content, text):
    assert parse_messages([{"role": "user", "content": content}]) == [Turn("user", text, "")]


@pytest.mark.parametrize(
    ("message", "think"),
    [
        ({"content": "So."}, ""),
        ({"content": "So.", "reasoning_content": " hm "}, "hm"),
        ({"content": "<think>more</think>So.", "thinking": "hm"}, "hm\n\nmore"),
        ({"content": "<think>hm</think>So.", "reasoning": "hm", "reasoning_content": "hm"}, "hm"),  # said three times
        ({"content": "So.", "reasoning": "<think>hm</think>"}, "hm"),
        ({"content": "So.", "reasoning": [{"type": "text", "text": "hm"}], "thinking": None}, "hm"),
    ],
)
def test_reasoning_of_an_assistant_turn(message, think):
    assert parse_messages([{"role": "assistant", **message}]) == [Turn("assistant", "So.", think)]


def test_reasoning_of_anyone_else_is_no_trace():
    assert parse_messages([{"role": "user", "content": "Why?", "thinking": "x"}]) == [ASKED]


def test_an_assistant_turn_may_hold_no_content_key_if_it_holds_a_call_or_a_trace():
    turns = parse_messages([{"role": "assistant", "tool_calls": []}, {"role": "assistant", "thinking": "cut"}])
    assert turns == [Turn("assistant", "", ""), Turn("assistant", "", "cut")]


@pytest.mark.parametrize("role", ["tool", "developer", "ipython", "Assistant", ""])
def test_unknown_roles_are_kept(role):
    assert parse_messages([{"role": role, "content": "x"}]) == [Turn(role, "x", "")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "messages_missing"),
        ("null", "messages_missing"),
        ("", "messages_not_a_list"),
        ("plain words", "messages_not_a_list"),
        ("[" * 100_000, "messages_not_a_list"),  # deeper than the JSON reader recurses
        ('{"role": "user", "content": "x"}', "messages_not_a_list"),
        ("3", "messages_not_a_list"),
        (3, "messages_not_a_list"),
        ({"role": ["user"], "content": ["x"]}, "messages_not_a_list"),
        (b"[]", "messages_not_a_list"),
        ([], "messages_empty"),
        ("[]", "messages_empty"),
        ([None], "message_malformed"),
        (["user: hi"], "message_malformed"),
        ([[]], "message_malformed"),
        ([{}], "message_malformed"),
        ([{"role": "user"}], "message_malformed"),
        ([{"content": "x"}], "message_malformed"),
        ([{"role": None, "content": "x"}], "message_malformed"),
        ([*CHAT, {"author": "me", "text": "\ud800" * 9999}], "message_malformed"),
    ],
)
def test_hostile_values_are_refused_with_a_short_reason(value, reason):
    with pytest.raises(RowError) as caught:
        parse_messages(value)
    assert caught.value.reason == reason
    assert 0 < len(caught.value.detail) < 160
    assert "\n" not in caught.value.detail
    caught.value.detail.encode()  # it goes into a Parquet table


def test_the_detail_names_the_message():
    with pytest.raises(RowError, match=r"message 2 lacks a role or a content: \{'text': 'hi'\}"):
        parse_messages([*CHAT, {"text": "hi"}])


def test_lone_surrogates_go_and_pairs_become_their_character():
    assert clean_text("\ud800a\udc00\ud83d\ude00\ud83d") == "\ufffda\ufffd\U0001f600\ufffd"
    assert clean_text("\ufeffbom \ud800") == "\ufeffbom \ufffd"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type", "thinking"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON | st.lists(JSON, max_size=3))
def test_anything_gives_turns_or_a_row_error(value):
    try:
        turns = parse_messages(value)
    except RowError:
        return
    for turn in turns:
        (turn.role + turn.content + turn.think).encode()
