"""Texts to token ids, with the tokenizer of all-MiniLM-L6-v2: python -m pytest tests/test_tokens.py."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from builders.options import ConfigError
from builders.text import Span, Text, TextView
from extract.tokens import CHARS_PER_TOKEN, TextTokenizer

CLS, SEP = 101, 102
WORDS = ["the", "Quick", "fox,", "naïve", "東京", "jumps;", "12,345", "unbelievably", "dogs!\nAnd", "then\tagain"]
TEXTS = st.text(max_size=300) | st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def theirs(minilm):
    """The transformers tokenizer as it comes: it cuts at 256 and is left alone."""
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def make(minilm):
    def make(max_length=256, truncate="end", instruction=""):
        return TextTokenizer(AutoTokenizer.from_pretrained(minilm), max_length, truncate, instruction)

    return make


@pytest.fixture(scope="module")
def short(make):
    """One tokenizer for each rule, of 16 tokens."""
    return {rule: make(16, rule) for rule in ("end", "start", "middle", "balanced")}


def encode(tokenizer, text):
    ((ids, truncated),) = tokenizer.encode([text if isinstance(text, Text) else Text("", text)])
    return ids, truncated


@given(text=TEXTS)
def test_ids_are_those_of_transformers_where_the_text_fits(make, theirs, text):
    expected = theirs(text, truncation=False)["input_ids"]
    if 2 < len(expected) <= 512:
        assert encode(make_once(make, 512), text) == (expected, False)


@given(text=TEXTS)
def test_an_end_cut_is_the_cut_of_transformers(make, theirs, text):
    expected = theirs(text, truncation=True, max_length=12)["input_ids"]
    ids, truncated = encode(make_once(make, 12), text)
    assert ids == (expected if len(expected) > 2 else [])
    assert truncated == (len(theirs(text, truncation=False)["input_ids"]) > 12)


_made = {}


def make_once(make, max_length):
    if max_length not in _made:
        _made[max_length] = make(max_length)
    return _made[max_length]


@given(text=TEXTS, rule=st.sampled_from(["end", "start", "middle", "balanced"]))
def test_no_text_is_longer_than_the_limit_and_none_is_cut_without_need(short, theirs, text, rule):
    ids, truncated = encode(short[rule], text)
    full = theirs(text, truncation=False)["input_ids"]
    if len(full) == 2:
        assert ids == []
        return
    assert len(ids) == min(len(full), 16)
    assert truncated == (len(full) > 16)
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert short[rule].counts([Text("", text)])[0] == len(full)


def long_text(num_words, separator=" ", seed=0):
    rng = random.Random(seed)
    return separator.join(rng.choice(WORDS) for _ in range(num_words))


@pytest.mark.parametrize("separator", [" ", "\n", "   \n  "])
def test_a_megabyte_is_cut_as_if_it_were_read_whole_and_fast(make, theirs, separator):
    text = long_text(150_000, separator)
    assert len(text) > 1_000_000
    tokenizer = make(256)
    started = time.perf_counter()
    got = encode(tokenizer, text)
    seconds = time.perf_counter() - started
    expected = theirs(text[:200_000], truncation=True, max_length=256)["input_ids"]
    assert got == (expected, True)
    assert seconds < 0.2  # 2 ms alone; the whole takes 0.5 s and more


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000 + "one two",  # the part that is read first has no token
        "x" * 300_000,  # no space to cut at
        "東" * 20_000,  # a token for each character
        "\n" * 9_000 + " ".join(["word"] * 5000),
        "a " * 20 + "b" * 50_000 + " c" * 100,
    ],
    ids=["spaces", "one word", "no spaces", "lines", "one long word"],
)
def test_odd_long_texts_are_cut_as_if_they_were_read_whole(make, theirs, text):
    full = theirs(text, truncation=False)["input_ids"]
    expected = theirs(text, truncation=True, max_length=64)["input_ids"]
    assert encode(make(64), text) == (expected, len(full) > 64)


@given(
    text=st.lists(st.sampled_from([*WORDS, "", " ", "\n", "\n\n", "    ", "\t"]), min_size=200, max_size=900).map(
        " ".join
    )
)
def test_a_byte_level_end_cut_is_that_of_the_whole(byte_level, text):
    full = byte_level.backend.encode(text, add_special_tokens=False).ids
    assert encode(byte_level, text) == (full[: byte_level.room], len(full) > byte_level.room)
    assert byte_level.room * CHARS_PER_TOKEN < 900


@pytest.fixture(scope="module")
def byte_level():
    """A tokenizer as GPT-2's and Qwen's: byte-level BPE, where runs of spaces merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [long_text(500, separator, seed) for seed, separator in enumerate((" ", "  ", "    ", "\n", "\n\n"))]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 12)


