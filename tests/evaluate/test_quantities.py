"""Answers that are numbers: errors and ranks by independent means, who wins against what needs no
language model, and the best of several candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from helpers.building import codes

from tunewright.core.errors import UsageError
from tunewright.core.types import Conversation, Message, Origin
from tunewright.evaluate import baseline, quantities
from tunewright.evaluate.quantities import are_quantities, groups_of, lines, spearman, top_1


def rows_of(values: Sequence[Any], texts: Sequence[str] | None = None) -> list[Conversation]:
    return [
        Conversation(
            [
                Message("system", "Be short."),
                Message("user", texts[i] if texts else f"row {i}"),
                Message("assistant", str(value)),
            ],
            Origin("f.jsonl", i + 1, i + 1),
        )
        for i, value in enumerate(values)
    ]


def measure(rows: Sequence[Conversation], answers: Sequence[str], **how: Any) -> Any:
    texts = [baseline.question_text(row) for row in rows]
    return quantities.measure([row.answer() for row in rows], answers, texts, **how)


def machines(count: int = 80) -> tuple[list[str], list[float]]:
    draw = random.Random(1)
    texts, values = [], []
    for _ in range(count):
        a, b, c = draw.randint(1, 90), draw.randint(1, 90), draw.randint(1, 90)
        texts.append(f"power {a}, weight {b}, price {c}")
        values.append(round(0.5 * a + 0.3 * b - 0.2 * c, 1))
    return texts, values


@pytest.mark.parametrize(
    ("expected", "is_so"),
    [
        ([str(i) for i in range(10)], True),
        ([f"Score: {i}.5 points" for i in range(10)], True),
        ([f"约{i}元" for i in range(10)], True),
        (["0", "1"] * 10, False),  # labels
        ([str(i) for i in range(7)], False),  # too few
        ([str(i) for i in range(10)] + ["none"], True),
        ([str(i) for i in range(8)] + ["none", "-"], False),
        ([f"{i} + {i} = {2 * i}" for i in range(10)], False),
        ([f"First we add. {'x' * 40} #### {i}" for i in range(10)], False),
        ([f"word {chr(97 + i)}" for i in range(10)], False),
    ],
)
def test_numbers_are_told_from_labels_and_solutions(expected: list[str], is_so: bool) -> None:
    assert are_quantities(expected) is is_so


def test_errors_equal_scikit_learns() -> None:
    from sklearn.metrics import mean_absolute_error, median_absolute_error

    draw = random.Random(3)
    expected = [round(draw.uniform(0, 100), 1) for _ in range(60)]
    given = [round(value + draw.gauss(0, 9), 1) for value in expected]
    found = measure(rows_of(expected), [f"It is {value}." for value in given])
    assert found is not None
    assert found["mean_absolute_error"] == pytest.approx(
        mean_absolute_error(expected, given), abs=1e-9
    )
    assert found["median_absolute_error"] == pytest.approx(
        median_absolute_error(expected, given), abs=1e-9
    )
    low, high = found["mean_absolute_error_interval_95"]
    assert low < found["mean_absolute_error"] < high
    assert found["verdict"] == "model"
    assert found["against"]["constant"]["better"]


def test_ranks_equal_the_definition() -> None:
    """Pearson's correlation of ranks, equal values sharing their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    draw = random.Random(5)
    a = [float(draw.randint(0, 9)) for _ in range(40)]
    b = [x + draw.randint(-3, 3) for x in a]
    x, y = ranks(a), ranks(b)
    mx, my = sum(x) / 40, sum(y) / 40
    top = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    bottom = (sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y)) ** 0.5
    value, interval = spearman(a, b)
    assert value == pytest.approx(top / bottom, abs=1e-12)
    assert interval is not None
    assert interval[0] < value < interval[1]


def test_the_interval_of_ranks_covers_what_it_says() -> None:
    import numpy

    rng = numpy.random.default_rng(0)
    truth = 6 / numpy.pi * numpy.arcsin(0.6 / 2)  # Spearman's of a normal pair with correlation 0.6
    hits = 0
    for _ in range(400):
        a, b = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 40).T
        _, interval = spearman(list(a), list(b))
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    assert 0.92 <= hits / 400 <= 0.98


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], None), ([1.0, 2.0, 3.0], [2.0, 4.0, 9.0], 1.0), ([1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0], -1.0)],
)  # fmt: skip
def test_ranks_at_the_ends(a: list[float], b: list[float], expected: float | None) -> None:
    value, interval = spearman(a, b)
    assert value == (None if expected is None else pytest.approx(expected))
    if interval is not None and value is not None:
        assert -1 <= interval[0] <= value <= interval[1] <= 1
        assert interval[1] - interval[0] > 0.1  # a few rows prove little


