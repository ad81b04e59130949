"""What a sweep searches: `method.rank=8,16,32` is a list, `engine.learning_rate=1e-4..1e-3` a
range, `engine.epochs=2` a setting of every trial."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import Problem, UsageError, problem, raise_all
from tunewright.core.runfile import parse_value, value_text

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\s*\.\.\s*({NUMBER})\s*")
LOG_FROM = 10.0
"""Ranges whose ends differ by this factor are searched by their logarithm."""
DIGITS = 3
"""Of a number that is drawn from a range, so that people can read and repeat it."""
NOT_SWEPT = ("out", "track", "probes")
"""Keys that are the sweep's own, or change nothing of what is compared."""


@dataclass(frozen=True)
class Space:
    """The values of one key: `choices`, or the numbers from `low` to `high`."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def is_log(self) -> bool:
        """Whether the logarithm is drawn evenly."""
        return not self.choices and self.low > 0 and self.high / self.low >= LOG_FROM

    @property
    def first(self) -> Any:
        """Its first value."""
        if self.choices:
            return self.choices[0]
        return int(self.low) if self.whole else self.low

    def as_text(self) -> str:
        """As it was written."""
        if self.choices:
            return ",".join(value_text(value) for value in self.choices)
        form = "d" if self.whole else "g"
        ends = (int(e) if self.whole else e for e in (self.low, self.high))
        return "..".join(f"{end:{form}}" for end in ends)

    def rounded(self, value: Any) -> Any:
        """A value that was drawn, as the trial gets it."""
        if self.choices or self.whole:
            return value
        size = DIGITS - 1 - math.floor(math.log10(abs(value))) if value else 0
        return min(max(round(value, size), self.low), self.high)


def parse(words: list[str]) -> tuple[list[Space], list[str]]:
    """The spaces among `key=value` words, and the other words. Raises UsageError for ranges that
    are none, keys that cannot be swept or stand twice."""
    spaces: list[Space] = []
    fixed: list[str] = []
    wrong: list[Problem] = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        found = _space(key, text) if equals and key else None
        if found is None:
            fixed.append(word)
            continue
        if isinstance(found, Problem):
            wrong.append(found)
        elif key.partition(".")[0] in NOT_SWEPT:
            wrong.append(problem("E-SWEEP-02", key, field=key))
        elif any(key == other.key for other in spaces):
            wrong.append(problem("E-SWEEP-03", key, field=key))
        else:
            spaces.append(found)
    raise_all(wrong)
    if not spaces:
        raise UsageError.of("E-SWEEP-01", "sweep")
    return spaces, fixed


def _space(key: str, text: str) -> Space | Problem | None:
    ends = RANGE.fullmatch(text)
    if ends is not None:
        whole = all(re.fullmatch(r"[-+]?\d+", end) for end in ends.groups())
        low, high = (float(end) for end in ends.groups())
        if not low < high:
            return problem("E-SWEEP-04", key, field=key, value=text, low=low, high=high)
        return Space(key, low=low, high=high, whole=whole)
    parts = _split(text)
    if len(parts) < 2:
        return None
    values = [parse_value(part.strip()) for part in parts]
    unlike = [value for n, value in enumerate(values) if value not in values[:n]]
    if len(unlike) < len(values) or any(not part.strip() for part in parts):
        return problem("E-SWEEP-05", key, field=key, value=text)
    return Space(key, tuple(values))


def _split(text: str) -> list[str]:
    """At the commas outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def grid(spaces: list[Space]) -> list[dict[str, Any]] | None:
    """Every combination, in the order of the words; None where a range has too many values."""
    columns = []
    for space in spaces:
        values = space.choices or (
            tuple(range(int(space.low), int(space.high) + 1)) if space.whole else ()
        )
        if not values:
            return None
        columns.append([(space.key, value) for value in values])
    if math.prod(map(len, columns)) > 10_000:
        return None
    return [dict(pairs) for pairs in itertools.product(*columns)]


def as_dict(space: Space) -> dict[str, Any]:
    """For the record."""
    if space.choices:
        return {"choices": list(space.choices)}
    return {"low": space.low, "high": space.high, "whole": space.whole}


def of_dict(key: str, found: dict[str, Any]) -> Space:
    """From the record."""
    if "choices" in found:
        return Space(key, tuple(found["choices"]))
    return Space(key, low=found["low"], high=found["high"], whole=found["whole"])
