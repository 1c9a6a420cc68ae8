"""Masks of conversations under templates of many families: python -m pytest tests/test_masks.py.

What is right is judged without the method: each word occurs once in its conversation, so that the text itself tells
whose it is; and a table, written from the templates by hand, tells what stands before and at the end of a turn.
"""

import datetime
import json
import pickle
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.chat import ChatEncoder, EncodedChat, TemplateError, encode_chat
from builders.overlap import mask_tokens
from builders.template import Span
from tests.conversations import CONTROL, TOOLS, WORD, chat_tokenizer, conversations, quotation

FOLDER = Path(__file__).parent / "templates"
IM = ("<|im_start|>assistant\n",)
THINK = (*IM, "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n")
LLAMA = ("<|start_header_id|>assistant<|end_header_id|>\n\n",)
GEMMA4 = ("<|turn>model\n", "<tool_response|>", "<tool_response|><|channel>thought\n")
FAMILIES = {  # template: (what stands before a turn, what ends it; "" if the template prints no end there)
    "axolotl/alpaca": (("### Response:\n",), ("</s>",)),
    "axolotl/aya": (("<|CHATBOT_TOKEN|>",), ("<|END_OF_TURN_TOKEN|>",)),
    "axolotl/chatml": (IM, ("<|im_end|>",)),
    "axolotl/command_a_rag": (("<|CHATBOT_TOKEN|>",), ("<|END_OF_TURN_TOKEN|>",)),
    "axolotl/exaone4": (("[|assistant|]\n", "[|assistant|]\n<think>\n\n</think>\n\n"), ("[|endofturn|]",)),
    "axolotl/falcon_h1": (IM, ("<|im_end|>",)),
    "axolotl/jamba": (("<|assistant|>",), ("<|eom|>",)),
    "axolotl/llama4": (("<|header_start|>assistant<|header_end|>\n\n",), ("<|eot|>",)),
    "axolotl/llava": (("ASSISTANT: ",), ("",)),
    "axolotl/metharme": (("<|model|>",), ("</s>", "")),
    "axolotl/mistral_v1": (("[/INST]",), ("</s>",)),
    "axolotl/mistral_v3_tekken": (("[/INST]", "[/TOOL_RESULTS]", "<s>", "</s>"), ("</s>",)),
    "axolotl/mistral_v7_tekken": (("[/INST]", "[/SYSTEM_PROMPT]", "</s>"), ("</s>",)),
    "axolotl/phi_4": (("<|im_start|>assistant<|im_sep|>",), ("<|im_end|>",)),
    "trl/cohere": (("<|CHATBOT_TOKEN|>",), ("<|END_OF_TURN_TOKEN|>",)),
    "trl/cohere2": (("<|START_RESPONSE|>",), ("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",)),
    "trl/deepseek_r1_distill": (("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"), ("<｜end▁of▁sentence｜>",)),
    "trl/deepseekv3": (("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"), ("<｜end▁of▁sentence｜>",)),
    "trl/diffusion_gemma": ((*GEMMA4, "<|turn>model\n<|channel>thought\n"), ("<turn|>", "<|tool_response>", "")),
    "trl/gemma3": (("<start_of_turn>model\n",), ("<end_of_turn>",)),
    "trl/gemma4_v5": (GEMMA4, ("<turn|>", "<|tool_response>", "")),
    "trl/glm4moe": (
        ("<|assistant|>", "<|assistant|>\n<think></think>"),
        ("<|user|>", "<|observation|>", "</tool_call>", ""),
    ),
    "trl/gptoss": (("<|start|>assistant",), ("<|end|>", "<|return|>", "<|call|>")),
    "trl/idefics3": (("Assistant:",), ("<end_of_utterance>",)),
    "trl/lfm2": (IM, ("<|im_end|>",)),
    "trl/lfm2_2_5_v2": (IM, ("<|im_end|>\n",)),  # marked, and taken as it is
    "trl/llama3": (LLAMA, ("<|eot_id|>",)),
    "trl/llama3_1": (LLAMA, ("<|eot_id|>",)),
    "trl/llama3_2": (LLAMA, ("<|eot_id|>",)),
    "trl/llava_next": (("[/INST]",), ("</s>",)),
    "trl/muse_glimmer": (("<|start|>assistant",), ("<|eot|>",)),
    "trl/nemotron_3_nano": ((*IM, IM[0] + "<think>\n", IM[0] + "<think></think>"), ("<|im_end|>",)),
    "trl/phi3": (("<|assistant|>\n",), ("<|end|>",)),
    "trl/phi3_5": (("<|assistant|>\n",), ("<|end|>",)),
    "trl/qwen2_5": (IM, ("<|im_end|>",)),
    "trl/qwen2_5_vl": (IM, ("<|im_end|>",)),
    "trl/qwen3": (THINK, ("<|im_end|>",)),
    "trl/qwen3_6": (THINK, ("<|im_end|>",)),
    "trl/qwen3_instruct_2507": (IM, ("<|im_end|>",)),
    "trl/qwen3_vl": (IM, ("<|im_end|>",)),
}
RIGHTLY_REFUSED = {"template_refuses", "not_printed", "parts_as_code"}
MARKED = sorted(path.stem for path in (FOLDER / "trl").glob("*_training.jinja"))


