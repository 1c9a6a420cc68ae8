"""Which tokens are kept: python -m pytest tests/test_truncate.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.truncate import keep_balanced, keep_end_cut, keep_middle_cut, keep_start_cut


def tokens(ranges):
    return [token for start, stop in ranges for token in range(start, stop)]


@st.composite
def ragged(draw):
    """(tokens, parts): sorted disjoint parts with any number of tokens before, between and after them."""
    parts, position = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=6)):
        parts.append((position + gap, position + gap + size))
        position += gap + size
    return position + draw(st.integers(0, 5)), parts


@given(st.integers(0, 300), st.integers(1, 300))
def test_a_cut_keeps_as_many_as_there_is_room_for_in_order(num_tokens, room):
    for cut in (keep_end_cut, keep_start_cut, keep_middle_cut):
        kept = tokens(cut(num_tokens, room))
        assert len(kept) == min(num_tokens, room)
        assert kept == sorted(set(kept) & set(range(num_tokens)))


def test_what_each_cut_keeps():
    assert tokens(keep_end_cut(10, 4)) == [0, 1, 2, 3]
    assert tokens(keep_start_cut(10, 4)) == [6, 7, 8, 9]
    assert tokens(keep_middle_cut(10, 4)) == [0, 1, 8, 9]
    assert tokens(keep_middle_cut(10, 5)) == [0, 1, 2, 8, 9]
    assert tokens(keep_middle_cut(10, 1)) == [0]


@given(ragged(), st.integers(1, 300))
def test_balanced_keeps_as_many_as_there_is_room_for_in_order(text, room):
    num_tokens, parts = text
    kept = tokens(keep_balanced(num_tokens, room, parts))
    assert len(kept) == min(num_tokens, room)
    assert kept == sorted(set(kept) & set(range(num_tokens)))


@given(ragged(), st.integers(1, 300))
def test_balanced_gives_each_part_its_share_from_its_beginning(text, room):
    num_tokens, parts = text
    kept = set(tokens(keep_balanced(num_tokens, room, parts)))
    in_parts = {t for start, stop in parts for t in range(start, stop)}
    between = set(range(num_tokens)) - in_parts
    if len(between) > room:
        assert kept == set(range(room))  # nothing to share: the end is cut
        return
    assert between <= kept
    for start, stop in parts:
        size = len(kept & set(range(start, stop)))
        assert kept & set(range(start, stop)) == set(range(start, start + size))
        if num_tokens > room:
            share = (stop - start) * (room - len(between)) / len(in_parts)
            assert abs(size - share) < 1


@pytest.mark.parametrize(("room", "sizes"), [(9, [3, 3, 3]), (10, [4, 3, 3]), (30, [10, 10, 10]), (1, [1, 0, 0])])
def test_equal_parts_share_equally(room, sizes):
    kept = set(tokens(keep_balanced(30, room, [(0, 10), (10, 20), (20, 30)])))
    assert [len(kept & set(range(i, i + 10))) for i in (0, 10, 20)] == sizes
