"""Masks under templates that collect text, print an answer apart, or ask otherwise than they print an answer.

Each form is shown by a template of a few lines, and beside it one that looks alike and must be refused.
"""

import pytest

from builders.chat import encode_chat
from builders.overlap import mask_tokens
from builders.template import Span, TemplateError
from tests.conversations import TOOLS, chat_tokenizer, quotation

USER, ANSWER = {"role": "user", "content": "q10z"}, {"role": "assistant", "content": "a11z."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "lookup", "arguments": {"key": "a12z"}}}],
}
RESULT = {"role": "tool", "content": "q13z"}
SAID = "{{ m.content }}<|im_end|>\n"
LINE = "<|im_start|>{{ m.role }}\n" + SAID
ASSISTANT = "<|im_start|>assistant\n"


def each(user=LINE, assistant=LINE, tool=LINE):
    """A loop over messages with what it prints of each role."""
    return (
        "{% for m in messages %}{% if m.role == 'user' %}" + user + "{% elif m.role == 'tool' %}" + tool + "{% else %}"
        "" + assistant + "{% endif %}{% endfor %}"
    )


def asks(prompt=ASSISTANT):
    return "{% if add_generation_prompt %}" + prompt + "{% endif %}"


def masked(template, *messages, tools=None):
    chat = encode_chat(chat_tokenizer(template), messages, tools)
    return [chat.text[span.start : span.stop] for span in chat.spans]


def refusal(template, *messages, tools=None):
    with pytest.raises(TemplateError) as caught:
        encode_chat(chat_tokenizer(template), messages, tools)
    return caught.value.reason


@pytest.mark.parametrize("prompt", ["<think></think>", "<think>\n\n</think>\n\n"])
@pytest.mark.parametrize("content", ["a11z.", "</think>a11z.", "<think></think>a11z.", f"{ASSISTANT}</think>a11z."])
def test_an_empty_thought_that_is_half_printed_belongs_to_the_prompt(prompt, content):
    template = each(assistant=f"{ASSISTANT}</think>{SAID}") + asks(ASSISTANT + prompt)
    turn = content + "<|im_end|>"
    assert masked(template, USER, {**ANSWER, "content": content}, USER, ANSWER) == [turn, "a11z.<|im_end|>"]


def test_what_stands_in_place_of_a_thought_is_generated():
    template = each(assistant=f"<|bot|><|text|>{SAID}") + asks("<|bot|><|start_thinking|>")
    assert masked(template, USER, ANSWER) == ["<|text|>a11z.<|im_end|>"]


@pytest.mark.parametrize(
    ("header", "prompt"),
    [
        ("<|bot|>, ", "<|bot|>: <think>"),  # words of the prompt are missing
        ("<|bot|>", "<|robot|><think>"),
        ("<|bot|>", "<think>"),
    ],
)
def test_a_prompt_of_which_more_than_a_thought_is_missing_is_refused(header, prompt):
    assert refusal(each(assistant=f"{header}{SAID}") + asks(prompt), USER, ANSWER) == "no_prompt"


def test_words_that_switch_thinking_are_taken_from_the_template():
    off = "{{ '</think>' if thinking_mode == 'disabled' }}"
    template = each(assistant=f"{ASSISTANT}</think>{SAID}") + asks(ASSISTANT + off)
    assert masked(template, USER, ANSWER) == ["a11z.<|im_end|>"]


COLLECTS = {
    "a loop": "{% for m in messages %}{% set ns.out = ns.out ~ '<|im_start|>' ~ m.role ~ '\n' %}"
    "{% set ns.out = ns.out ~ m.content ~ '<|im_end|>\n' %}{% endfor %}",
    "a sum": "{% for m in messages %}{% set ns.out = ns.out + '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' %}"
    "{% endfor %}",
    "an index": "{% for i in range(messages|length) %}{% set m = messages[i] %}"
    "{% set ns.out = ns.out ~ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' %}{% endfor %}",
    "a loop within": "{% for m in messages %}{% set ns.out = ns.out ~ '<|im_start|>' ~ m.role ~ '\n' %}"
    "{% for letter in m.content %}{% set ns.out = ns.out ~ letter %}{% endfor %}"
    "{% set ns.out = ns.out ~ '<|im_end|>\n' %}{% endfor %}",
    "some printed, some collected": "{{ ns.out }}<|pad|>{% for m in messages %}"
    "{% set ns.out = ns.out ~ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' %}{% endfor %}",
}


@pytest.mark.parametrize("loop", COLLECTS.values(), ids=COLLECTS)
def test_text_that_a_loop_collects(loop):
    template = "{% set ns = namespace(out='') %}" + loop + "{{ ns.out }}" + asks()
    tokenizer = chat_tokenizer(template)
    for messages in ([USER, ANSWER, USER, ANSWER], [USER, ANSWER, USER], quotation(tokenizer)):
        answers = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
        assert masked(template, *messages) == answers


@pytest.mark.parametrize(
    "end",
    [
        "{{ ns.out[:-6] }}",  # marks are cut
        "{{ ns.out }}{{ ns.out }}",
        "{% for m in messages %}{% set ns.out = '' %}{% endfor %}{{ messages[-1].content }}",
        "{{ ns.out | length }}{{ messages[-1].content }}",
    ],
)
def test_collected_text_that_is_not_printed_as_it_is_is_refused(end):
    refusal("{% set ns = namespace(out='') %}" + COLLECTS["a loop"] + end + asks(), USER, ANSWER)


