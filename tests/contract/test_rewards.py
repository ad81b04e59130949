"""What every reward function promises, asked of every registered name: one number or no opinion an
answer, whatever stands beside it, and what a model wrote is never an error.

To add a reward: one `Row` in OURS, with an answer that it likes and one that it does not.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from asked import OUTSIDE, names, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright import rewards
from tunewright.core.errors import ConfigError
from tunewright.core.registry import rewards as registry
from tunewright.core.types import Answer, Message, Origin
from tunewright.core.words import catalogue
from tunewright.rewards import schema

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Row:
    """What one name is asked with."""

    best: str
    worst: str
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """The row's other columns."""


OURS: dict[str, Row] = {
    "exact_match": Row(" Paris\n", "Rome", facts={"answer": "Paris"}),
    "contains": Row("It is Paris.", "Rome", facts={"answer": "Paris"}),
    "regex": Row("in 1984", "in May", facts={"pattern": r"\d{4}"}),
    "numeric": Row("so 42", "so 41", facts={"answer": 42}),
    "reaches": Row("so 42", "so 41", facts={"answer": 42}),
    "json_schema": Row("[1, 2]", '{"a": 1}', facts={"schema": {"type": "array"}}),
    "format": Row("<think>why</think><answer>42</answer>", "42", {"partial": True}),
    "length": Row("just right", "w " * 90, {"unit": "words", "min": 1, "max": 5, "slope": 5}),
    "repetition": Row("a b c d e f", "a b " * 20),
    "language": Row("你好", "hello", {"language": "zh"}),
    "finished": Row("all", "cut off"),
    "python": Row("long and good", "no", {"function": "by_length"}),
}
ROWS = rows("REWARDS", Row, OURS)
every_name = pytest.mark.parametrize("name", list(ROWS))
CODE = "def by_length(answers):\n    return [len(a.text) / 100 for a in answers]\n"


@pytest.fixture(autouse=True, scope="module")
def _own_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A person's own function is named by a file on the command line."""
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    with rewards.allowing(path):
        yield path


def answer(name: str, text: str, number: int = 1) -> Answer:
    facts = copy.deepcopy(ROWS[name].facts)
    finished = text != "cut off"
    where = Origin("rows.jsonl", number, number)
    return Answer([Message("user", "?")], text, len(text), finished, facts, where)


def judged(name: str, answers: list[Answer]) -> list[float | None]:
    (values,) = rewards.read({"kind": name, **ROWS[name].settings}).score(answers).parts.values()
    return values


def test_every_registered_name_has_a_row_and_every_row_a_name() -> None:
    assert sorted(ROWS) == names(registry)


@every_name
def test_every_option_is_documented_in_both_languages(name: str) -> None:
    entry = registry.get(name)
    assert entry is not None and entry.config.__doc__
    options = {info.alias or key: info for key, info in entry.config.model_fields.items()}
    assert all(info.description for info in options.values())
    if OUTSIDE:
        return
    assert all(f"list.rewards.{name}" in catalogue(lang) for lang in ("en", "zh"))
    for page in ("rewards.md", "rewards.zh-CN.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        section = re.search(rf"^#+ `{name}`.*?(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
        assert section, page
        assert set(re.findall(r"^\| `(\w+)` \|", section[0], re.MULTILINE)) == set(options)


@pytest.mark.parametrize("page", ["rewards.md", "rewards.zh-CN.md"])
def test_what_every_entry_may_say_is_documented(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for item in rewards.reading.ItemConfig.model_fields:
        assert f"| `{item}` |" in text
    assert set(re.findall(r"`(\w+)`", text)) >= set(schema.KEYWORDS)


@every_name
def test_it_tells_a_good_answer_from_a_bad_one(name: str) -> None:
    row = ROWS[name]
    good, bad = judged(name, [answer(name, row.best), answer(name, row.worst)])
    assert good is not None and bad is not None and good > bad


@every_name
def test_an_answer_is_worth_the_same_in_any_company_and_any_order(name: str) -> None:
    row, draw = ROWS[name], random.Random(0)
    texts = [row.best, row.worst, "", "cut off", "42", "<answer>x</answer>", row.best * 2]
    answers = [answer(name, text, i) for i, text in enumerate(texts, 1)]
    before = copy.deepcopy(answers)
    values = judged(name, answers)
    assert answers == before, "answers are looked at, never changed"
    assert judged(name, answers) == values
    assert [judged(name, [one])[0] for one in answers] == values
    order = draw.sample(range(len(texts)), len(texts))
    assert judged(name, [answers[i] for i in order]) == [values[i] for i in order]


@every_name
@given(text=st.text(max_size=200) | st.sampled_from(["\ud800", "\x00" * 9, "[" * 5000, "9" * 5000]))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_whatever_a_model_writes_is_worth_a_number(name: str, text: str) -> None:
    (value,) = judged(name, [answer(name, text)])
    assert isinstance(value, float) and math.isfinite(value)


@every_name
def test_a_wrong_option_is_refused_with_a_code_and_its_place(name: str) -> None:
    entry = registry.get(name)
    assert entry is not None
    given_here = {"kind": name, **ROWS[name].settings}
    with pytest.raises(ConfigError) as caught:
        rewards.read([{**given_here, "no_such_option": 1}])
    assert [(p.code, p.where) for p in caught.value.problems] == [
        ("E-REWARD-03", "objective.reward[0].no_such_option")
    ]
    for key, info in entry.config.model_fields.items():
        option = info.alias or key
        with pytest.raises(ConfigError) as caught:
            rewards.read([{**given_here, option: [{"no": "such"}]}])
        assert {p.where for p in caught.value.problems} == {f"objective.reward[0].{option}"}


@every_name
def test_a_run_records_it_with_the_digest_where_it_is_a_persons_own_file(name: str) -> None:
    spec = {"kind": name, **ROWS[name].settings}
    kept = rewards.recorded([spec])
    if name != "python":
        assert kept == [spec]
        return
    assert kept[0].keys() - spec.keys() == {"sha256", "file"}
    assert rewards.read(kept).functions
    with pytest.raises(ConfigError, match="E-REWARD-08"):
        rewards.read([{**kept[0], "sha256": "0" * 64}])
