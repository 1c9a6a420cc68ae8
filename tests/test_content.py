"""The content hash: python -m pytest tests/test_content.py."""

from hypothesis import given
from hypothesis import strategies as st

from builders.content import content_hash
from builders.text import Span, Text, TextView

words = st.text(alphabet="ab\x00 \n|", max_size=6)
spans = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=2)
texts = st.lists(st.tuples(words, spans), min_size=1, max_size=3)


def hash_of(parts):
    return content_hash([Text(f"f{i}", text, tuple(Span("s", *s) for s in sp)) for i, (text, sp) in enumerate(parts)])


@given(texts, texts)
def test_two_rows_share_a_hash_only_where_the_model_is_given_the_same(one, other):
    assert (hash_of(one) == hash_of(other)) == (one == other)


def test_it_is_32_hex_digits_and_stays_what_it_is():
    """Stored hashes are looked up by later versions. The value is that of `b2sum -l 128`."""
    assert hash_of([("a text", [(0, 6)])]) == "f62088df7fa85d5139f905fe75ad2c7f"


def test_parts_count_as_a_balanced_cut_shares_the_room_among_them():
    view = TextView(template="{question} {answer}", messages_column=None)
    one = view.render({"question": "a b", "answer": "c"})
    other = view.render({"question": "a", "answer": "b c"})
    assert one[0].text == other[0].text
    assert content_hash(one) != content_hash(other)


def test_what_is_not_text_does_not_count():
    view = TextView(template="{answer}", messages_column=None)
    assert content_hash(view.render({"answer": "c", "id": 1})) == content_hash(
        view.render({"answer": " c\n", "id": 2})
    )


def test_fields_do_not_run_into_each_other():
    view = TextView(fields=("question", "answer"), messages_column=None)
    rows = [("ab", ""), ("", "ab"), ("a", "b"), ("b", "a"), ("ab", "ab")]
    assert len({content_hash(view.render({"question": q, "answer": a})) for q, a in rows}) == len(rows)


def test_images_count_each_for_itself():
    rows = [Text("", "a"), *(Text("", "a", (), images) for images in ((b"bc",), (b"b", b"c"), (b"c", b"b"), (b"",)))]
    assert len({content_hash([text]) for text in rows}) == 5