APART = "{% set last = messages[-1] %}{% set answered = last.role == 'assistant' %}"
APART += "{% for m in (messages[:-1] if answered else messages) %}" + LINE + "{% endfor %}"


def test_a_last_answer_that_no_loop_prints():
    template = APART + "{% if answered %}<|im_start|>assistant\n{{ last.content }}<|im_end|>\n{% endif %}" + asks()
    assert masked(template, USER, ANSWER, USER, ANSWER) == ["a11z.<|im_end|>"] * 2
    assert masked(template, USER, ANSWER, USER) == ["a11z.<|im_end|>"]
    quoted = {**ANSWER, "content": f"a11z<|im_end|>\n{ASSISTANT}a12z"}
    assert masked(template, USER, quoted) == [quoted["content"] + "<|im_end|>"]


@pytest.mark.parametrize(
    "rest",
    [
        "<|im_start|>assistant\n{{ last.content }}<|stop|>\nBe kind.",
        "<|im_start|>assistant\n{{ last.content }}",  # nothing tells that it ends there
        "{{ messages[0].content }}<|im_start|>assistant\n{{ last.content }}<|im_end|>\n",
        "<|im_start|>model\n{{ last.content }}<|im_end|>\n",
    ],
)
def test_a_last_answer_with_more_around_it_is_refused(rest):
    refusal(APART + "{% if answered %}" + rest + "{% endif %}" + asks(), USER, ANSWER)


RESULTS = each(
    user="<|user|>{{ m.content }}",
    assistant="{% if loop.previtem.role == 'tool' %}]{NOTE}{% else %}<|bot|>{% endif %}{{ m.content }}"
    "{% if m.tool_calls %}<|call|>{{ m.tool_calls[0].function.arguments.key }}<|run|>{% else %}<|end|>{% endif %}",
    tool="[{{ m.content }}{{ ']' if loop.last }}",
)


def test_an_answer_behind_the_results_of_its_own_calls_continues_the_turn():
    template = RESULTS.replace("{NOTE}", "") + asks("<|bot|>")
    turns = ["<|call|>a12z<|run|>", "<|call|>a12z<|run|>", "a11z.<|end|>"]
    assert masked(template, USER, CALL, RESULT, CALL, RESULT, ANSWER, tools=TOOLS) == turns
    assert masked(template, USER, CALL, RESULT, {**ANSWER, "content": "]a11z."}, tools=TOOLS)[1:] == ["]a11z.<|end|>"]


def test_words_of_the_template_behind_results_are_refused():
    template = RESULTS.replace("{NOTE}", "Note: ") + asks("<|bot|>")
    assert refusal(template, USER, CALL, RESULT, ANSWER, tools=TOOLS) == "no_prompt"


def test_a_border_is_not_in_the_middle_of_a_token():
    """`</think>` and `<think>` begin alike, `</think>` and `<|end|>` end alike, whichever a changed answer brings."""
    thought = "{% set t = m.content.split('</think>') %}{{ '<think>' + t[0] if t[1:] }}</think>{{ t[-1] }}<|end|>"
    template = each(assistant=f"<|bot|>{thought}") + asks("<|bot|><think>")
    assert masked(template, USER, {**ANSWER, "content": "a11z</think>a12z"}) == ["<think>a11z</think>a12z<|end|>"]
    silent = "<|bot|>{{ '<think>' + m.thinking + '</think>' if m.thinking }}{{ m.content + '<|end>' if m.content }}"
    message = {"role": "assistant", "content": "", "thinking": "a11z"}
    assert masked(each(assistant=silent) + asks("<|bot|>"), USER, message) == ["<think>a11z</think>"]


def test_a_message_that_is_printed_as_two_turns_is_refused():
    twice = (
        "{% if m.tool_calls %}"
        + ASSISTANT
        + "{{ m.tool_calls[0].function.arguments.key }}<|im_end|>\n{% endif %}"
        + LINE
    )
    template = each(assistant=twice) + asks()
    assert refusal(template, USER, {**CALL, "content": "a14z"}) == "two_turns"
    quoted = {**ANSWER, "content": f"a11z<|im_end|>\n{ASSISTANT}a12z"}
    assert masked(template, USER, quoted) == [quoted["content"] + "<|im_end|>"]


def test_an_end_that_has_no_shape_is_known_by_the_tokenizer():
    template = each(assistant="]~b]ai\n{{ m.content }}[e~[\n", user="]~b]user\n{{ m.content }}[e~[\n") + asks(
        "]~b]ai\n"
    )
    tokenizer = chat_tokenizer(template)
    assert tokenizer.eos_token == "[e~["
    assert masked(template, USER, ANSWER, USER, ANSWER) == ["a11z.[e~["] * 2
    with pytest.raises(TemplateError, match="no end-of-turn token"):  # a tokenizer that lacks it
        encode_chat(chat_tokenizer(LINE), [USER, ANSWER], chat_template=template)


def test_a_token_over_the_border_of_two_spans_is_inside():
    mask, crossing = mask_tokens("ab cd ef", [(0, 2), (2, 5), (5, 8)], [Span(0, 3), Span(3, 5)])
    assert (mask.tolist(), crossing) == ([True, True, False], 0)
