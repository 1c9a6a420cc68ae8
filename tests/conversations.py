"""Conversations of every make for tests of masks. Each word that a message holds occurs once in its conversation."""

from __future__ import annotations

import itertools
import json
import re

WORD = re.compile(r"[qa]\d+z")  # q: a prompt's, a: an answer's


class Words:
    """Makes words that occur once; those of an answer begin with `a`."""

    def __init__(self):
        self.numbers = itertools.count(10)

    def q(self):
        return f"q{next(self.numbers)}z"

    def a(self):
        return f"a{next(self.numbers)}z"


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Look a word up.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "the word"}}},
        },
    }
]


def conversations(arguments=dict):
    """Yield (name, messages, tools). `arguments` is how tool calls hold theirs: as `dict` or as JSON (`str`)."""
    w = Words()

    def user(text="{} {}"):
        return {"role": "user", "content": text.format(w.q(), w.q())}

    def system(text="{} {}"):
        return {"role": "system", "content": text.format(w.q(), w.q())}

    def answer(text="{} {}.", **more):
        return {"role": "assistant", "content": text.format(w.a(), w.a()), **more}

    def think(text="{} {}."):
        return {"reasoning_content": text.format(w.a(), w.a())}

    def call(ident="abcdefghi", name="lookup"):
        values = {"key": w.a()}
        given = values if arguments is dict else json.dumps(values)
        return {"id": ident, "type": "function", "function": {"name": name, "arguments": given}}

    def calls(n=1, content="", **more):
        return {
            "role": "assistant",
            "content": content,
            "tool_calls": [call(f"abcdefgh{i}") for i in range(n)],
            **more,
        }

    def result(ident="abcdefgh0"):
        return {"role": "tool", "name": "lookup", "tool_call_id": ident, "content": f'{{"found": "{w.q()}"}}'}

    def parts(role, make):
        return {"role": role, "content": [{"type": "text", "text": f"{make()} {make()}"}]}

    yield "one turn", [user(), answer()], None
    yield "two turns", [user(), answer(), user(), answer()], None
    yield "system", [system(), user(), answer(), user(), answer()], None
    yield "four turns", [message for _ in range(4) for message in (user(), answer())], None
    yield "ends with a user", [user(), answer(), user()], None
    yield "no answer", [system(), user()], None
    yield "begins with the assistant", [answer(), user(), answer()], None
    yield "two answers", [user(), answer(), answer(), user(), answer()], None
    yield "two users", [user(), user(), answer()], None
    yield "an empty answer", [user(), answer(""), user(), answer()], None
    yield "an empty question", [user(""), answer()], None
    yield "a blank answer", [user(), answer("  \n "), user(), answer()], None
    yield "said twice", [user("Yes. {}"), answer("Yes."), user("Yes. {}"), answer("Yes.")], None
    yield (
        "outer white space",
        [user("  {}\n {}\n\n"), answer("\n\n  {}\n\n{}  \n"), user(), answer("   {} {}\n")],
        None,
    )
    yield "unicode", [user("😀 {} é {}"), answer("𝕏{} 日本語 {} 👩‍👩‍👧"), user("é"), answer("{}\u200b {}😀")], None
    yield "code", [user("```{}```{}"), answer("```py\nx = '<b>{}</b>'\n```\n{{}}{}")], None
    yield "quotes", [user('\'"{}\\ {}"'), answer("'\\{}\\n\" \"{}\\'")], None
    yield (
        "quoted markers",
        [
            user("<|im_end|>\n<|im_start|>assistant\n{} [/INST] {}"),
            answer("<|im_start|>user\n{} <end_of_turn> {}"),
            user(),
        ],
        None,
    )
    yield "thought as a field", [user(), answer(**think()), user(), answer(**think())], None
    yield (
        "thought inline",
        [user(), answer("<think>\n{}\n</think>\n\n{}"), user(), answer("<think>{}</think>{}")],
        None,
    )
    yield "thought and nothing else", [user(), {"role": "assistant", "content": "", **think()}], None
    yield "an empty thought", [user(), answer("<think>\n\n</think>\n\n{} {}")], None
    yield "tools unused", [user(), answer(), user(), answer()], TOOLS
    yield "a call", [user(), calls(), result(), answer()], TOOLS
    yield (
        "a call with words",
        [system(), user(), calls(content=f"{w.a()} {w.a()}"), result(), answer(), user(), answer()],
        TOOLS,
    )
    yield "two calls", [user(), calls(2), result(), result("abcdefgh1"), answer()], TOOLS
    yield "a call after a call", [user(), calls(), result(), calls(), result(), answer()], TOOLS
    yield "ends with a call", [user(), calls()], TOOLS
    yield "a thought and a call", [user(), calls(**think()), result(), answer(**think())], TOOLS
    yield "a call without tools", [user(), calls(), result(), answer()], None
    yield "no content key", [user(), {k: v for k, v in calls().items() if k != "content"}, result(), answer()], TOOLS
    yield "parts", [parts("user", w.q), parts("assistant", w.a), parts("user", w.q), parts("assistant", w.a)], None
    yield "user parts", [parts("user", w.q), answer()], None
    many = {"role": "assistant", "content": [part for _ in range(3) for part in parts("assistant", w.a)["content"]]}
    yield "many parts", [parts("user", w.q), many, user(), answer()], None
    yield "an empty list", [user(), {"role": "assistant", "content": []}, user(), answer()], None
    yield "a call and None", [user(), calls(content=None), result(), answer()], TOOLS
    yield "the same turns", [message for _ in range(3) for message in (user("Hi."), answer("Hi."))], None
    yield (
        "odd white space",
        [user("\u00a0{}\u2028{}\u200f"), answer("\u3000{}\u2028\u200b{}\u00a0\u202e"), user(), answer("\u3000\u00a0")],
        None,
    )
    yield "right to left", [user("\u202e{} שלום {}"), answer("שלום {} \u2067مرحبا\u2069 {}\ufeff")], None
    yield "a token and nothing else", [user(), answer("<|im_end|>"), user(), answer("</s>"), user(), answer()], None
    yield "the end of a thought", [user(), answer("</think>{}</think> {}"), user(), answer("<think>{} {}")], None
    yield "words of a template", [user("user {}"), answer("assistant\n{}\nuser\n{}"), user(), answer("[{}]")], None
    yield "a long line", [user("x" * 3000), answer("{}" + " y" * 3000 + "{}"), user(), answer()], None
    yield "long", [message for _ in range(12) for message in (user("{} {} " * 20 if 0 else "{} {}"), answer())], None


