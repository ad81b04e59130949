"""What reward functions share: one judgement an answer, the part of a text that counts, and the
row's own columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.types import Answer
from tunewright.core.words import say
from tunewright.core.written import spelt

Judge = Callable[[Answer], "float | None"]
RewardFunction = Callable[[list[Answer]], "list[float | None]"]


class UnfitRow(Exception):
    """This row cannot be judged, and why: its own columns are wrong. Never raised for what a model
    wrote, which is worth 0 at worst."""


class TextConfig(Section):
    """Functions that look at the text of an answer."""

    inside: str | None = Field(default=None, pattern=r"^[A-Za-z][\w-]*$")
    """Look only at the text between the last `<inside>` and its `</inside>`, for example `answer`;
    an answer without them is worth 0."""


def each(judge: Judge) -> RewardFunction:
    """The function of a batch that judges every answer by itself."""
    return lambda answers: [judge(answer) for answer in answers]


def text_of(answer: Answer, inside: str | None) -> str | None:
    """The text that counts: all of it, or the inside of the last complete pair of tags; None where
    there is none."""
    if inside is None:
        return answer.text
    text = answer.whole if inside == "think" else answer.text
    close = text.rfind(f"</{inside}>")
    start = text.rfind(f"<{inside}>", 0, close) if close >= 0 else -1
    return text[start + len(inside) + 2 : close] if start >= 0 else None


def expected_texts(answer: Answer, column: str) -> list[str]:
    """The accepted answers in a column of the row: one value or a list of them; empty where the row
    has none.

    Raises UnfitRow for values that are no texts or numbers.
    """
    value = answer.facts.get(column)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(one, dict | list) or one is None for one in found):
        raise UnfitRow(say("rewards.why.column", column=column, value=short(value)))
    return [spelt(one) for one in found]


def short(value: Any, most: int = 80) -> str:
    """A value as one short line."""
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= most else text[: most - 1] + "…"


_ALONE = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U000323af"
)
_ALONE_ONE = re.compile(f"[{_ALONE}]")
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+(?:['’-][^\W_{_ALONE}]+)*")


def has_no_spaces(text: str) -> bool:
    """Whether a text holds characters of a script that puts no spaces between words."""
    return _ALONE_ONE.search(text) is not None


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits; in scripts without spaces (Chinese, kana)
    every character is one."""
    return _WORD.findall(text)
