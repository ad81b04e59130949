"""Digests and the numbers they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.core import key_index
from tunewright.core.key_index import KeyIndex

KEY = st.binary(min_size=16, max_size=16) | st.sampled_from(
    [b"\0" * 16, b"\0" * 15 + b"a", b"a" + b"\0" * 15, b"ab" + b"\0" * 14]
)


@given(st.lists(st.tuples(KEY, st.integers(0, 1 << 40)), max_size=40), st.integers(1, 5))
def test_it_finds_what_a_dictionary_finds(pairs: list[tuple[bytes, int]], waiting: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_index, "MOST_WAITING", waiting)
        index, plain = KeyIndex(), {}
        for key, number in pairs:
            index.add(key, number)
            plain[key] = number
    assert {key: index.find(key) for key in plain} == plain
    for key in (b"x" * 16, b"\0" * 14 + b"ab"):
        assert (key in index) == (key in plain)


def test_keys_in_a_row_stand_for_numbers_in_a_row_and_the_later_one_counts() -> None:
    index = KeyIndex()
    index.add_all(b"a" * 16 + b"b" * 16 + b"a" * 16, 5)
    assert (index.find(b"a" * 16), index.find(b"b" * 16), index.find(b"c" * 16)) == (7, 6, None)
