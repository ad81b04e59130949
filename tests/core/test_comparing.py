"""Whether an answer is the expected one: what counts and what does not."""

import pytest

from tunewright.core.comparing import contains, matches, normalised


@pytest.mark.parametrize(
    ("answer", "expected", "met"),
    [
        ("It is TAMSIN  Vell.", "tamsin vell", True),
        ("它叫 Ａbc。", "abc", True),
        ("", "x", False),
        ("anything", "", False),
        ("anything", "  ", False),
    ],
)
def test_an_answer_holds_what_was_expected(answer, expected, met):
    assert contains(answer, expected) is met


@pytest.mark.parametrize(
    ("expected", "given", "verdict"),
    [
        ("Paris", " Paris\n", (True, True)), ("Paris", "paris.", (False, True)), ("好评", "好评。", (False, True)), ("Ａ 1", "a  1", (False, True)),
        ("Paris", "Rome", (False, False)), ("?", "!", (False, False)), ("?", "?", (True, True)), ("don't", "dont", (False, True)),
    ],
)  # fmt: skip
def test_answers_are_compared_exactly_and_loosely(expected, given, verdict):
    assert matches(expected, given) == verdict


@pytest.mark.parametrize(("one", "other", "same"), [("-5 °C", "5 °C", False), ("3.5%", "35%", False), ("3.5 %.", "3.5 %", True), ("well-known", "wellknown", True), ("10:30!", "10:30", True)])  # fmt: skip
def test_what_makes_a_number_is_not_dropped(one, other, same):
    assert (normalised(one) == normalised(other)) is same