def test_the_formula_wins_and_it_is_said() -> None:
    texts, values = machines()
    draw = random.Random(2)
    found = measure(rows_of(values, texts), [str(value + draw.gauss(0, 3)) for value in values])
    assert found is not None
    assert (found["verdict"], found["simple"]["suffices"]) == ("simple", "formula")
    text = "\n".join(lines(found))
    assert "WITHOUT A LANGUAGE MODEL IT IS BETTER" in text
    assert "0.5·power + 0.3·weight - 0.2·price" in text


def test_a_model_that_knows_the_formula_is_no_better_than_it() -> None:
    texts, values = machines()
    found = measure(rows_of(values, texts), [str(value) for value in values])
    assert found is not None
    assert found["mean_absolute_error"] == 0
    assert found["simple"]["suffices"] == "formula"


def test_one_constant_is_better_than_wild_guesses() -> None:
    draw = random.Random(4)
    values = [float(draw.randint(0, 9)) for _ in range(60)]
    found = measure(rows_of(values), [str(draw.randint(-90, 90)) for _ in values])
    assert found is not None
    assert found["verdict"] in ("constant", "simple")
    assert found["against"]["constant"]["worse"]


def test_a_model_as_good_as_the_constant_is_not_better() -> None:
    draw = random.Random(4)
    values = [float(draw.randint(0, 9)) for _ in range(60)]
    found = measure(rows_of(values), ["4"] * 60)
    assert found is not None
    assert found["verdict"] == "equal"
    assert found["spearman"] is None
    assert "NOT clearly better" in "\n".join(lines(found))


def test_silence_is_worth_the_constant() -> None:
    values = [float(i) for i in range(20)]
    silent = measure(rows_of(values), ["I do not know"] * 20)
    constant = measure(rows_of(values), ["9.5"] * 20)
    assert silent is not None
    assert constant is not None
    assert silent["without_number"] == 20
    assert silent["mean_absolute_error"] == constant["mean_absolute_error"]
    assert "20 of 20 answers have no number" in "\n".join(lines(silent))


def test_huge_numbers_are_no_answers() -> None:
    found = measure(rows_of(range(10)), ["9" * 60] * 10)
    assert found is not None
    assert found["without_number"] == 10


# ---- the best of several


def test_the_best_of_each_group_is_counted() -> None:
    groups = ["a", "a", "b", "b", "b", "c"]
    expected = [1.0, 2.0, 5.0, 1.0, 3.0, 9.0]
    found = top_1(expected, [10.0, 20.0, 1.0, 9.0, 2.0, 0.0], expected, groups)
    assert found is not None
    assert (found["groups"], found["alone"]) == (2, 1)
    assert found["share"] == 0.5
    assert found["simple"] == 1.0
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    low, high = found["interval_95"]
    assert low <= 0.5 <= high
    lowest = top_1(expected, [-v for v in expected], expected, groups, highest=False)
    assert lowest is not None
    assert lowest["share"] == 0.0


def test_equal_candidates_share_the_point() -> None:
    tied = top_1([1.0, 2.0, 3.0], [7.0, 7.0, 7.0], [0.0, 0.0, 1.0], ["a"] * 3)
    assert tied is not None
    assert tied["share"] == pytest.approx(1 / 3)
    assert top_1([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], ["a", "b"]) is None


def test_groups_come_from_a_column() -> None:
    rows = rows_of(range(10))
    columns = {row.origin: {"lot": i // 2, "other": None} for i, row in enumerate(rows)}
    origins = [row.origin for row in rows]
    groups = groups_of(origins, columns, "lot")
    assert groups == [str(i // 2) for i in range(10)]
    found = measure(rows, [str(i) for i in range(10)], groups=groups)
    assert found is not None
    assert found["top_1"]["share"] == 1.0
    assert "best of several: found in 100 % of 5 groups" in "\n".join(lines(found))
    with pytest.raises(UsageError) as caught:
        groups_of(origins, columns, "other")
    assert codes(caught.value) == ["E-EXAM-10"]
    with pytest.raises(UsageError) as caught:
        measure(rows_of(["yes", "no"] * 5), ["yes"] * 10, groups=groups)
    assert codes(caught.value) == ["E-EXAM-11"]


def test_what_is_no_number_is_not_measured() -> None:
    assert measure(rows_of(["yes", "no"] * 5), ["yes"] * 10) is None
    assert quantities.LEAST_ROWS > 2
