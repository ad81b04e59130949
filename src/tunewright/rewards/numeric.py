r"""The number an answer ends with, as in GSM8K and MATH: after `####`, in \boxed{}, or the last one
in the text; compared exactly, as a fraction.

Read: 1,234.5 · -3 · .5 · 3/4 · 1 1/2 · \frac{3}{4} · 1e-3 · 2 \times 10^{5} · 12 % (read as 12) ·
$42 · full-width digits. A comma parts thousands where groups of three follow, else it ends the
number. Sources: Cobbe et al. 2021 (arXiv 2110.14168) for `####`, Hendrycks et al. 2021 (2103.03874)
for \boxed.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from pydantic import Field

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

MOST_DIGITS = 400
"""Longer numbers and larger exponents are no answers: exact arithmetic with them could fill the
memory."""
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+"
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]}}])[-+](?:\\?[$€£¥])?)?
    (?:
      \\[dt]?frac\s*\{{\s*(?P<top>[-+]?(?:{_PLAIN}))\s*\}}\s*\{{\s*(?P<bottom>[-+]?(?:{_PLAIN}))\s*\}}
    | (?<![A-Za-z0-9_])(?<!\d\.)(?P<value>{_PLAIN})
      (?: [eE](?P<exponent>[-+]?\d+)(?!\w|\.\d)
        | \s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*\{{?\s*(?P<power>[-+]?\d+)\s*\}}? )?
      (?: \s*/\s*(?P<below>{_PLAIN}) | [ ](?P<part>\d+)/(?P<whole>\d+)(?![\d/.]) )?
    )
    """,
    re.VERBOSE,
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "⁄": "/"})
_RAISED = re.compile("[²³¹⁰-₟]")
_ONE_SIGN_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")


class NumericConfig(TextConfig):
    """1 where the number the answer ends with is the expected one, else 0."""

    column: str = "answer"
    """Column of the row with the expected number, or a text that ends with it, as GSM8K's do. A row
    without it is not scored by this function."""
    tolerance: float = Field(default=1e-6, ge=0)
    """Largest difference that still counts as equal."""
    relative: float = Field(default=0.0, ge=0)
    """The same as a share of the expected number; the larger of the two holds."""


def _exact(text: str | None) -> Fraction | None:
    digits = (text or "").replace(",", "").replace(" ", "")
    return Fraction(digits) if digits and len(digits) <= MOST_DIGITS else None


def _value(found: re.Match[str]) -> Fraction | None:
    """The number of one match; None for a division by zero and for what is too long."""
    sign = -1 if (found["sign"] or "").startswith("-") else 1
    top, bottom = _exact(found["top"] or found["value"]), Fraction(1)
    if found["bottom"] or found["below"]:
        below = _exact(found["bottom"] or found["below"])
        if not below:
            return None
        bottom = below
    if top is None:
        return None
    exponent = found["exponent"] or found["power"]
    if exponent:
        if len(exponent) > 5 or abs(int(exponent)) > MOST_DIGITS:
            return None
        top *= Fraction(10) ** int(exponent)
    if found["whole"]:
        whole, part = _exact(found["whole"]), _exact(found["part"])
        if not whole or part is None:
            return None
        top += part / whole
    return sign * top / bottom


def _numbers(text: str) -> list[Fraction]:
    return [value for value in map(_value, _NUMBER.finditer(text)) if value is not None]


def _boxed(text: str) -> str | None:
    r"""The inside of the last \boxed{...}, its braces paired; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
    return text[start:]


def _readable(text: str) -> str:
    """The text in the signs that `_NUMBER` knows."""
    # Unicode's plain forms would make 102 of 10² and 11/2 of 1½.
    text = _ONE_SIGN_FRACTION.sub(" ", _RAISED.sub(" ", text))
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    return text.replace("{,}", ",").replace("\\,", "").replace("\\!", "")


def numbers_with_words(text: str) -> list[tuple[Fraction, str]]:
    """Every number of a text, in its order, each with what stands between it and the number before
    it."""
    text = _readable(text)
    found, end = [], 0
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            found.append((value, text[end : match.start()]))
            end = match.end()
    return found


def final_number(text: str) -> Fraction | None:
    r"""The number a text ends with: the first after the last `####`, else the last inside the last
    \boxed{}, else the last in the text."""
    text = _readable(text)
    marked = text.rfind("####")
    if marked >= 0:
        found = _numbers(text[marked + 4 :].lstrip("# ").split("\n", 1)[0])
        if found:
            return found[0]
    boxed = _boxed(text)
    found = _numbers(boxed) if boxed is not None else []
    found = found or _numbers(text)
    return found[-1] if found else None


def is_near(found: Fraction, wanted: Fraction, config: NumericConfig) -> bool:
    """Whether two numbers count as equal."""
    absolute, relative = Fraction(config.tolerance), Fraction(config.relative)
    return abs(found - wanted) <= max(absolute, relative * abs(wanted))


@rewards.register("numeric", NumericConfig, needs="answer", source="arXiv 2110.14168")
def numeric(config: NumericConfig) -> RewardFunction:
    """1 or 0 an answer; None for a row that expects nothing."""

    def judge(answer: Answer) -> float | None:
        wanted = expected_texts(answer, config.column)
        if not wanted:
            return None
        numbers = [final_number(one) for one in wanted]
        if None in numbers:
            raise UnfitRow(say("rewards.why.no_number", column=config.column, value=short(wanted)))
        text = text_of(answer, config.inside)
        found = final_number(text) if text is not None else None
        if found is None:
            return 0.0
        return float(any(is_near(found, one, config) for one in numbers if one is not None))

    return each(judge)
