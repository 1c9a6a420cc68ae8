"""What a model gets to see of a row: python -m pytest tests/test_text.py."""

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.row import RowError
from builders.text import DEFAULT_TEMPLATE, PLAN_VIEWS, Span, Text, TextView, parse_template

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "<think>first</think>Yes."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "<think>second</think>No."},
]
ROW = {"messages": CHAT, "question": "Six times seven?", "answer": 42, "tags": ["a", "ü"], "note": None}


def render(data=ROW, **options):
    (text,) = TextView(**options).render(data)
    return text.text


def test_the_default_is_the_last_question_its_answer_and_its_reasoning():
    assert render() == "Two?\n\nNo.\n\nsecond"


def test_system_goes_in_front_unless_the_template_places_it():
    assert render(system=True) == "Be brief.\n\nTwo?\n\nNo.\n\nsecond"
    assert render(system=True, template="{user_prompt} ({system})") == "Two? (Be brief.)"


def test_history_is_every_turn_before_the_question_without_the_reasoning():
    assert render(template="{history}\n\nuser: {user_prompt}") == "user: One?\n\nassistant: Yes.\n\nuser: Two?"


def test_all_turns_are_joined_by_kind():
    text = render(template="{prompt} | {response} | {think} | {history}", turns="all")
    assert text == "One?\n\nTwo? | Yes.\n\nNo. | first\n\nsecond"


@pytest.mark.parametrize(
    ("roles", "expected"),  # each message says the letter of its place
    [
        ("ua", "a|b|"),
        ("uau", "a|b|"),  # a question that nobody answered is not the answer's
        ("uuau", "b|c|user: a"),
        ("uaua", "c|d|user: a\n\nassistant: b"),
        ("uata", "a|d|"),  # the call of a tool and its result belong to the way from a to d
        ("u", "a||"),
        ("uu", "b||user: a"),
        ("a", "|a|"),
        ("aa", "|b|assistant: a"),
        ("su", "b||"),
        ("usa", "a|c|"),
    ],
)
def test_last_turns(roles, expected):
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    chat = [{"role": names[role], "content": "abcd"[i]} for i, role in enumerate(roles)]
    fields = ("prompt", "response", "history")
    texts = TextView(fields=fields).render({"messages": chat})
    assert "|".join(text.text for text in texts) == expected


def test_several_system_and_developer_turns_are_joined():
    chat = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert render({"messages": chat}, template="{system}: {prompt}") == "a\n\nb: c"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{question}\n\n{answer}", "Six times seven?\n\n42"),
        ("{tags}", '["a", "ü"]'),
        ("Q: {question}\nNote: {note}\nA: {answer}", "Q: Six times seven?\nA: 42"),  # no label without its value
        ("Note: {note}\nA: {answer}.", "A: 42."),
        ("{{{answer}}} {{}}", "{42} {}"),
        ("{answer}{answer}", "4242"),
        ("\n {question} {user_prompt} \n", "Six times seven? Two?"),
    ],
)
def test_columns_in_a_template(template, text):
    assert render(template=template) == text


def test_columns_may_bear_the_names_of_chat_parts_where_there_is_no_chat():
    view = TextView(template="{prompt}\n\n{response}")
    assert view.columns(["id", "response", "prompt"]) == ("prompt", "response")
    assert view.render({"prompt": "p", "response": "r"})[0].text == "p\n\nr"
    assert view.columns(["prompt", "messages"]) == ("messages",)


@pytest.mark.parametrize("messages_column", ["messages", None])
def test_a_source_without_messages_gives_its_text_column(messages_column):
    view = TextView(messages_column=messages_column)
    assert view.columns(["id", "text"]) == ("text",)
    assert view.render({"text": " words "}) == (Text("", "words", (Span("text", 0, 5),)),)


@pytest.mark.parametrize(
    ("options", "available", "said"),
    [
        ({}, ["id", "body"], r"neither the messages column 'messages' nor a column 'text'.*id, body.*--text-template"),
        ({"messages_column": None}, [], r"neither messages nor .* has no columns"),
        ({"template": "{question} {anwser}"}, ["question", "answer"], r"no column 'anwser'.*has question, answer"),
        ({"fields": ("think", "title")}, ["messages", "id"], r"no column 'title'.*messages, id"),
        ({"fields": ("think",)}, ["text"], r"no column 'think'"),
        ({"system": True}, ["text"], r"no column 'system'"),
    ],
)
def test_a_missing_column_is_named_together_with_those_there_are(options, available, said):
    with pytest.raises(ValueError, match=said):
        TextView(**options).columns(available)


def test_only_the_columns_needed_are_named_each_once():
    available = ["id", "messages", "title", "body"]
    assert TextView().columns(available) == ("messages",)
    assert TextView(template="{title} {prompt} {think} {title}").columns(available) == ("title", "messages")
    assert TextView(fields=("think", "body", "response")).columns(available) == ("messages", "body")
    assert TextView(messages_column="chat").columns(["chat"]) == ("chat",)


