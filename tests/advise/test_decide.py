"""The decision tree over figures: what each construction makes right, and what must not decide."""

from __future__ import annotations

from statistics import mean, pstdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.advise.decide import (
    ASKED,
    NODES,
    QUERIES,
    Figures,
    Gain,
    Score,
    Verdict,
    decide,
    enough,
)
from tunewright.commands.advising import picture
from tunewright.evaluate.interval import wilson

ROWS = 32
WAYS = (*ASKED, *QUERIES, "classes", "constant", "formula")


def rows_of(right: int) -> list[float]:
    """`right` of the 32 rows right: the same ones first, as hard rows are hard for every way."""
    return [1.0] * right + [0.0] * (ROWS - right)


def score(right: int) -> Score:
    return Score(right / ROWS, *wilson(right, ROWS))


def between(a: list[float], b: list[float]) -> Gain:
    """The difference with the normal interval, which is exact enough for rows that are told."""
    differences = [y - x for x, y in zip(a, b, strict=True)]
    half = 1.96 * pstdev(differences) / len(differences) ** 0.5
    return Gain(mean(differences), mean(differences) - half, mean(differences) + half)


def figures(forms: dict[str, int] | None = None, **more: Any) -> Figures:
    """Figures from counts of right rows by way; everything else as named."""
    counts = {name: more.pop(name) for name in WAYS if isinstance(more.get(name), int)}
    lists = {way: rows_of(count) for way, count in counts.items()}
    formed = {way: rows_of(count) for way, count in (forms or {}).items()}

    def gain(values: dict[str, list[float]], a: str, b: str) -> Gain | None:
        return between(values[a], values[b]) if a in values and b in values else None

    return Figures(
        scores={way: score(count) for way, count in counts.items()},
        gain=lambda a, b: gain(lists, a, b),
        rows=more.pop("rows", 120),
        forms={way: score(count) for way, count in (forms or {}).items()},
        form_gain=lambda a, b: gain(formed, a, b),
        **more,
    )


FOUND = {"found": Score(0.95, 0.85, 0.99), "found_gain": Gain(0.9, 0.8, 0.97)}
BY_CHANCE = {"found": Score(0.5, 0.33, 0.67), "found_gain": Gain(0.02, -0.05, 0.1)}
DOCS = {"has_documents": True, **FOUND}