def source(name):
    return (FOLDER / f"{name}.jinja").read_text()


def cases():
    """All conversations; those with calls of tools twice, as templates want dicts or JSON for the arguments."""
    yield from conversations(dict)
    yield from (case for case in conversations(str) if any(message.get("tool_calls") for message in case[1]))


def quotations(tokenizer):
    """The conversation that quotes the template, where it renders a plain chat."""
    try:
        yield "quotation", quotation(tokenizer), None
    except Exception:  # a template is foreign code
        return


def characters(tokenizer, chat):
    """What the mask says of each character."""
    offsets = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    flags = [0] * len(chat.text)
    for (start, stop), flag in zip(offsets, chat.assistant_mask, strict=True):
        flags[start:stop] = [flag] * (stop - start)
    return flags


def check_words(chat, messages, flags):
    """Each word is masked if, and only if, an answer holds it; so is all between two words of one answer."""
    owner = {word: i for i, message in enumerate(messages) for word in WORD.findall(json.dumps(message))}
    found = list(WORD.finditer(chat.text))
    for word in found:
        assert set(flags[word.start() : word.end()]) == {int(word[0][0] == "a")}, word
    for word, after in pairwise(found):
        if word[0][0] == "a" and owner[word[0]] == owner[after[0]]:
            assert all(flags[word.end() : after.start()])


