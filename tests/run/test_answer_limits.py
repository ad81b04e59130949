"""How long the answer to a question of a run may be."""

from __future__ import annotations

import pytest
from helpers.building import make_tokenizer

from tunewright.core.types import Message
from tunewright.run.questions import Probe, _longest_answer


@pytest.mark.parametrize(
    ("words", "is_row", "most"),
    [(0, True, 96), (0, False, 96), (10, True, 48), (10, False, 48), (80, True, 108), (80, False, 108),
     (400, True, 128), (400, False, 508)],
)  # fmt: skip
def test_a_quarter_more_than_expected_and_of_a_row_the_beginning(
    words: int, is_row: bool, most: int
) -> None:
    tokenizer = make_tokenizer()
    expected = tokenizer.decode(tokenizer(" small")["input_ids"] * words) if words else ""
    length = len(tokenizer(expected)["input_ids"]) if expected else 0
    probe = Probe("?", [Message("user", "?")], expected, is_row=is_row)
    found = _longest_answer(probe, tokenizer)
    if words in (0, 10):
        assert found == most
    else:
        whole = length * 5 // 4 + 8
        assert found == (min(whole, 128) if is_row else whole)
        assert (whole > 128) == (words == 400)
