"""Why a value was refused, in the reader's language; pydantic itself is the oracle of the types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

import tunewright
from tunewright.core.config import DataConfig, EngineConfig
from tunewright.core.refusals import reason_of
from tunewright.core.words import LANGUAGES, catalogue, speaking


class Asked(BaseModel, extra="forbid"):
    whole: int = 1
    rate: float = Field(default=1.0, gt=0, le=2, allow_inf_nan=False)
    word: Literal["a", "b"] = "a"
    text: str = ""
    flag: bool = True
    many: list[int] = []
    inner: dict[str, int] = {}
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("odd")
        return value


@pytest.mark.parametrize(
    ("given", "en", "zh"),
    [
        ({"whole": "sixteen"}, "a whole number is expected", "应为整数"),
        ({"whole": 1.5}, "a whole number is expected", "应为整数"),
        ({"whole": []}, "a whole number is expected", "应为整数"),
        ({"rate": "fast"}, "a number is expected", "应为数字"),
        ({"rate": 0}, "it must be greater than 0.0", "必须大于 0.0"),
        ({"rate": 3}, "it must be at most 2.0", "不能大于 2.0"),
        ({"rate": float("inf")}, "a finite number is expected", "应为有限的数"),
        ({"word": "c"}, "expected: 'a' or 'b'", "应为：'a' 或 'b'"),
        ({"text": 3}, "a text is expected", "应为文字"),
        ({"flag": "perhaps"}, "true or false is expected", "应为 true 或 false"),
        ({"many": 3}, "a list is expected", "应为列表"),
        ({"inner": 3}, "a mapping of keys to values is expected", "应为若干个“键: 值”"),
        ({"other": 3}, "there is no such key", "没有这个键"),
        ({"even": 3}, "odd", "odd"),
    ],
)
def test_a_refusal_is_said_in_both_languages(given: dict[str, Any], en: str, zh: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Asked.model_validate(given)
    (item,) = caught.value.errors()
    for lang, said in (("en", en), ("zh", zh)):
        with speaking(lang):
            assert reason_of(item) == said


@pytest.mark.parametrize(
    ("section", "given", "en", "zh"),
    [
        (EngineConfig, {"batch_size": 0}, "must be at least 1", "不能小于 1"),
        (EngineConfig, {"betas": [2, 0]}, "must be two numbers", "应为两个"),
        (DataConfig, {"wording": "x"}, "must contain {text}", "必须含有 {text}"),
    ],
)
def test_our_own_rules_speak_both_languages(
    section: type[BaseModel], given: dict[str, Any], en: str, zh: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({"train": "d", **given} if section is DataConfig else given)
    (item,) = caught.value.errors()
    for lang, said in (("en", en), ("zh", zh)):
        with speaking(lang):
            assert reason_of(item).startswith(said)


def test_every_rule_has_words_and_none_speaks_english_only() -> None:
    source = Path(tunewright.__file__).parent
    texts = {p: p.read_text(encoding="utf-8") for p in source.rglob("*.py")}
    names = {n for text in texts.values() for n in re.findall(r'\brefused\("(\w+)"', text)}
    assert len(names) > 20
    for lang in LANGUAGES:
        assert [n for n in names if f"refused.{n}" not in catalogue(lang)] == []
    validators = re.compile(
        r"_validator\(.*?\n    def \w+.*?(?=\n    (?:@|def )|\nclass |\Z)", re.S
    )
    english = [
        (path.name, found)
        for path, text in texts.items()
        for rule in validators.findall(text)
        for found in re.findall(r'raise ValueError\(f?"[^"]*"', rule)
    ]
    assert english == []
