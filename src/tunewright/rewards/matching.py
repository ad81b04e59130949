"""Comparing an answer with what the row expects: the same text, some words in it, a pattern."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from tunewright.core.comparing import without_punctuation
from tunewright.core.errors import ConfigError, problem
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
from tunewright.rewards.patterns import PatternError, matches


class ComparingConfig(TextConfig):
    """Functions that compare texts."""

    column: str = "answer"
    """Column with the expected answer: one value, or a list of which any will do. A row without it
    is not scored by this function."""
    ignore_case: bool = False
    """A and a are the same."""
    ignore_space: bool = False
    """White space does not count anywhere; at both ends it never does."""
    ignore_punctuation: bool = False
    """Punctuation does not count, but what makes a number does (3.5 is not 35); `numeric` compares
    values."""


class ExactMatchConfig(ComparingConfig):
    """1 where the answer is the expected one, else 0."""


class ContainsConfig(ComparingConfig):
    """1 where the answer contains the expected text, else 0."""

    texts: list[str] | None = Field(default=None, min_length=1)
    """What to look for in every answer, instead of a column."""
    mode: Literal["any", "all", "share", "none"] = "any"
    """any: one of the texts is enough; all: every one; share: the share of them found; none: 1 if
    none is found."""


class RegexConfig(TextConfig):
    """1 where a regular expression (Python's `re`) matches, else 0."""

    pattern: str | None = None
    """The expression. Default: the row's own, from `column`."""
    column: str = "pattern"
    """Column with the row's own expression, if no `pattern` is given. A row without it is not
    scored by this function."""
    mode: Literal["search", "fullmatch"] = "search"
    """search: anywhere in the answer; fullmatch: the whole answer, white space at both ends aside.
    """
    ignore_case: bool = False
    """A and a are the same."""
    multiline: bool = False
    """^ and $ also match at line ends."""
    dot_all: bool = False
    """The dot also matches a line end."""
    seconds: float = Field(default=1.0, gt=0, le=60)
    """Longest time for one answer. Some patterns take years on some texts ((a+)+$); they are
    stopped, and the answer counts as a failure of the function."""


def flattened(text: str, config: ComparingConfig) -> str:
    """The text with everything taken away that does not count."""
    if config.ignore_case:
        text = text.casefold()
    if config.ignore_punctuation:
        text = without_punctuation(text)
    return "".join(text.split()) if config.ignore_space else text.strip()


@rewards.register("exact_match", ExactMatchConfig, needs="answer")
def exact_match(config: ExactMatchConfig) -> RewardFunction:
    """1 or 0 an answer; None for a row that expects nothing."""

    def judge(answer: Answer) -> float | None:
        wanted = expected_texts(answer, config.column)
        if not wanted:
            return None
        text = text_of(answer, config.inside)
        return float(
            text is not None
            and flattened(text, config) in {flattened(one, config) for one in wanted}
        )

    return each(judge)


@rewards.register("contains", ContainsConfig, needs="answer")
def contains(config: ContainsConfig) -> RewardFunction:
    """1, 0 or a share an answer; None for a row that expects nothing."""

    def judge(answer: Answer) -> float | None:
        wanted = config.texts or expected_texts(answer, config.column)
        if not wanted:
            return None
        flat = [flattened(one, config) for one in wanted]
        if not all(flat):
            raise UnfitRow(say("rewards.why.empty", column=config.column, value=short(wanted)))
        text = text_of(answer, config.inside)
        if text is None:
            return 0.0
        found = sum(one in flattened(text, config) for one in flat)
        return {
            "any": float(found > 0),
            "all": float(found == len(flat)),
            "share": found / len(flat),
            "none": float(found == 0),
        }[config.mode]

    return each(judge)


@rewards.register("regex", RegexConfig, needs="pattern")
def regex(config: RegexConfig) -> RewardFunction:
    """1 or 0 an answer. Raises ConfigError for a pattern that is none."""
    flags = sum(
        flag
        for wanted, flag in (
            (config.ignore_case, re.I),
            (config.multiline, re.M),
            (config.dot_all, re.S),
        )
        if wanted
    )
    if config.pattern is not None:
        try:
            re.compile(config.pattern, flags)
        except (re.error, RecursionError, OverflowError) as e:
            raise ConfigError(
                problem(
                    "E-REWARD-11",
                    "pattern",
                    pattern=short(config.pattern),
                    cause=str(e) or type(e).__name__,
                )
            ) from e

    def judge(answer: Answer) -> float | None:
        pattern = config.pattern if config.pattern is not None else answer.facts.get(config.column)
        if pattern is None:
            return None
        if not isinstance(pattern, str):
            raise UnfitRow(say("rewards.why.column", column=config.column, value=short(pattern)))
        text = text_of(answer, config.inside)
        if config.inside is None and "think>" in pattern:
            text = answer.whole
        if text is None:
            return 0.0
        try:
            return float(
                matches(
                    pattern,
                    text.strip() if config.mode == "fullmatch" else text,
                    config.mode,
                    flags,
                    config.seconds,
                )
            )
        except PatternError as e:
            raise UnfitRow(str(e)) from e

    return each(judge)