CONTROL = re.compile(
    r"<\|[^|<>\s{}'\"+]*\|>|<｜[^｜<>\s'\"]*｜>|<\|[a-z_\"]+>|<[a-z_]+\|>|</?s>|<(?:start|end)_of_(?:turn|utterance)>"
    r"|</?(?:tool_call|tool_response)>|\[/?[A-Z_]{3,}\]|\[\|[a-z]+\|\]|<[A-Z]*_?TOKEN>|<[be]os>"
)
EOS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
)


def chat_tokenizer(source, *, metaspace=False):
    """Make a byte-level tokenizer (or one of words behind ▁) that knows the control tokens of a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if metaspace else None))
    kind = pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = kind
    tokenizer.decoder = decoders.Metaspace() if metaspace else decoders.ByteLevel()
    alphabet = list("qaz0123456789. ▁YesNohi") if metaspace else pre_tokenizers.ByteLevel.alphabet()
    text = ["user assistant system the answer to a question, and so on.\n\n Yes. No. hi"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=["<unk>"] if metaspace else []
    )
    tokenizer.train_from_iterator(text, trainer)
    special = sorted(set(CONTROL.findall(source)))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=next((token for token in EOS if token in source), "</s>"),
        unk_token="<unk>",
        additional_special_tokens=special,
    )
    fast.chat_template = source
    if end := printed_end(fast):
        fast.add_special_tokens({"eos_token": end})
    return fast


def quotation(tokenizer):
    """A conversation whose words hold a whole rendered chat of the tokenizer's template, and a prompt of it."""
    hi, ho = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}
    chat = tokenizer.apply_chat_template([hi, ho, hi, ho], tokenize=False)
    prompt = tokenizer.apply_chat_template([hi], tokenize=False, add_generation_prompt=True)
    texts = [f"{prompt} q10z {chat}", f"a11z {chat}{prompt} a12z", "q13z", f"{prompt}a14z", "q15z", f"a16z{chat}"]
    return [{**(ho if i % 2 else hi), "content": text} for i, text in enumerate(texts)]


def printed_end(tokenizer):
    """What a template prints behind each answer, where that has neither the shape of a control token nor letters alone.

    A real tokenizer knows such a token (`[e~[`) by name.
    """
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "a10z"}
    try:
        texts = [tokenizer.apply_chat_template([user, answer, *more], tokenize=False) for more in ([], [user, answer])]
    except Exception:  # a template is foreign code
        return ""
    first, then = (f"{text.partition('a10z')[2]} ".split()[:1] for text in texts)
    end = first[0] if first and first == then else ""
    return "" if CONTROL.search(end) or not re.search(r"[^\w\s.,:#*-]", end) else end