def test_what_each_rule_keeps(short, theirs):
    text = " ".join(str(i) for i in range(10, 60))  # one token each
    kept = {rule: theirs.decode(encode(short[rule], text)[0][1:-1]).split() for rule in short}
    assert kept["end"] == [str(i) for i in range(10, 24)]
    assert kept["start"] == [str(i) for i in range(46, 60)]
    assert kept["middle"] == [str(i) for i in (*range(10, 17), *range(53, 60))]
    assert kept["balanced"] == kept["end"]  # no parts are known


@given(sizes=st.lists(st.integers(1, 120), min_size=1, max_size=4), instruction=st.sampled_from(["", "sort this: "]))
def test_balanced_keeps_the_share_of_every_part(balanced, sizes, instruction):
    """Part i is `sizes[i]` times the letter i; the literals between the parts are one token each."""
    words = ["a", "b", "c", "d"][: len(sizes)]
    parts = [" ".join([word] * size) for word, size in zip(words, sizes, strict=True)]
    text, spans = "", []
    for i, part in enumerate(parts):
        text += "+ " if i else ""
        spans.append(Span(words[i], len(text), len(text) + len(part)))
        text += part + " "
    tokenizer = balanced[instruction]
    ids, truncated = encode(tokenizer, Text("", text, tuple(spans)))
    pieces = [tokenizer.backend.id_to_token(i) for i in ids]
    room = tokenizer.room - tokenizer.num_kept - (len(sizes) - 1)
    assert truncated == (sum(sizes) > room)
    assert pieces.count("+") == len(sizes) - 1
    for word, size in zip(words, sizes, strict=True):
        share = size * min(1, room / sum(sizes))
        assert abs(pieces.count(word) - share) < 1


@pytest.fixture(scope="module")
def balanced(make):
    return {instruction: make(40, "balanced", instruction) for instruction in ("", "sort this: ")}


@pytest.mark.parametrize("rule", ["end", "start", "middle", "balanced"])
def test_the_instruction_is_never_cut(make, rule):
    instruction = "Represent this sentence for retrieval: "
    tokenizer = make(20, rule, instruction)
    text = TextView(template="{text}").render({"text": long_text(400)})[0]
    ids, truncated = encode(tokenizer, text)
    expected = tokenizer.backend.encode(instruction, add_special_tokens=False).ids
    assert truncated
    assert len(ids) == 20
    assert ids[1 : 1 + len(expected)] == expected


def test_an_instruction_is_the_beginning_of_the_text(make, theirs):
    assert encode(make(256, "end", "query: "), "two words")[0] == theirs("query: two words")["input_ids"]


def test_no_room_is_an_error_that_counts_what_is_in_the_way(make):
    with pytest.raises(
        ConfigError, match=r"--max-length 4 leaves no room for text beside 2 tokens .* 2 special tokens"
    ):
        make(4, "end", "query: ")


def test_a_tokenizer_without_a_fast_version_is_refused():
    with pytest.raises(ConfigError, match="the tokenizer object has no fast version"):
        TextTokenizer(object(), 16)


@pytest.mark.parametrize("instruction", ["", "query: "])
def test_a_text_of_which_no_token_is_left_has_no_ids(make, instruction):
    assert encode(make(16, "end", instruction), "\u200b\ufeff") == ([], False)
    assert len(encode(make(16, "end", instruction), "x")[0]) > 2


def test_no_texts_are_no_tokens(make):
    assert make(16).encode([]) == []
