"""Does an answer reach the row's own: the same number where that is one, else the same words.

The rule by which rows with checkable answers are judged where nobody names another: by `data
think` and by rejection sampling.
"""

from __future__ import annotations

import re
from typing import Literal

from tunewright.core.comparing import contains, matches
from tunewright.core.registry import rewards
from tunewright.core.types import Answer
from tunewright.core.words import say
from tunewright.rewards.base import (
    RewardFunction,
    TextConfig,
    UnfitRow,
    each,
    expected_texts,
    short,
    text_of,
)
from tunewright.rewards.numeric import NumericConfig, final_number, is_near

Mode = Literal["auto", "exact", "numeric", "contains"]
_words = re.compile(r"[^\W\d_]{2,}")


class ReachesConfig(TextConfig):
    """1 where the answer reaches the row's own answer, else 0: the same number where that is one,
    else the same words."""

    mode: Mode = "auto"
    """exact: the same words, case, width and punctuation aside; numeric: it ends with the same
    number; contains: it holds the row's answer; auto: numeric where the row's answer is a number
    or ends with #### or a box, else exact."""
    column: str = "answer"
    """Column with the row's answer: one value, or a list of which any will do. A row without it is
    not scored by this function."""


def is_number(expected: str) -> bool:
    r"""Whether an expected answer is a number (perhaps with a unit of one letter or a sign), or a
    text that says where its number stands: `####` or \boxed{}."""
    if final_number(expected) is None:
        return False
    return "####" in expected or "\\boxed" in expected or not _words.search(expected)


def reaches(text: str, expected: str, mode: Mode) -> bool:
    """Whether an answer without thoughts reaches the expected one. Raises ValueError where a number
    was asked for and none is expected."""
    if mode == "contains":
        return contains(text, expected)
    if mode == "exact" or (mode == "auto" and not is_number(expected)):
        return matches(expected, text)[1]
    wanted, found = final_number(expected), final_number(text)
    if wanted is None:
        raise ValueError(expected)
    return found is not None and is_near(found, wanted, NumericConfig())


@rewards.register("reaches", ReachesConfig, needs="answer")
def reaching(config: ReachesConfig) -> RewardFunction:
    """1 or 0 an answer; None for a row that expects nothing."""

    def judge(answer: Answer) -> float | None:
        wanted = [one for one in expected_texts(answer, config.column) if one.strip()]
        if not wanted:
            return None
        text = text_of(answer, config.inside)
        try:
            return float(any([reaches(text or "", one, config.mode) for one in wanted]))
        except ValueError as e:
            raise UnfitRow(
                say("rewards.why.no_number", column=config.column, value=short(wanted))
            ) from e

    return each(judge)