def test_fields_are_texts_of_their_own():
    think, response, note = TextView(fields=("think", "response", "note")).render(ROW)
    assert think == Text("think", "second", (Span("think", 0, 6),))
    assert response == Text("response", "No.", (Span("response", 0, 3),))
    assert note == Text("note", "", ())  # the caller stores a null vector


@pytest.mark.parametrize("options", [{"template": "{note} {missing}"}, {"fields": ("note", "missing")}])
def test_a_row_without_a_word_is_refused_or_replaced(options):
    with pytest.raises(RowError) as caught:
        TextView(**options).render(ROW)
    assert (caught.value.reason, caught.value.detail) == ("empty_text", "nothing to embed in note, missing")
    texts = TextView(**options, empty_text="[empty]").render(ROW)
    assert {(text.text, text.spans) for text in texts} == {("[empty]", ())}


@pytest.mark.parametrize("options", [{}, {"fields": ("think",)}, {"template": "{history}"}])
@pytest.mark.parametrize(
    ("row", "reason"), [({}, "missing"), ({"messages": None}, "missing"), ({"messages": []}, "empty")]
)
def test_broken_messages_are_no_empty_text(options, row, reason):
    with pytest.raises(RowError) as caught:
        TextView(**options, empty_text="[empty]").render(row)
    assert caught.value.reason == f"messages_{reason}"


def test_messages_are_not_read_where_no_part_of_them_is_named():
    assert render({"messages": "broken", "answer": 1}, template="{answer}") == "1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"turns": "first"}, "turns is 'first'; possible: last, all"),
        ({"fields": "think"}, "fields is 'think'; possible: a tuple"),
        ({"fields": ("think", "")}, "possible: a tuple"),
        ({"fields": ("think", "think")}, "name it once"),
        ({"fields": ("think",), "template": "{think}"}, "and template '{think}'"),
        ({"fields": ("think",), "system": True}, "and system=True"),
        ({"empty_text": "  "}, "empty_text is '  '"),
        *(
            ({"template": template}, "template ")
            for template in [
                "",
                "words",
                "{}",
                "{ }",
                "{a.b}",
                "{a[0]}",
                "{a!r}",
                "{a:>9}",
                "{a:{b}}",
                "{a",
                "a}",
                "{{a}}",
            ]
        ),
    ],
)
def test_a_wrong_view_says_which_value_is_wrong(options, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        TextView(**options)


def test_lone_surrogates_of_a_column_are_replaced():
    assert render({"t": ["\ud800"], "u": "\udfff"}, template="{t}{u}") == '["\ufffd"]\ufffd'


@pytest.mark.parametrize("name", ["prompt", "response", "think", "all"])
def test_the_views_of_a_plan_render(name):
    view = TextView(template=PLAN_VIEWS[name])
    assert view.columns(["messages"]) == ("messages",)
    assert view.render(ROW)[0].text in render()
    assert parse_template(DEFAULT_TEMPLATE).names == ("user_prompt", "response_text", "think_text")


def test_a_view_travels_to_other_processes():
    view = TextView(fields=("think",))
    assert pickle.loads(pickle.dumps(view)) == view
    assert hash(view) == hash(TextView(fields=("think",)))


WORDS = st.text(st.sampled_from(" \n\tabü\u3000{}😀"), max_size=6)


@given(st.lists(st.tuples(WORDS, st.sampled_from("xyz")), min_size=1, max_size=5), WORDS, WORDS, WORDS, WORDS)
def test_every_span_is_its_value(pieces, tail, x, y, z):
    data = {"x": x, "y": y, "z": z}
    pieces, tail = [(literal.replace("{", "").replace("}", ""), name) for literal, name in pieces], tail.strip("{}")
    template = "".join(f"{literal}{{{name}}}" for literal, name in pieces)
    view = TextView(template=template + tail.replace("{", "{{").replace("}", "}}"), empty_text="-")
    (text,) = view.render(data)
    filled = [(literal, name) for literal, name in pieces if data[name].strip()]
    assert [span.name for span in text.spans] == [name for _, name in filled]
    if not filled:
        assert text == Text("", "-")
        return
    assert text.text == "".join([*(literal + data[name] for literal, name in filled), tail]).strip()
    for i, span in enumerate(text.spans):
        value = data[span.name]
        value = value.lstrip() if span.start == 0 else value
        value = value.rstrip() if span.stop == len(text.text) else value
        assert text.text[span.start : span.stop] == value
        assert i == 0 or text.spans[i - 1].stop <= span.start


@given(st.text(), st.text(), st.text())
def test_any_conversation_renders_or_says_why_not(question, think, answer):
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": f"<think>{think}</think>{answer}"}]
    try:
        (text,) = TextView().render({"messages": json.dumps(chat)})
    except RowError as error:
        assert error.reason == "empty_text"
        assert not re.sub("</?think>", "", question + think + answer).strip()
    else:
        assert text.text == text.text.strip() != ""
        assert text.text.encode()
