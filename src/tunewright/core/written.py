"""Numbers as their file writes them: 3.10, 1E5 and twenty digits are learnt with these characters,
not with those Python would print.

A decoder is given `read_float` and `read_int`. Where Python would print the very same characters
they return a plain number; elsewhere one that counts and compares like it and keeps its text.
`json_text` writes them back as they stood. Numbers of columnar files have no spelling: `spelt`
writes them as decimals.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

LEAST, MOST = 1e-7, 1e21
"""Plain numbers between these are written without an exponent, as JavaScript writes them."""


class _Written:
    """A number that keeps its text; what it counts and compares as is said by its other base."""

    text: str

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)  # type: ignore[call-arg]  # that of the number
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.text,))


class WrittenFloat(_Written, float):
    """A number with a point or an exponent, and its text."""


class WrittenInt(_Written, int):
    """A whole number that Python would print otherwise (-0), and its text."""


WRITTEN = (WrittenFloat, WrittenInt)


def read_float(text: str) -> float:
    """For a decoder's `parse_float`."""
    value = float(text)
    return value if repr(value) == text and "e" not in text else WrittenFloat(text)


def read_int(text: str) -> int:
    """For a decoder's `parse_int`. Raises ValueError for more digits than Python converts."""
    return int(text) if text != "-0" else WrittenInt(text)


DECODER = json.JSONDecoder(parse_float=read_float, parse_int=read_int)


def spelt(value: Any) -> str:
    """The text of a number or a truth as its file has it, true and false as JSON writes them; of
    anything else what Python says."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, WRITTEN) or not isinstance(value, float):
        return str(value)
    text = repr(value)
    if "e" not in text or not (math.isfinite(value) and LEAST <= abs(value) < MOST):
        return text
    text = format(Decimal(text), "f")
    return text if "." in text else f"{text}.0"


def json_text(value: Any) -> str:
    """Compact JSON with every number as it was written; what JSON has no word for (a date) becomes
    its text."""
    if isinstance(value, WRITTEN):
        return value.text
    if isinstance(value, dict):
        return (
            "{"
            + ",".join(
                f"{json.dumps(str(key), ensure_ascii=False)}:{json_text(inner)}"
                for key, inner in value.items()
            )
            + "}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(json_text, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)


def plain_numbers(value: Any) -> tuple[Any, int]:
    """A copy with Python's own numbers, and how many of them will not be written as the file wrote
    them."""
    if isinstance(value, WrittenFloat):
        return float(value), int(repr(float(value)) != value.text)
    if isinstance(value, WrittenInt):
        return int(value), 1
    if isinstance(value, dict):
        pairs = {key: plain_numbers(inner) for key, inner in value.items()}
        return {key: inner for key, (inner, _) in pairs.items()}, sum(
            count for _, count in pairs.values()
        )
    if isinstance(value, list):
        made = [plain_numbers(inner) for inner in value]
        return [inner for inner, _ in made], sum(count for _, count in made)
    return value, 0