@pytest.mark.parametrize(
    ("measured", "branch", "way"),
    [
        # knowledge in documents
        ({"base": 0, "few_fixed": 0, "few_retrieved": 0, "rag": 14, "lora": 0, "lora_rag": 3, **DOCS}, "rag", "rag"),
        ({"base": 0, "few_fixed": 0, "rag": 28, **DOCS}, "rag", "rag"),
        # a weak reader: the passages hold everything and nothing else does
        ({"base": 0, "few_fixed": 1, "rag": 3, "lora": 1, **DOCS}, "rag", "rag"),
        # passages and training together
        ({"base": 0, "few_fixed": 0, "rag": 14, "lora": 2, "lora_rag": 30, **DOCS}, "rag_and_tune", "lora_rag"),
        # training teaches it as well: where it stays, train; where it changes, do not
        ({"base": 0, "few_fixed": 0, "rag": 24, "lora": 25, "rows": 2000, "changes": "rarely", **DOCS}, "stable", "lora"),
        ({"base": 0, "few_fixed": 0, "rag": 24, "lora": 25, "rows": 2000, "changes": "often", **DOCS}, "rag", "rag"),
        ({"base": 0, "few_fixed": 0, "rag": 24, "lora": 25, "rows": 2000, **DOCS}, "rag", "rag"),
        ({"base": 0, "few_fixed": 0, "rag": 10, "lora": 28, **DOCS}, "rag", "rag"),
        ({"base": 0, "few_fixed": 0, "rag": 10, "lora": 28, "changes": "rarely", **DOCS}, "stable", "lora"),
        ({"base": 0, "few_fixed": 0, "rag": 10, "lora": 28, "rows": 900, **DOCS}, "stable", "lora"),
        ({"base": 0, "few_fixed": 0, "rag": 10, "lora": 28, **FOUND}, "stable", "lora"),
        # yes or no from documents
        ({"base": 14, "few_fixed": 15, "few_retrieved": 16, "rag": 29, "lora": 17, "has_documents": True, "labels": 2, "classes": 16, "constant": 16}, "rag", "rag"),
        ({"base": 0, "few_fixed": 0, "rag": 10, "lora": 28, "changes": "often", **DOCS}, "rag", "rag"),
        # documents that hold what any text holds are no evidence
        ({"base": 0, "few_fixed": 20, "rag": 22, "lora": 22, "has_documents": True, **BY_CHANCE}, "format", "few_fixed"),
        # a format
        ({"base": 0, "few_fixed": 28, "few_retrieved": 27, "rag": 26, "lora": 30, "beyond": 0.0}, "format", "few_fixed"),
        ({"base": 0, "few_fixed": 10, "few_retrieved": 12, "rag": 9, "lora": 31, "beyond": 0.0}, "format", "lora"),
        ({"base": 0, "few_fixed": 0, "rag": 0, "lora": 24}, "format", "lora"),
        # a skill that is there
        ({"base": 31}, "has_it", "base"),
        ({"base": 32, "formula": 32, "suffices": "formula"}, "has_it", "base"),
        ({"base": 22, "few_fixed": 14, "few_retrieved": 15, "rag": 20, "lora": 23}, "has_it", "base"),
        # one that is half there is better with examples, and needs no training
        ({"base": 17, "few_fixed": 30, "lora": 31}, "format", "few_fixed"),
        # tables
        ({"base": 0, "few_fixed": 1, "rag": 3, "lookup": 30, "sql": 0, "has_tables": True}, "query", "lookup"),
        ({"base": 0, "few_fixed": 1, "rag": 3, "lookup": 0, "sql": 25, "has_tables": True}, "query", "sql"),
        ({"base": 0, "few_fixed": 1, "rag": 2, "lora": 1, "lookup": 1, "has_tables": True, "reached": Score(0.9, 0.76, 0.97), "reached_gain": Gain(0.8, 0.6, 0.9)}, "query", "lookup"),
        # a table that holds every small number by chance is no evidence
        ({"base": 0, "few_fixed": 20, "lookup": 1, "has_tables": True, "reached": Score(0.9, 0.76, 0.97), "reached_gain": Gain(0.03, -0.1, 0.1)}, "format", "few_fixed"),
        # no language model
        ({"base": 0, "suffices": "formula", "formula": "2·x", "explained": 1.0}, "no_model", "formula"),
        ({"base": 0, "suffices": "regressor", "explained": 0.95}, "no_model", "regressor"),
        ({"base": 18, "formula": 32, "suffices": "formula"}, "no_model", "formula"),
        ({"base": 12, "few_fixed": 15, "lora": 29, "classes": 30, "constant": 12, "labels": 3}, "no_model", "classes"),
        ({"base": 12, "few_fixed": 15, "lora": 30, "classes": 18, "constant": 12, "labels": 3}, "format", "lora"),
        # nothing
        ({"base": 1, "few_fixed": 2, "few_retrieved": 1, "rag": 2, "lora": 3}, "nothing", "lora"),
    ],
)  # fmt: skip
def test_each_construction_reaches_its_leaf(
    measured: dict[str, Any], branch: str, way: str
) -> None:
    verdict = decide(figures(**measured))
    assert (verdict.branch, verdict.way) == (branch, way)


def test_a_difference_within_chance_decides_nothing() -> None:
    few = figures(base=16, few_fixed=18)
    gain = few.gain("base", "few_fixed")
    assert gain is not None and not gain.is_real
    assert decide(few).branch == "has_it"


def test_a_sure_but_small_difference_decides_nothing() -> None:
    many = 1000
    a, b = [1.0] * 600 + [0.0] * 400, [1.0] * 650 + [0.0] * 350
    gain = between(a, b)
    assert gain.low > 0 and not gain.is_real and len(a) == many


def test_a_model_no_better_than_one_answer_for_all_has_no_skill() -> None:
    verdict = decide(figures(base=20, constant=20, few_fixed=20, lora=20, classes=20, labels=2))
    assert verdict.branch == "nothing"


def test_the_form_is_had_by_a_prompt_only_where_the_prompt_keeps_what_is_known() -> None:
    kept = figures({"base": 0, "few_fixed": 29}, base=30, few_fixed=29)
    lost = figures({"base": 0, "few_fixed": 14, "lora": 28}, base=30, few_fixed=14, lora=28)
    assert (decide(kept).branch, decide(kept).way) == ("has_it", "few_fixed")
    assert (decide(lost).branch, decide(lost).way) == ("has_it", "base")
    assert any("88 %" in text for text in decide(lost).remarks)


