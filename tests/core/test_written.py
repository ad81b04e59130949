"""Numbers keep the spelling of their file: as text, as JSON, through marshal; and count and compare
as numbers."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.core.written import (
    DECODER,
    WrittenFloat,
    json_text,
    plain_numbers,
    read_float,
    spelt,
)

SPELLINGS = [
    "0.00001",
    "3.10",
    "1E5",
    "1e-05",
    "10000000000000000.0",
    "3.14159265358979323846",
    "-0",
    "-0.0",
    "7",
    "0.1",
    "2.50",
    "1e400",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_number_is_written_with_the_characters_that_were_read(text):
    value = DECODER.decode(f'{{"a": [{text}]}}')["a"][0]
    assert spelt(value) == text == json_text(value) and value == json.loads(text)
    assert spelt(pickle.loads(pickle.dumps(value))) == text  # noqa: S301 - our own bytes


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_json_text_says_what_json_says(value):
    assert json.loads(json_text(value)) == value
    assert plain_numbers(value)[0] == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (1e-05, "0.00001"),
        (1e16, "10000000000000000.0"),
        (1.5, "1.5"),
        (1e300, "1e+300"),
        (5e-324, "5e-324"),
    ],
)
def test_truths_and_numbers_without_a_spelling_are_decimals(value, text):
    assert spelt(value) == text


def test_a_number_that_python_spells_alike_stays_plain():
    assert type(read_float("0.1")) is float and type(read_float("3.10")) is WrittenFloat
    assert plain_numbers({"a": [DECODER.decode("3.10"), 2]}) == ({"a": [3.1, 2]}, 1)
