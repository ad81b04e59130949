"""Which answers are options, what is counted of them, and how sure a share is. Expected values by
hand or from the literature."""

from __future__ import annotations

import math

import pytest

from tunewright.core.types import Conversation, Message, Origin, PlainText, Sample
from tunewright.evaluate import options as choices
from tunewright.evaluate.interval import wilson


def row(answer: str, number: int = 1) -> Conversation:
    return Conversation(
        [Message("user", f"q{number}"), Message("assistant", answer)],
        Origin("f.json", number, number),
    )


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # The last two: Newcombe 1998, table I, method 3; the first two: n / (n + z^2) and its
        # complement.
        (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (5, 10, 0.2365931, 0.7634069), (81, 263, 0.2553170, 0.3662090), (15, 148, 0.0623859, 0.1604815),
    ],
)  # fmt: skip
def test_wilson_gives_the_known_values(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_own_equation():
    """The ends are the shares p with |k/n - p| = z sqrt(p (1 - p) / n): Wilson's definition, solved
    by halving."""
    for right, count in ((3, 7), (1, 610), (580, 610)):
        for end, start in zip(wilson(right, count), (0.0, 1.0), strict=True):
            inside, outside = right / count, start
            for _ in range(100):
                middle = (inside + outside) / 2
                near = (
                    abs(right / count - middle)
                    <= 1.959963984540054 * (middle * (1 - middle) / count) ** 0.5
                )
                inside, outside = (middle, outside) if near else (inside, middle)
            assert end == pytest.approx(inside, abs=1e-9)


def test_wilson_of_nothing_and_of_nonsense():
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["1", "0", "1 ", "0"], ["1", "0"]), (["好评", "差评"] * 3, ["好评", "差评"]), ([str(i % 10) for i in range(20)], [str(i) for i in range(10)]),
        (["1", "0", "1"], None), (["1", "1"], None), ([str(i % 11) for i in range(22)], None), (["a" * 41, "b"] * 2, None), (["a\nb", "b"] * 2, None), ([], None),
    ],
)  # fmt: skip
def test_options_are_detected(answers, expected):
    assert choices.detect([row(a, i) for i, a in enumerate(answers)]) == expected


def test_running_text_has_no_options():
    assert (
        choices.detect([row("1"), row("1"), row("0"), row("0"), PlainText("x", Origin("f", 1, 1))])
        is None
    )


def test_the_report_counts_by_hand():
    questions = [
        choices.Question(row(o, i), r, Sample([], i))
        for i, (o, r) in enumerate([("a", 0), ("a", 0), ("a", 0), ("b", 1), ("c", 2)])
    ]
    chosen = [0, 0, 1, 1, 0]
    decisions = [
        choices.Decision([2.0 if i == c else 0.0 if i else 0.5 for i in range(3)], [0.0, 1.0, 0.0])
        for c in chosen
    ]
    found = choices.report(["a", "b", "c"], questions, decisions, True)
    assert found["accuracy"] == 3 / 5 and found["interval_95"] == list(wilson(3, 5))
    assert found["majority"] == {"answer": "a", "share": 0.6} and not found["beats_majority"]
    a, b, c = found["classes"]
    assert (a["precision"], a["recall"]) == (2 / 3, 2 / 3) and a["f1"] == pytest.approx(2 / 3)
    assert (b["precision"], b["recall"]) == (1 / 2, 1.0) and b["f1"] == pytest.approx(2 / 3)
    assert (c["precision"], c["recall"], c["f1"]) == (None, 0.0, 0.0)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["confusion"] == {
        "a": {"a": 2, "b": 1, "c": 0},
        "b": {"a": 0, "b": 1, "c": 0},
        "c": {"a": 1, "b": 0, "c": 0},
    }
    # Margins: right by 2 (a over b and c), right by 2, wrong 0.5 - 2, right 2 - 0.5, wrong 0 - 2.
    assert found["mean_margin"] == pytest.approx((2 + 2 - 1.5 + 1.5 - 2) / 5)
    assert found["stop_token_decides"] == 3 and found["ties"] == 0
    assert [m["margin"] for m in found["mistakes"]] == [-2.0, -1.5]


def test_how_likely_any_option_is_stands_beside_which_is_likelier():
    """Probabilities 0.3 and 0.2, and 0.001 and 0.003: together 0.5 and 0.004."""
    questions = [choices.Question(row("a", i), 0, Sample([], i)) for i in range(2)]
    scores = [[math.log(0.3), math.log(0.2)], [math.log(0.001), math.log(0.003)]]
    found = choices.report(["a", "b"], questions, [choices.Decision(s, s) for s in scores], True)
    likely = found["probability"]
    assert (likely["mean"], likely["least"]) == (pytest.approx(0.252), pytest.approx(0.004))
    assert likely["interval_95"][0] <= 0.252 <= likely["interval_95"][1]
    assert found["accuracy"] == 0.5


def test_the_first_of_equal_options_wins():
    assert choices.Decision([1.0, 1.0], [0.0, 1.0]).chosen == 0