def test_what_nobody_said_is_said_to_be_assumed() -> None:
    measured = {"base": 0, "few_fixed": 0, "rag": 20, "lora": 0, **DOCS}
    assert len(decide(figures(**measured)).assumed) == 2
    assert decide(figures(**measured, changes="often", users=3)).assumed == []


def test_many_users_hear_what_a_long_prompt_costs() -> None:
    verdict = decide(figures(base=0, few_fixed=28, lora=29, users=50_000))
    assert any("50,000" in text for text in verdict.remarks)


def test_a_classifier_that_does_as_well_is_mentioned_beside_a_model_that_can() -> None:
    verdict = decide(figures(base=32, few_fixed=32, classes=32, constant=16, labels=2))
    assert verdict.branch == "has_it" and len(verdict.remarks) == 2  # and a smaller model may do


def test_measuring_stops_where_nothing_is_left_to_gain() -> None:
    assert enough(figures(base=32))
    assert not enough(figures(base=26))  # its interval reaches below what is good
    assert enough(figures(base=0, suffices="formula"))
    assert enough(figures(base=0, few_fixed=0, lookup=32, has_tables=True))
    assert not enough(figures(base=0, lookup=32, has_tables=True))  # examples are cheap
    assert not enough(figures(base=0, few_fixed=0, rag=20, **DOCS))


COUNTS = st.integers(0, ROWS)


@settings(max_examples=150)
@given(
    base=COUNTS,
    others=st.dictionaries(st.sampled_from(WAYS[1:]), COUNTS),
    forms=st.dictionaries(st.sampled_from(ASKED), COUNTS),
    docs=st.sampled_from([{}, DOCS, {"has_documents": True, **BY_CHANCE}, FOUND]),
    tables=st.sampled_from([{}, {"has_tables": True}, {"has_tables": True, "reached": Score(0.9, 0.8, 1.0), "reached_gain": Gain(0.8, 0.7, 0.9)}]),
    labels=st.sampled_from([0, 3]),
    changes=st.sampled_from([None, "often", "rarely"]),
)  # fmt: skip
def test_whatever_was_measured_there_is_one_verdict_and_its_path_leads_there(
    base: int, others: dict[str, int], forms: dict[str, int], docs: Any, tables: Any, labels: int, changes: Any
) -> None:  # fmt: skip
    measured = {"base", *others}
    forms = {way: count for way, count in forms.items() if way in measured}
    given_ = figures(forms, base=base, **others, **docs, **tables, labels=labels, changes=changes)
    verdict = decide(given_)
    assert verdict.way in given_.scores or verdict.way == "sql"
    assert [step.answer for step in verdict.path].count(True) == (verdict.branch != "nothing")
    assert all(step.answer is not True for step in verdict.path[:-1])
    # A way that was left behind is nowhere better than the chosen one by its whole interval.
    if verdict.branch == "has_it":
        rivals = [given_.gain("base", way) for way in ("few_fixed", "rag", "lora") if way in others]
        assert not any(gain is not None and gain.is_real for gain in rivals)
    assert all(line for line in picture.text(verdict))
    assert "taken" in picture.svg(verdict)


def test_the_picture_marks_one_leaf_and_every_question_of_the_path() -> None:
    verdict = decide(figures(base=0, few_fixed=0, rag=20, lora=0, **DOCS))
    drawn = picture.svg(verdict)
    assert drawn.count('class="taken"') == 1
    assert drawn.count('<g class="on"') == len(verdict.path)
    lines = picture.text(verdict)
    assert sum("▶" in line for line in lines) == 1
    assert "RAG" in next(line for line in lines if "▶" in line)
    assert [step.node for step in verdict.path] == list(NODES[: len(verdict.path)])
    assert verdict.path[2].answer is None  # no labels, so no classifier


def test_lines_of_chinese_are_as_wide_as_they_look() -> None:
    assert picture.wrapped("检索到的段落里有答案", 8) == ["检索到的", "段落里有", "答案"]


def test_a_verdict_for_machines_has_its_words_and_its_path() -> None:
    verdict: Verdict = decide(figures(base=32))
    made = verdict.as_dict()
    assert made["branch"] == "has_it" and made["rule"].startswith("the model has the skill")
    assert [step["node"] for step in made["path"]] == ["has_it"]