def runs(flags):
    """Where flags are set, as (start, stop)."""
    edges = [i for i, (a, b) in enumerate(pairwise([False, *flags, False])) if bool(a) != bool(b)]
    return list(zip(edges[::2], edges[1::2], strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_mask_is_silently_wrong(name):
    heads, ends = FAMILIES[name]
    tokenizer = chat_tokenizer(source(name))
    num_right = num_refused = 0
    for what, messages, tools in [*cases(), *quotations(tokenizer)]:
        try:
            chat = encode_chat(tokenizer, messages, tools)
        except TemplateError as error:
            num_refused += error.reason not in RIGHTLY_REFUSED
            continue
        assert chat.text == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False), what
        assert chat.input_ids == tokenizer(chat.text, add_special_tokens=False)["input_ids"]
        flags = characters(tokenizer, chat)
        check_words(chat, messages, flags)
        for span in chat.spans:
            before, own = chat.text[: span.start], chat.text[span.start : span.stop]
            # an answer right behind an answer has no header where the template makes one turn of both
            assert before.endswith(heads) or flags[span.start - 1], (what, before)
            has_end = own.endswith(tuple(filter(None, ends))) or flags[span.stop : span.stop + 1] == [1]
            is_open = not re.search(f"({CONTROL.pattern})$", own) or own in [m.get("content") for m in messages]
            assert has_end or ("" in ends and is_open), (what, own)
            assert not own.startswith(heads[0]), (what, own)
        num_right += 1
    assert num_right >= 1
    assert num_refused <= 1


def test_there_are_enough_cases():
    assert len(FAMILIES) >= 25
    assert len(list(conversations())) >= 20
    assert {path.stem for path in FOLDER.glob("*/*.jinja")} == {name.split("/")[1] for name in FAMILIES} | set(MARKED)


@pytest.mark.parametrize("name", MARKED)
def test_what_is_derived_is_what_the_marked_variant_marks(name):
    """Where both print the same text, they differ in white space, a role's header and a second end alone."""
    plain = name.removesuffix("_training")
    heads = FAMILIES[f"trl/{plain}"][0]
    tokenizer, marked = chat_tokenizer(source(f"trl/{plain}")), chat_tokenizer(source(f"trl/{name}"))
    num_compared = 0
    for what, messages, tools in cases():
        try:
            derived, expected = encode_chat(tokenizer, messages, tools), encode_chat(marked, messages, tools)
        except TemplateError:
            continue
        if derived.text != expected.text:
            continue
        num_compared += 1
        ours, theirs = characters(tokenizer, derived), characters(marked, expected)
        pieces = [derived.text[a:b] for a, b in runs([x != y for x, y in zip(ours, theirs, strict=True)])]
        assert all(not p.strip() or heads[0].endswith(p) or p.strip() == marked.eos_token for p in pieces), (
            what,
            pieces,
        )
    assert num_compared >= 15


@pytest.mark.parametrize("name", MARKED)
def test_marks_are_taken_as_transformers_takes_them(name):
    tokenizer = chat_tokenizer(source(f"trl/{name}"))
    messages = [
        {"role": "user", "content": "q10z q11z"},
        {"role": "assistant", "content": "a12z a13z."},
        {"role": "user", "content": "q14z"},
        {"role": "assistant", "content": "a15z."},
    ]
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ours = encode_chat(tokenizer, messages)
    assert ours.input_ids == theirs["input_ids"]
    assert ours.assistant_mask == theirs["assistant_masks"]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = "{% generation %}{{ m.content }}{% endgeneration %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        + GENERATION
        + "{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "{% macro answer(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ answer(m) }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set x %}" + GENERATION + "{% endset %}{{ x }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}",
    ],
    ids=["plain", "in a macro", "in a set block"],
)
@pytest.mark.parametrize(
    ("question", "answer"),
    [("", "hi"), ("", "h"), ("Q", "ends in 😀"), ("Q", "𝕏"), ("Q", "h")],
    ids=["all", "token 0 alone", "emoji", "many tokens", "last"],
)
def test_what_the_tracker_of_transformers_gets_wrong(template, question, answer):
    """An empty span at 0, a span that ends in token 0 (#47325) or within a character, marks that are captured."""
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Z"},
    ]
    tokenizer = chat_tokenizer(template)
    chat = encode_chat(tokenizer, messages)
    assert characters(tokenizer, chat) == [0] * len(question) + [1] * len(answer) + [0]
    assert len(chat.input_ids) == len(chat.assistant_mask)


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant", "system"]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
            | st.sampled_from(
                ["<|im_end|>\n", "<think>", "<think>\n\n</think>\n\n", " \n", "<|im_start|>assistant\n", "ꙮ"]
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_under_chatml(turns):
    """The rendering is simple enough to be written down here."""
    text, spans = "", []
    for role, content in turns:
        header = f"<|im_start|>{role}\n"
        if role == "assistant":
            start = len(text) + len(header)
            spans.append(Span(start, start + len(content) + len("<|im_end|>")))
        text += f"{header}{content}<|im_end|>\n"
    chat = CHATML_ENCODER.encode([{"role": role, "content": content} for role, content in turns])
    assert (chat.text, list(chat.spans)) == (text, spans)


CHATML_ENCODER = ChatEncoder(chat_tokenizer(CHATML))
CHAT = [{"role": "user", "content": "q10z"}, {"role": "assistant", "content": "a11z."}]


def masked(tokenizer, chat):
    return tokenizer.decode([i for i, flag in zip(chat.input_ids, chat.assistant_mask, strict=True) if flag])


@pytest.mark.parametrize("name", ["trl/qwen3", "trl/lfm2_2_5_v2", "trl/cohere2", "axolotl/jamba", "trl/phi3"])
def test_the_end_of_a_turn_is_left_out_on_request(name):
    tokenizer = chat_tokenizer(source(name))
    chat = [*CHAT, *CHAT]
    with_end, without = encode_chat(tokenizer, chat), encode_chat(tokenizer, chat, end_of_turn=False)
    end = FAMILIES[name][1][0].strip()
    end = end[end.rindex("<") :]
    assert masked(tokenizer, with_end).count(end) == 2
    assert masked(tokenizer, without).count(end) == 0
    assert masked(tokenizer, without).count("a11z.") == 2


def test_a_known_stop_that_the_next_message_prints_is_an_end():
    """Without a generation config, only the template can tell."""
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = chat_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[user]"]})
    assert masked(tokenizer, encode_chat(tokenizer, [*CHAT, *CHAT], stops=["[user]"])) == "a11z.[user]a11z."


def test_truncation_keeps_ids_and_mask_together():
    tokenizer = chat_tokenizer(source("trl/qwen2_5"))
    whole = encode_chat(tokenizer, [*CHAT, *CHAT])
    for length in (0, 1, len(whole.input_ids) - 9, len(whole.input_ids)):
        cut = encode_chat(tokenizer, [*CHAT, *CHAT], max_length=length)
        assert (cut.input_ids, cut.assistant_mask) == (whole.input_ids[:length], whole.assistant_mask[:length])
        assert cut.is_truncated == (length < len(whole.input_ids))
        assert cut.text == whole.text


@pytest.mark.parametrize("name", ["trl/llama3_2", "trl/gptoss"])
def test_the_date_is_frozen(name):
    tokenizer = chat_tokenizer(source(name))
    day = datetime.date(2001, 2, 3)
    assert "2001" in encode_chat(tokenizer, CHAT, date=day).text
    assert "2001" not in encode_chat(tokenizer, CHAT).text  # and transformers has its own clock back
    assert "2001" not in tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_options_of_the_template_reach_it():
    tokenizer = chat_tokenizer(CHATML)
    chat = encode_chat(tokenizer, CHAT, chat_template="{{ greeting }}" + CHATML, greeting="Hello ")
    assert chat.text.startswith("Hello <|im_start|>user")
    assert masked(tokenizer, chat) == "a11z.<|im_end|>"


def call(**arguments):
    return {"type": "function", "id": "abcdefgh0", "function": {"name": "lookup", "arguments": arguments}}


def test_what_a_template_does_not_read_is_named():
    messages = [
        CHAT[0],
        {"role": "assistant", "content": "", "tool_calls": [call(key="a")], "reasoning_content": "hm"},
    ]
    assert encode_chat(chat_tokenizer(source("trl/llama3")), messages).unread == ("reasoning", "tool_calls")
    assert encode_chat(chat_tokenizer(source("trl/qwen3")), messages, TOOLS).unread == ()
    tool = {"role": "tool", "content": "q12z"}
    assert "content" in encode_chat(chat_tokenizer(source("trl/phi3")), [*messages, tool]).unread


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (None, CHAT, "no_template"),
        ("{% for m in messages %}", CHAT, "template_syntax"),
        ("{{ raise_exception('no such roles') }}", CHAT, "template_refuses"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", CHAT, "not_printed"),
        ("{{ messages[0].content }}{{ messages[1].content }}", CHAT, "no_region"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[1].content }}", CHAT, "answer_elsewhere"),
        ("{% for m in messages %}{{ messages[0].content }}:{{ m.content }}{% endfor %}", CHAT, "turn_not_own"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", CHAT, "no_prompt"),
        (
            "{% for m in messages %}{% generation %}{{ messages[0].content }}:{{ m.content }}{% endgeneration %}{% endfor %}",
            CHAT,
            "turn_not_own",
        ),
        ("{% for m in messages %}{{ m.content }}\nHuman:{% endfor %}", CHAT, "no_end"),
        (
            source("trl/llama3"),
            [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
            "parts_as_code",
        ),
        (
            source("trl/qwen3"),
            [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
            "not_printed",
        ),
        (source("trl/gemma3"), [CHAT[1], CHAT[0]], "template_refuses"),
    ],
)
def test_a_mask_that_cannot_be_right_is_refused(template, messages, reason):
    tokenizer = chat_tokenizer(template or "")
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some/model"
    with pytest.raises(TemplateError) as caught:
        encode_chat(tokenizer, messages)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("some/model: ")
    assert "--chat-template FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


LINE = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOPS = {
    "an index": "{% for i in range(messages|length) %}{% set m = messages[i] %}" + LINE + "{% endfor %}" + ASK,
    "an index under a condition": "{% for i in range(messages|length) %}{% if messages[i].role %}{% set m = messages[i] %}"
    + LINE
    + "{% endif %}{% endfor %}"
    + ASK,
    "a loop in a macro": "{% macro all(ms) %}{% for m in ms %}"
    + LINE
    + "{% endfor %}{% endmacro %}{{ all(messages) }}"
    + ASK,
    "a loop in a set block": "{% set x %}{% for m in messages %}" + LINE + "{% endfor %}{% endset %}{{ x }}" + ASK,
    "a scan before": "{% for m in messages %}{% if not m.role %}?{% endif %}{% endfor %}{% for m in messages %}"
    + LINE
    + "{% endfor %}"
    + ASK,
    "a scan within": "{% for m in messages %}{% for n in messages %}{% endfor %}" + LINE + "{% endfor %}" + ASK,
    "the next header behind the end": "<|im_start|>user\n{% for m in messages %}{{ m.content }}<|im_end|>\n<|im_start|>"
    "{{ 'user' if m.role == 'assistant' else 'assistant' }}\n{% endfor %}",
    "a prompt with other white space": "{% for m in messages %}" + LINE + "{% endfor %}" + ASK.replace("\n", " "),
    "a prompt that also closes the question": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last or m.role == 'assistant' %}<|im_end|>\n{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}"
    "<|im_end|>\n<|im_start|>assistant\n{% endif %}",
    "an end of the chat that begins as the prompt": "{% for m in messages %}"
    + LINE
    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% else %}<|im_stop|>{% endif %}",
    "a line in front when it asks": "{% if add_generation_prompt %}Be kind.{% endif %}{% for m in messages %}"
    + LINE
    + "{% endfor %}"
    + ASK,
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_every_make(name):
    tokenizer = chat_tokenizer(LOOPS[name])
    for messages in ([*CHAT, *CHAT], [*CHAT, *CHAT, CHAT[0]]):
        assert masked(tokenizer, encode_chat(tokenizer, messages)) == "a11z.<|im_end|>a11z.<|im_end|>"


def test_a_line_in_front_of_a_prompt_that_is_not_all_of_the_header():
    line = LINE.replace("\n{{", "{{ ' to=user' if m.role == 'assistant' }}\n{{")
    template = "{% if add_generation_prompt %}Be kind.{% endif %}{% for m in messages %}" + line + "{% endfor %}"
    tokenizer = chat_tokenizer(template + ASK.replace("\n", ""))
    assert masked(tokenizer, encode_chat(tokenizer, CHAT)) == " to=user\na11z.<|im_end|>"


def test_llama_with_tools_puts_a_first_answer_into_the_user_turn():
    with pytest.raises(TemplateError):
        encode_chat(chat_tokenizer(source("trl/llama3_1")), [CHAT[1], CHAT[0], CHAT[1]], TOOLS)


def test_a_tokenizer_of_words_behind_a_space():
    """The space in front of an answer is in its first token, whether the prompt ends with it or not."""
    template = "{% for m in messages %}{{ m.role }}:{{ SPACE }}{{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{{ PROMPT }}{% endif %}"
    tokenizer = chat_tokenizer(template + "</s>", metaspace=True)
    for prompt in ("", " "):
        chat = encode_chat(tokenizer, CHAT, chat_template=template, SPACE=" ", PROMPT=prompt)
        assert (masked(tokenizer, chat), chat.crossing) == ("a11z.</s>", 0)


def test_private_characters_in_a_conversation():
    chat = CHATML_ENCODER.encode([CHAT[0], {"role": "assistant", "content": "\ue000=1\ue001"}])
    assert chat.text[chat.spans[0].start :] == "\ue000=1\ue001<|im_end|>\n"


@pytest.mark.parametrize(
    ("offsets", "mask", "crossing"),
    [
        ([(0, 4), (4, 6), (6, 8), (8, 10)], [0, 1, 1, 0], 0),
        ([(0, 5), (5, 8), (8, 10)], [0, 1, 0], 1),  # prompt and answer in one token: predicted within the prompt
        ([(0, 4), (4, 9), (9, 10)], [0, 1, 0], 0),  # the answer and white space behind it
        ([(0, 4), (4, 10)], [0, 0], 1),  # the answer and words behind it
        ([(0, 4), (4, 5), (4, 5), (4, 5), (5, 8), (8, 10)], [0, 1, 1, 1, 1, 0], 0),  # one character of three tokens
        ([(0, 4), (5, 8), (9, 10)], [0, 1, 0], 0),  # offsets without the space in front of a word
        ([(0, 4), (5, 5), (5, 8), (8, 10)], [0, 1, 1, 0], 0),  # a token of spaces alone, trimmed to nothing
        ([], [], 0),
    ],
)
def test_tokens_on_a_border(offsets, mask, crossing):
    found, num_crossing = mask_tokens("user: ab c", offsets, [Span(4, 8)])
    assert (found.tolist(), num_crossing) == (mask, crossing)


@given(st.data())
def test_tokens_and_characters_agree(data):
    """Tokens of whole characters: one is masked if it lies in a span."""
    edges = sorted(data.draw(st.sets(st.integers(1, 30), max_size=12)) | {0, 30})
    offsets = list(pairwise(edges))
    cuts = sorted(data.draw(st.sets(st.integers(0, 30), max_size=6)))
    spans = [Span(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    mask, crossing = mask_tokens("x" * 30, offsets, spans)
    inside = [any(span.start <= a and b <= span.stop for span in spans) for a, b in offsets]
    touched = [any(span.start < b and a < span.stop for span in spans) for a, b in offsets]
    assert mask.tolist() == inside
    assert crossing == sum(touched) - sum(inside)


def test_a_conversation_without_an_answer_has_no_mask():
    chat = CHATML_ENCODER.encode([CHAT[0]])
    assert isinstance(chat, EncodedChat)
    assert chat.spans == () and not any(chat.assistant_mask)
