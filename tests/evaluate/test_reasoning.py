"""The reasoning questions: the set, what counts as right, and what is said of both sides."""

from __future__ import annotations

import pytest

from tunewright.evaluate.reasoning import all_items, compare, is_right, read_side
from tunewright.rewards.numeric import final_number

ITEMS = all_items()


def said(answer: str, thought: str = "hm so", tokens: int = 40, finished: bool = True):
    return {
        "thought": thought,
        "text": answer,
        "thought_tokens": tokens if thought else 0,
        "finished": finished,
    }


def side(**how):
    return {item.id: said(item.answer, **how) for item in ITEMS}


def test_the_set_alternates_between_languages_and_every_answer_is_a_number():
    assert [item.language for item in ITEMS[:4]] == ["en", "zh", "en", "zh"]
    assert len({item.question for item in ITEMS}) == len(ITEMS) == 16
    assert all(final_number(item.answer) is not None for item in ITEMS)
    # No question ends with its own answer, so nobody is right by copying its last number.
    assert not any(is_right(item, said(item.question)) for item in ITEMS)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (said("She has 19 eggs."), True),
        (said("19", thought=""), True),
        (said("18"), False),
        (said("", thought="4 * 6 - 5 = 19", finished=False), False),
        (said("19", finished=False), False),
    ],
)
def test_a_number_in_a_thought_is_no_answer(answer, right):
    assert is_right(ITEMS[0], answer) is right


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (side(), "kept"),
        (side(tokens=30), "kept"),
        (side(tokens=9), "lost"),
        (side(thought=""), "lost"),
        ({item.id: said("no") for item in ITEMS}, "worse"),
    ],
)
def test_the_verdict_names_what_is_left(after, verdict):
    found = compare(ITEMS, side(), after, 96)
    assert found["verdict"] == verdict and found["asked"] == 16
    assert found["before"]["right"] == 16 and found["before"]["share"] == 1
    assert found["before"]["thought_tokens"] == 40


def test_a_model_that_never_thought_has_nothing_to_lose():
    before = side(thought="")
    assert compare(ITEMS, before, before, 96)["verdict"] == "none"
    assert compare(ITEMS, before, side(), 96)["verdict"] == "none"


def test_a_side_of_other_questions_is_not_taken():
    assert read_side(ITEMS, side()) == side()
    assert read_side(ITEMS, {"en-1": said("19")}) is None
    assert read_side(ITEMS, {**side(), "en-1": {"text": "19"}}) is None
