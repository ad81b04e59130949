"""Predictors that need no language model: formulas are found and named, unseen rows are unseen,
noise is not explained."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tunewright.core.types import Conversation, Message, Origin
from tunewright.evaluate import baseline
from tunewright.rewards.numeric import numbers_with_words

ENGLISH = "Machine with power {} kW, weight {} kg and price {} euros. Score?"
CHINESE = "机器功率{}千瓦，重量{}公斤，价格{}元。评分？"


def machines(
    score: Callable[[float, int, int], float],
    *,
    form: str = ENGLISH,
    decimals: int = 1,
    count: int = 120,
    noise: float = 0.0,
) -> tuple[list[str], list[float]]:
    draw = random.Random(0)
    texts, values = [], []
    for _ in range(count):
        a, b, c = round(draw.uniform(1, 100), 1), draw.randint(5, 900), draw.randint(100, 9000)
        texts.append(form.format(a, b, c))
        values.append(round(score(a, b, c) + draw.gauss(0, noise), decimals))
    return texts, values


def linear(a: float, b: int, c: int) -> float:
    return 0.5 * a + 0.3 * b - 0.02 * c + 7


@pytest.mark.parametrize("decimals", [0, 1, 3])
@pytest.mark.parametrize(
    ("form", "names"), [(ENGLISH, "power weight price"), (CHINESE, "机器功率 重量 价格")]
)
def test_a_linear_formula_is_found_and_written_as_it_was_made(
    decimals: int, form: str, names: str
) -> None:
    found = baseline.compared(*machines(linear, form=form, decimals=decimals))
    a, b, c = names.split()
    # With whole numbers the third digit of a coefficient is not known.
    expected = f"0.5·{a} + 0.3·{b} - 0.02·{c} + 7"
    assert (found.exact, found.suffices) == ("linear", "formula")
    assert found.unit == 10.0 ** -min(decimals, 2)  # what the formula gives has two digits
    if decimals:
        assert found.formula == expected


def test_the_columns_are_found_in_any_order() -> None:
    texts, values = machines(linear)
    turned = []
    for i, text in enumerate(texts):
        a, b, c = (float(v) for v, _ in numbers_with_words(text))
        parts = [f"power {a}", f"weight {b:g}", f"price {c:g}"]
        turned.append(", ".join(parts[i % 3 :] + parts[: i % 3]))
    found = baseline.compared(turned, values)
    assert found.formula == "0.5·power + 0.3·weight - 0.02·price + 7"


def test_numbers_without_words_are_columns_by_place() -> None:
    texts, values = machines(linear, form="{} / {} | {}")
    assert baseline.compared([t.replace(" / ", "; ") for t in texts], values).exact == "linear"


def test_a_product_and_a_square_are_found() -> None:
    product = baseline.compared(*machines(lambda a, b, c: a * b / c, decimals=3))
    assert product.exact == "powers"
    assert product.formula == "1 · power · weight · price^-1"
    square = baseline.compared(*machines(lambda a, b, c: a * b + c))
    assert (square.exact, square.formula) == ("quadratic", "1·price + 1·power·weight")


def test_wrong_rows_do_not_hide_a_formula() -> None:
    texts, values = machines(linear)
    for i in (3, 40, 77):
        values[i] += 300.0
    found = baseline.compared(texts, values)
    assert found.exact == "linear"
    assert found.formula == "0.5·power + 0.3·weight - 0.02·price + 7"


def test_a_rule_without_a_formula_needs_a_small_regressor() -> None:
    found = baseline.compared(
        *machines(lambda a, b, c: 10.0 * (a > 50) + 5.0 * (b > 300), count=300)
    )
    assert (found.exact, found.best, found.suffices) == (None, "trees", "regressor")


def test_noise_is_not_explained() -> None:
    found = baseline.compared(*machines(lambda a, b, c: 0.0, noise=10.0))
    assert found.suffices is None
    assert found.explained < 0.1
    assert found.best == "constant"


def test_a_noisy_formula_is_no_exact_one() -> None:
    found = baseline.compared(*machines(linear, noise=10.0))
    assert (found.exact, found.best, found.suffices) == (None, "linear", "regressor")


def test_unseen_rows_are_unseen() -> None:
    """Words that name the value of one row only would give it away."""
    draw = random.Random(1)
    texts = [f"item {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)] * 2
    values = [float(draw.randint(0, 100)) for _ in range(60)] * 2
    assert baseline.compared(texts, values).explained < 0.1  # the same text is in one fold


def test_figures_predict_new_rows_by_the_best() -> None:
    texts, values = machines(linear, count=80)
    new = [ENGLISH.format(10.0, 100, 1000), ENGLISH.format(20.5, 7, 300)]
    found = baseline.figures(texts, values, new)
    assert found == pytest.approx([22.0, 13.35], abs=0.06)
    assert baseline.figures(texts, values, []) == []


def test_words_carry_a_value() -> None:
    draw = random.Random(2)
    worth = {"gold": 90.0, "silver": 50.0, "copper": 10.0, "iron": 5.0}
    names = [draw.choice(list(worth)) for _ in range(100)]
    texts = [f"a ring of {name}, {draw.choice('ab')}" for name in names]
    found = baseline.compared(texts, [worth[n] + draw.gauss(0, 1) for n in names])
    assert (found.best, found.suffices) == ("words", "regressor")


def test_same_seed_same_figures() -> None:
    texts, values = machines(lambda a, b, c: 10.0 * (a > 50) + b, noise=3.0)
    one, two = (baseline.compared(texts, values, seed=4) for _ in range(2))
    assert one.predictions == two.predictions


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [1.0, 2.0, 3.0], [5.0] * 40])
def test_few_or_equal_values_are_no_formula(values: list[float]) -> None:
    found = baseline.compared([f"row {i}" for i in range(len(values))], values)
    assert found.suffices is None or len(set(values)) > 2
    assert len(baseline.figures([f"row {i}" for i in range(len(values))], values, ["row 9"])) == 1


def test_numbers_of_any_size_are_read() -> None:
    texts = [f"x {i} y {'9' * 350}" for i in range(30)]
    assert all(map(math.isfinite, baseline.figures(texts, [float(i) for i in range(30)], texts)))


# ---- labels


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        ([("a good film", "1"), ("a great film", "1"), ("a bad film", "0"), ("an awful film", "0")],
         [("really great", "1"), ("awful, awful", "0")]),
        ([("这部电影很好看", "好"), ("很精彩的电影", "好"), ("太难看了", "坏"), ("难看又无聊", "坏")],
         [("非常精彩", "好"), ("无聊", "坏")]),
    ],
)  # fmt: skip
def test_labels_are_learnt_from_words_of_any_language(
    rows: list[tuple[str, str]], asked: list[tuple[str, str]]
) -> None:
    texts, labels = zip(*rows, strict=True)
    assert baseline.classes(texts, labels, [t for t, _ in asked]) == [label for _, label in asked]


def test_labels_equal_scikit_learns_own_pipeline() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    draw = random.Random(3)
    words = ["good", "bad", "film", "plot", "actor", "dull", "bright"]
    texts = [" ".join(draw.choices(words, k=6)) for _ in range(90)]
    labels = ["1" if "good" in t else "0" for t in texts]
    oracle = make_pipeline(
        make_union(
            TfidfVectorizer(
                ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b|[^\w\s]", sublinear_tf=True
            ),
            TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True),
        ),
        LogisticRegression(C=10.0, max_iter=2000),
    ).fit(texts[:60], labels[:60])
    assert baseline.classes(texts[:60], labels[:60], texts[60:]) == list(oracle.predict(texts[60:]))


@pytest.mark.parametrize("texts", [["a", "b"], ["", " "]])
def test_one_label_or_no_words_give_the_most_frequent(texts: list[str]) -> None:
    assert baseline.classes(texts, ["x", "x"], ["q"]) == ["x"]
    assert baseline.classes(["", "", ""], ["x", "y", "y"], ["q", "r"]) == ["y", "y"]


def test_constants() -> None:
    assert baseline.constant(["b", "a", "a"]) == "a"
    assert baseline.constant([3, 1, 2]) == 2
    assert baseline.constant([4.0, 1.0]) == 2.5
    assert baseline.constant([1.0, 2.0, 6.0], by="mean") == 3.0
    assert baseline.constant([1, 1, 5], by="most") == 1
    for values in ([], ()):
        with pytest.raises(ValueError, match="no values"):
            baseline.constant(values)
    with pytest.raises(ValueError, match="0 texts"):
        baseline.classes([], [], ["a"])
    with pytest.raises(ValueError, match="1 texts"):
        baseline.figures(["a"], [], ["a"])


def test_what_a_predictor_reads_is_what_the_person_said() -> None:
    turns = [
        ("system", "Be kind."),
        ("user", "one"),
        ("assistant", "x"),
        ("user", "two"),
        ("assistant", "y"),
    ]
    row = Conversation([Message(role, text) for role, text in turns], Origin("f", 1, 1))
    assert baseline.question_text(row) == "one\ntwo"


def test_numbers_come_with_the_words_before_them() -> None:
    found = [(float(v), w) for v, w in numbers_with_words("power −1,200.5 kW; 3/4 and A7, ２ 个")]
    assert found == [(-1200.5, "power "), (0.75, " kW; "), (2.0, " and A7, ")]
