"""Reward functions give what their docs say, on answers of every kind; wrong ones are named, never
replaced by a number."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright import rewards
from tunewright.core.errors import ConfigError, Interrupted, TrainingError, UsageError, problem
from tunewright.core.types import Answer, Message, Origin
from tunewright.rewards import schema
from tunewright.rewards.measuring import SCRIPTS, share_in_script
from tunewright.rewards.numeric import final_number
from tunewright.rewards.structure import Template

ROOT = Path(__file__).parents[2]


def answer(
    text: str, *, tokens: int = 5, finished: bool = True, row: int = 1, **facts: Any
) -> Answer:
    return Answer(
        [Message("user", "?")], text, tokens, finished, facts, Origin("rows.jsonl", row, row)
    )


def value(spec: Any, text: str, **more: Any) -> float | None:
    """What one function says about one answer."""
    (values,) = rewards.read(spec).score([answer(text, **more)]).parts.values()
    return values[0]


def codes(spec: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        rewards.read(spec)
    return [p.code for p in caught.value.problems]


# ---- matching


@pytest.mark.parametrize(
    ("options", "text", "expected", "worth"),
    [
        ({}, " Paris\n", "Paris", 1), ({}, "paris", "Paris", 0), ({"ignore_case": True}, "pARIS", "Paris", 1), ({"ignore_case": True}, "STRASSE", "straße", 1),
        ({}, "New  York", "New York", 0), ({"ignore_space": True}, "New \n York", "NewYork", 1), ({"ignore_punctuation": True}, "«Paris!»", "Paris", 1),
        ({"ignore_punctuation": True}, "北京。", "北京", 1), ({"ignore_punctuation": True}, "3.5", "35", 0), ({}, "42", 42, 1), ({}, "B", ["A", "B"], 1), ({}, "C", ["A", "B"], 0), ({}, "", "x", 0),
        ({"inside": "answer"}, "<answer>no</answer> so <answer> Paris </answer>.", "Paris", 1), ({"inside": "answer"}, "Paris", "Paris", 0),
        ({"inside": "answer"}, "<answer>Paris", "Paris", 0), ({"inside": "answer"}, "</answer><answer>", "Paris", 0),
    ],
)  # fmt: skip
def test_exact_match_ignores_what_it_is_told_to(
    options: dict[str, Any], text: str, expected: Any, worth: float
) -> None:
    assert value({"kind": "exact_match", **options}, text, answer=expected) == worth


@pytest.mark.parametrize(
    ("options", "text", "worth"),
    [
        ({"texts": ["red", "blue"]}, "a blue car", 1), ({"texts": ["red", "blue"]}, "a car", 0), ({"texts": ["red", "blue"], "mode": "all"}, "a blue car", 0),
        ({"texts": ["red", "blue"], "mode": "share"}, "a blue car", 0.5), ({"texts": ["red", "blue"], "mode": "none"}, "a blue car", 0),
        ({"texts": ["red"], "mode": "none"}, "a blue car", 1), ({}, "the keeper is Tamsin.", 1), ({"column": "who"}, "it is Odric", 1),
    ],
)  # fmt: skip
def test_contains_looks_for_one_all_or_none_of_its_texts(
    options: dict[str, Any], text: str, worth: float
) -> None:
    assert value({"kind": "contains", **options}, text, answer="Tamsin", who="Odric") == worth


def test_regex_matches_as_python_does_with_the_rows_own_pattern_too() -> None:
    assert value({"kind": "regex", "pattern": r"^\d{4}$"}, "in 1984") == 0
    assert value({"kind": "regex", "pattern": r"\d{4}"}, "in 1984") == 1
    assert value({"kind": "regex", "pattern": r"\d{4}", "mode": "fullmatch"}, " 1984\n") == 1
    assert value({"kind": "regex", "pattern": "^b", "multiline": True}, "a\nb") == 1
    assert (
        value({"kind": "regex", "pattern": "A.B", "dot_all": True, "ignore_case": True}, "a\nb")
        == 1
    )
    assert value("regex", "one\udcfftwo", pattern="e.t") == 1  # half a character passes the pipe
    set_ = rewards.read(["regex", "finished"])
    assert set_.score([answer("x")]).parts["regex"] == [
        None
    ]  # a row without a pattern is not judged


def test_a_pattern_that_would_take_years_is_stopped_and_the_next_one_works() -> None:
    patterns = rewards.read(
        {"kind": "regex", "pattern": "(a+)+$", "seconds": 0.3, "on_bad": "skip"}
    )
    scores = patterns.score([answer("aaa"), answer("a" * 60 + "b", row=7), answer("ba")])
    assert scores.parts["regex"] == [1, None, 1]
    assert [(i, name) for i, name, _ in scores.bad] == [(1, "regex")] and "0.3 s" in scores.bad[0][
        2
    ]
    assert math.isnan(scores.total[1]) and scores.total[0] == scores.total[2] == 1


@given(
    st.text("ab<>() \n", max_size=12),
    st.sampled_from([r"a+b", r"<(a|b)>", r"^\s*a", r"(ab)*$", r"[^a]{3}"]),
    st.sampled_from(["search", "fullmatch"]),
)
@settings(max_examples=60, deadline=None)
def test_regex_agrees_with_re_itself(text: str, pattern: str, mode: str) -> None:
    expected = re.search(pattern, text) if mode == "search" else re.fullmatch(pattern, text.strip())
    assert value({"kind": "regex", "pattern": pattern, "mode": mode}, text) == float(
        expected is not None
    )


# ---- numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 5 + 7.\n#### 12", 12), ("#### 1,234,567", 1234567), ("#### $1,080.", 1080), ("#### 3 of 4", 3), ("12 then 13", 13),
        (r"so \boxed{\frac{3}{4}}. Check 9", Fraction(3, 4)), (r"\boxed{x = -\dfrac{1}{2}}", Fraction(-1, 2)), (r"\boxed{1{,}000}", 1000),
        (r"\boxed{\text{about } {7}} 8", 7), (r"\boxed{}", None), (r"\boxed{none} 5", 5), ("3/4", Fraction(3, 4)), ("1 1/2 cups", Fraction(3, 2)),
        ("1½ cups", Fraction(3, 2)), ("half: ½", Fraction(1, 2)), ("the sum is -5.", -5), ("10-3", 3), ("costs -$5", -5), ("−7 °C", -7), ("pages 10–20", 20),
        ("3.14159", Fraction("3.14159")), (".5", Fraction(1, 2)), ("well...42", 42), ("Total: 42.", 42), ("1e-3", Fraction(1, 1000)),
        ("it is 1e5.", 100000), (r"2 \times 10^{5}", 200000), ("2×10^3", 2000), ("50%", 50), ("１２３", 123), ("共42个", 42), ("x2 and H2O", None), ("10 m²", 10),
        ("none at all", None), ("1/0", None), ("6 then 1/0", 6), ("9" * 5000, None), ("1e999999999", None), ("a list: 1,2,3", 3), ("12,34", 34), ("", None),
    ],
)  # fmt: skip
def test_the_last_number_is_read_as_people_write_it(text: str, number: Any) -> None:
    assert final_number(text) == number


@given(
    st.fractions(max_denominator=500).map(lambda f: f.limit_denominator(500)),
    st.sampled_from(["plain", "latex", "decimal", "thousands"]),
)
def test_a_number_that_was_written_down_is_read_back(number: Fraction, how: str) -> None:
    top, bottom = abs(number.numerator), number.denominator
    sign = "-" if number < 0 else ""
    written = {
        "plain": f"{sign}{top}/{bottom}",
        "latex": rf"${sign}\frac{{{top}}}{{{bottom}}}$",
        "decimal": f"{sign}{top / 64}",
        "thousands": f"{sign}{top:,}",
    }[how]
    meant = {
        "decimal": (-1 if sign else 1) * Fraction(f"{top / 64}"),
        "thousands": Fraction(number.numerator),
    }.get(how, number)
    assert final_number(f"First 17, then we see that it is {written}.") == meant


@given(st.text("0123456789.,-/ e\\frac{}#boxed%", max_size=200))
def test_no_text_breaks_the_reading_of_numbers(text: str) -> None:
    assert final_number(text) is None or isinstance(final_number(text), Fraction)


def test_numeric_compares_within_its_tolerance() -> None:
    assert value("numeric", "so 42", answer="long way\n#### 42") == 1
    assert value("numeric", "0.333", answer="1/3") == 0
    assert value({"kind": "numeric", "tolerance": 0.001}, "0.333", answer="1/3") == 1
    assert value({"kind": "numeric", "relative": 0.01}, "1009", answer=1000) == 1
    assert value({"kind": "numeric", "relative": 0.01}, "1011", answer=1000) == 0
    assert value("numeric", "no idea", answer=3) == 0
    assert value({"kind": "numeric", "inside": "answer"}, "<answer>7</answer> or 8", answer=7) == 1
    with pytest.raises(TrainingError, match=r"rows\.jsonl:9"):
        rewards.read("numeric").score([answer("3", row=9, answer="three")])


# ---- structure

JUDGED: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": "integer"}, [1, -3, 2.0, 0], [0.5, True, "1", None, [], {}]),
    ({"type": "number"}, [1, 0.5], [True, "1"]),
    ({"type": ["null", "boolean"]}, [None, True], [0, "", []]),
    ({"type": "string"}, ["", "a"], [1, ["a"]]),
    ({"type": "array"}, [[], [1]], [{}, "a"]),
    ({"type": "object"}, [{}], [[], None]),
    ({"enum": [1, "a", [True]]}, [1, 1.0, "a", [True]], [True, "b", [1]]),
    ({"const": {"a": 1}}, [{"a": 1.0}], [{"a": True}, {"a": 1, "b": 2}]),
    ({"properties": {"a": {"type": "string"}}}, [{}, {"a": "x", "b": 1}, 7], [{"a": 1}]),
    ({"properties": {"a": {}}, "additionalProperties": False}, [{"a": 1}, []], [{"b": 1}]),
    ({"additionalProperties": {"type": "null"}}, [{"b": None}], [{"b": 0}]),
    ({"required": ["a"]}, [{"a": None}, "no object"], [{}, {"b": 1}]),
    ({"minProperties": 1, "maxProperties": 2}, [{"a": 1}, 3], [{}, {"a": 1, "b": 2, "c": 3}]),
    ({"items": {"type": "integer"}}, [[], [1, 2.0], {"0": "x"}], [[1, "2"]]),
    ({"items": False}, [[]], [[0]]),
    ({"minItems": 1, "maxItems": 2}, [[1], "text"], [[], [1, 2, 3]]),
    ({"uniqueItems": True}, [[1, True, "1"], [[1], [True]]], [[1, 1.0], [{"a": 1}, {"a": 1}]]),
    ({"minimum": 1, "maximum": 2}, [1, 2, 1.5, "3"], [0.5, 2.5]),
    ({"exclusiveMinimum": 1, "exclusiveMaximum": 2}, [1.5, True], [1, 2]),
    ({"minLength": 1, "maxLength": 2}, ["a", "\U0001f600", 7], ["", "abc"]),
    ({"anyOf": [{"type": "null"}, {"minimum": 3}]}, [None, 3, "a"], [2]),
    ({"allOf": [{"minimum": 1}, {"maximum": 1}]}, [1, "a"], [2, 0]),
    ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, [0, 3], [1.5, "a"]),
    ({"not": {"type": "null"}, "title": "t"}, [1], [None]),
]
"""(schema, values that follow it, values that do not), by hand from JSON Schema 2020-12."""


@pytest.mark.parametrize(("rule", "good", "bad"), JUDGED)
def test_every_keyword_of_the_subset_judges_as_the_standard_says(
    rule: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    assert schema.faults(rule) == []
    for worth, values in ((1, good), (0, bad)):
        for made in values:
            assert value({"kind": "json_schema", "schema": rule}, json.dumps(made)) == worth, made


def test_no_keyword_of_the_subset_is_untested() -> None:
    assert {key for rule, _, _ in JUDGED for key in rule} - schema.NOTES == set(schema.KEYWORDS)


def test_json_schema_takes_json_and_nothing_else() -> None:
    rule = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    }
    spec = {"kind": "json_schema", "schema": rule}
    assert value(spec, ' {"name": "Ada", "age": 36} ') == 1
    assert value(spec, '```json\n{"name": "Ada"}\n```') == 1
    assert value({**spec, "fenced": False}, '```json\n{"name": "Ada"}\n```') == 0
    for wrong in (
        '{"name": 3}',
        '{"age": 3}',
        '{"name": "Ada", "age": -1}',
        "{name: Ada}",
        'Sure! {"name": "Ada"}',
        "",
        "[" * 100_000,
        "NaN",
    ):
        assert value(spec, wrong) == 0, wrong[:20]
    for plain in ("NaN", "Infinity", "{'a': 1}", '{"a": 1,}', "1 2"):
        assert value("json_schema", plain) == 0
    assert value("json_schema", "9" * 5000) == 1
    assert value("json_schema", "[1]", schema='{"type": "array"}') == 1
    assert value("json_schema", "[1]", schema={"type": "object"}) == 0
    with pytest.raises(TrainingError, match="E-REWARD-14"):
        rewards.read("json_schema").score([answer("1", schema={"pattern": "x"})])


def test_a_keyword_that_would_be_ignored_is_an_error_with_its_place() -> None:
    bad = {
        "type": "objekt",
        "properties": {"a": {"pattern": "x"}},
        "items": {"anyOf": [{"$ref": "#"}]},
        "required": "a",
        "minItems": -1,
    }
    with pytest.raises(ConfigError) as caught:
        rewards.read({"kind": "json_schema", "schema": bad})
    assert {p.fields["place"] for p in caught.value.problems} == {
        "type",
        "properties.a.pattern",
        "items.anyOf[0].$ref",
        "required",
        "minItems",
    }


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("<think>why</think><answer>42</answer>", 1), ("  <think>\nwhy\n</think>\n\n<answer> 42 </answer>\n", 1), ("<think></think><answer>42</answer>", 0),
        ("<think>why</think>so<answer>42</answer>", 0), ("<answer>42</answer><think>why</think>", 0), ("<think>why</think><answer>42</answer> bye", 0),
        ("<think>a<think>b</think></think><answer>42</answer>", 0), ("42", 0), ("", 0), ("<think>why</think><answer>42", 0),
    ],
)  # fmt: skip
def test_format_wants_every_tag_once_in_order_with_text_between(text: str, worth: float) -> None:
    assert value("format", text) == worth


def test_format_can_give_part_of_the_value() -> None:
    spec = {"kind": "format", "partial": True}
    assert value(spec, "<think>why</think> 42") == 0.25
    assert value(spec, "<think>why</think>so<answer>42</answer>") == 0.5
    assert value(spec, "<think>why</think><answer>42</answer>") == 1
    assert value(spec, "42") == 0
    assert (
        value(
            {"kind": "format", "template": "Reason: ... <answer>...</answer> Done."},
            "Reason: x\n<answer>1</answer>  Done.",
        )
        == 1
    )


PIECES = ["<a>", "</a>", "x", "y", "..."]


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6),
    st.lists(st.sampled_from(["<a>", "</a>", "x", "y", " ", "z"]), max_size=9),
)
@settings(max_examples=500)
def test_a_template_fits_what_the_same_regular_expression_fits(
    pieces: list[str], parts: list[str]
) -> None:
    tags = [p for p in pieces if p.startswith("<")]
    if not tags or "..." not in pieces or len(set(tags)) < len(tags):
        with pytest.raises(ValueError, match=r"."):
            Template(" ".join(pieces))
        return
    text = "".join(parts)
    merged = [p for i, p in enumerate(pieces) if not (p == "..." and i and pieces[i - 1] == "...")]
    pattern = r"\s*".join(r"\S(?:[\s\S]*\S)?" if p == "..." else re.escape(p) for p in merged)
    expected = re.fullmatch(rf"\s*{pattern}\s*", text) is not None and all(
        text.count(tag) == 1 for tag in tags
    )
    assert Template(" ".join(pieces)).fits(text) == expected


# ---- measuring


@pytest.mark.parametrize(
    ("options", "tokens", "text", "worth"),
    [
        ({"min": 3, "max": 6}, 3, "", 1), ({"min": 3, "max": 6}, 6, "", 1), ({"min": 3, "max": 6}, 7, "", 0), ({"min": 3, "max": 6, "slope": 4}, 8, "", 0.5),
        ({"min": 10, "slope": 5}, 6, "", 0.2), ({"min": 10, "slope": 5}, 2, "", 0), ({"max": 0}, 1, "", 0), ({"max": 3, "unit": "words"}, 99, "one two-three 4", 1),
        ({"max": 3, "unit": "words"}, 1, "don't stop", 1), ({"min": 5, "max": 5, "unit": "words"}, 1, "你好, world ok 吗", 1),
        ({"max": 2, "unit": "characters"}, 1, "你好", 1),
    ],
)  # fmt: skip
def test_length_falls_off_outside_of_its_range(
    options: dict[str, Any], tokens: int, text: str, worth: float
) -> None:
    assert value({"kind": "length", **options}, text, tokens=tokens) == pytest.approx(worth)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), st.integers(1, 4))
def test_repetition_is_the_share_of_ngrams_seen_before(words: list[str], n: int) -> None:
    counts = Counter(" ".join(words[i : i + n]) for i in range(max(0, len(words) - n + 1)))
    repeated = sum(count - 1 for count in counts.values())
    expected = -repeated / sum(counts.values()) if counts else 0.0
    assert value({"kind": "repetition", "ngram": n}, " ".join(words)) == pytest.approx(expected)
    assert value({"kind": "repetition", "ngram": 2}, "好好好好") == pytest.approx(-2 / 3)


NAMES_OF = {
    "zh": ("CJK",), "ja": ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"), "ko": ("HANGUL",), "en": ("LATIN", "FULLWIDTH LATIN"), "ru": ("CYRILLIC",),
    "el": ("GREEK",), "ar": ("ARABIC",), "he": ("HEBREW",), "hi": ("DEVANAGARI",), "th": ("THAI",),
}  # fmt: skip


@pytest.mark.parametrize("language", sorted(SCRIPTS))
def test_the_script_of_a_letter_is_what_unicode_calls_it(language: str) -> None:
    wrong = []
    for block in ((0x41, 0x600), (0x5D0, 0xE60), (0x1100, 0x1200), (0x1C80, 0x2000), (0x2C60, 0x2E00), (0x3040, 0x3400), (0x4DF0, 0x4E10), (0xA640, 0xAB65),
                  (0xD7A0, 0xD800), (0xF900, 0x10000), (0x20000, 0x20010)):  # fmt: skip
        for point in range(*block):
            name = unicodedata.name(chr(point), "")
            if (
                name.startswith("MODIFIER LETTER") or 0x1D00 <= point < 0x1DC0
            ):  # phonetic signs, of no language
                continue
            if chr(point).isalpha() and share_in_script(chr(point), language) != float(
                name.startswith(NAMES_OF[language])
            ):
                wrong.append(f"{point:x} {name}")
    assert wrong == []


def test_language_is_a_share_of_letters() -> None:
    assert value({"kind": "language", "language": "zh"}, "你好 ab 12!") == 0.5
    assert value({"kind": "language", "language": "en"}, "Été, 42") == 1
    assert value({"kind": "language", "language": "zh", "at_least": 0.6}, "你好 ab") == 0
    assert value({"kind": "language", "language": "ru"}, "12 :-)") == 0


def test_finished_is_whether_it_ended_itself() -> None:
    assert (
        value("finished", "x", finished=True) == 1 and value("finished", "x", finished=False) == 0
    )


# ---- sets and their policy


def test_a_list_adds_up_by_weight_and_keeps_its_parts(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: m\n")
    (tmp_path / "summary.json").write_text('{"status": "done"}')
    spec = [
        {"kind": "exact_match", "weight": 2},
        "finished",
        {"kind": "length", "max": 2, "weight": -0.5},
        "finished",
        {"kind": "finished", "name": "ended"},
    ]
    made = rewards.read(
        [*spec, str(tmp_path), {"kind": "model", "run": str(tmp_path), "weight": 0.1}]
    )
    scores = made.score(
        [
            answer("yes", tokens=2, answer="yes"),
            answer("no", tokens=9, finished=False, answer="yes"),
        ]
    )
    assert scores.parts == {
        "exact_match": [1, 0],
        "finished": [1, 0],
        "length": [1, 0],
        "finished_2": [1, 0],
        "ended": [1, 0],
    }
    assert scores.total == [4.5, 0.0] and scores.bad == [] and scores.means()["finished"] == 0.5
    assert made.models == [(1.0, tmp_path), (0.1, tmp_path)]


def test_an_answer_that_nobody_judges_is_an_error_unless_a_model_does(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"rows\.jsonl:4"):
        rewards.read("exact_match").score([answer("yes", answer="yes"), answer("yes", row=4)])
    skipping = rewards.read("exact_match", on_bad="skip").score(
        [answer("yes", answer="yes"), answer("yes", row=4)]
    )
    assert (
        skipping.left_out == {1}
        and math.isnan(skipping.total[1])
        and skipping.means() == {"exact_match": 1.0}
    )
    (tmp_path / "run.yaml").write_text("model: m\n")
    (tmp_path / "summary.json").write_text('{"status": "done"}')
    assert rewards.read(["exact_match", str(tmp_path)]).score([answer("yes")]).total == [0.0]


CODE = '''
import math
from dataclasses import dataclass

@dataclass
class Rule:
    """Needs its module by name."""
    limit: int = 3

def good(answers):
    print("to the terminal")
    return [len(a.text) > Rule().limit for a in answers]
def raises_on_b(answers):
    return [1 / (a.text != "b") for a in answers]
def nan_on_b(answers):
    return [math.nan if a.text == "b" else 1 for a in answers]
def too_few(answers): return [1.0]
def text(answers): return ["x" for a in answers]
def nothing(answers): pass
def stops(answers): raise SystemExit(0)
def meddles(answers):
    for a in answers:
        a.facts.clear()
    return [None for a in answers]
def rank(answers):
    if any(a.text == "b" for a in answers):
        raise ValueError("b")
    return [float(i) for i in range(len(answers))]
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def _with(code: Path, function: str, **more: Any) -> rewards.RewardSet:
    with rewards.allowing(code):
        return rewards.read({"kind": "python", "function": function, **more})


ANSWERS = [answer("aaaa", row=1), answer("b", row=2), answer("c", row=3)]


def test_a_function_of_ones_own_judges_and_prints_nothing_on_stdout(
    code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _with(code, "good").score(ANSWERS).total == [1.0, 0.0, 0.0]
    told = capsys.readouterr()
    assert told.out == "" and "to the terminal" in told.err


@pytest.mark.parametrize(
    ("function", "bad", "word"),
    [("raises_on_b", {1}, "ZeroDivisionError"), ("nan_on_b", {1}, "nan"), ("too_few", {0, 1, 2}, "1 values for 3"), ("text", {0, 1, 2}, "str"),
     ("nothing", {0, 1, 2}, "NoneType"), ("stops", {0, 1, 2}, "SystemExit"), ("rank", {1}, "ValueError")],
)  # fmt: skip
def test_a_function_that_fails_stops_the_run_or_leaves_the_answer_out(
    code: Path, function: str, bad: set[int], word: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        _with(code, function).score(ANSWERS)
    first = caught.value.problems[0]
    assert (
        first.code == "E-REWARD-14"
        and first.fields["function"] == "python"
        and word in first.fields["reason"]
    )
    assert {p.where for p in caught.value.problems} == {f"rows.jsonl:{i + 1}" for i in bad}
    scores = _with(code, function, on_bad="skip").score(ANSWERS)
    assert scores.left_out == bad and len(scores.bad) == len(bad)
    assert [math.isnan(t) for t in scores.total] == [i in bad for i in range(3)]
    assert [scores.parts["python"][i] for i in range(3) if i not in bad] == [1.0] * (
        3 - len(bad)
    ) or function == "rank"
    if function == "rank":
        assert scores.parts["python"] == [0.0, None, 1.0]  # the ones left are judged together again


def test_a_signal_is_no_fault_of_a_function() -> None:
    def interrupted(answers: list[Answer]) -> list[float | None]:
        raise Interrupted(2, problem("E-RUN-06", "", signal="SIGINT"))

    made = rewards.RewardSet([rewards.reading.Part("f", 1.0, "skip", interrupted)])
    with pytest.raises(Interrupted):
        made.score(ANSWERS)


def test_what_a_function_changes_does_not_reach_the_next_one(code: Path) -> None:
    with rewards.allowing(code):
        made = rewards.read([{"kind": "python", "function": "meddles"}, "exact_match"])
    assert made.score([answer("yes", answer="yes")]).total == [1.0]


def test_a_run_file_alone_never_runs_code(code: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code.write_text(
        f"open({str(marker)!r}, 'w').close()\ndef f(answers): return [1 for a in answers]\n"
    )
    spec = {"kind": "python", "function": "f", "file": str(code)}
    assert codes(spec) == ["E-REWARD-07"] and not marker.exists()
    with rewards.allowing(code):
        first = rewards.recorded(["finished", spec])
        assert rewards.read(first).score(ANSWERS).total == [2.0] * 3
    assert marker.exists() and len(first[1]["sha256"]) == 64 and first[0] == "finished"
    assert codes(first) == ["E-REWARD-07"]  # the consent ended with the command
    code.write_text("def f(answers): return [2 for a in answers]\n")
    with rewards.allowing(code):
        assert codes(first) == ["E-REWARD-08"]
        assert codes({"kind": "python", "function": "g"}) == ["E-REWARD-09"]
    for broken in ("def f(:\n", "import nothing_of_that_name\n", "raise SystemExit(0)\n"):
        code.write_text(broken)
        with rewards.allowing(code):
            assert codes(spec) == ["E-REWARD-10"]
    with pytest.raises(UsageError, match="E-REWARD-10"), rewards.allowing(tmp_path / "absent.py"):
        pass


def test_every_mistake_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.yaml").write_text("model: m\n")
    spec = [
        "exact_mach", {"kind": "length", "max": 1, "min": 2}, {"kind": "length", "maxx": 3}, {"kind": "regex", "pattern": "("}, 7, {"weight": 1},
        {"kind": "finished", "weight": "much"}, {"kind": "python", "function": "f"}, "./nowhere", str(tmp_path / "half"), {"kind": "language"},
        {"kind": "format", "template": "no tags"}, {"kind": "numeric", "on_bad": "maybe"}, {"kind": "model"}, {"kind": "finished", "name": "a"},
        {"kind": "finished", "name": "a"},
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        rewards.read(spec)
    found = {(p.code, p.where) for p in caught.value.problems}
    place = "objective.reward"
    assert found >= {
        ("E-REWARD-01", f"{place}[0]"), ("E-REWARD-04", f"{place}[1]"), ("E-REWARD-03", f"{place}[2].maxx"), ("E-REWARD-11", f"{place}[3].pattern"),
        ("E-REWARD-02", f"{place}[4]"), ("E-REWARD-02", f"{place}[5]"), ("E-REWARD-04", f"{place}[6].weight"), ("E-REWARD-07", f"{place}[7].function"),
        ("E-REWARD-05", f"{place}[8]"), ("E-REWARD-06", f"{place}[9]"), ("E-REWARD-17", f"{place}[10]"), ("E-REWARD-13", f"{place}[11].template"),
        ("E-REWARD-04", f"{place}[12].on_bad"), ("E-REWARD-17", f"{place}[13]"), ("E-REWARD-16", f"{place}[15].name"),
    }  # fmt: skip
    assert "`exact_match`" in str(caught.value) and "`max`" in str(caught.value)
    assert codes([{"kind": "finished", "weight": 0}]) == ["E-REWARD-15"] and codes([]) == codes(
        None
    ) == ["E-REWARD-02"]
    with rewards.expecting([Path("nowhere")]):
        assert rewards.read("./nowhere").models == [(1.0, Path("nowhere"))]


def test_the_room_loads_no_heavy_library() -> None:
    program = "import sys, tunewright.rewards as r; r.read(['numeric', 'format']); print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", ["rewards.md", "rewards.zh-CN.md"])
def test_the_specs_of_the_docs_can_be_read(page: str, tmp_path: Path) -> None:
    import yaml

    code = tmp_path / "reward.py"
    code.write_text("def brief(answers):\n    return [1.0 for _ in answers]\n")
    blocks = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) >= 10
    with rewards.allowing(code):
        for block in blocks:
            spec = yaml.safe_load(block)["objective"]["reward"]
            runs = [
                Path(one["run"]) if isinstance(one, dict) else Path(one)
                for one in (spec if isinstance(spec, list) else [spec])
                if "runs/" in json.dumps(one)
            ]
            with rewards.expecting(runs):
                assert rewards.read(spec)
