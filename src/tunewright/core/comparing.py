"""Is the answer right: the one place that says what makes two texts the same, and what an answer
must hold.

A report and the demo ask whether an answer contains what was expected, `evaluate` whether it is
that; reward functions choose what counts. All take away the same things.
"""

from __future__ import annotations

import re
import unicodedata


def folded(text: str) -> str:
    """Text without case, width of characters (NFKC) and runs of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def without_punctuation(text: str) -> str:
    """Text without the characters of Unicode's P categories.

    What makes a number stays: a sign before a digit, a point, comma or colon between two. "3.5" is
    not "35".
    """
    return "".join(
        c
        for i, c in enumerate(text)
        if not unicodedata.category(c).startswith("P") or _in_number(text, i)
    )


def _in_number(text: str, i: int) -> bool:
    after = i + 1 < len(text) and text[i + 1].isdigit()
    before = i > 0 and text[i - 1].isdigit()
    return after and (before or (text[i] in "-\u2212" and not (i > 0 and text[i - 1].isalnum())))


def normalised(text: str) -> str:
    """`folded`, and without punctuation."""
    return " ".join(without_punctuation(folded(text)).split())


def contains(answer: str, expected: str) -> bool:
    """Whether the answer holds what was expected, both folded; an empty one is never met."""
    return bool(expected.strip()) and folded(expected) in folded(answer)


def matches(expected: str, given: str) -> tuple[bool, bool]:
    """(exact after strip, equal when normalised). Where nothing but punctuation was expected, only
    an exact answer is right."""
    exact = expected.strip() == given.strip()
    return exact, exact or (
        bool(normalised(expected)) and normalised(expected) == normalised(given)
    )


_LOOP = re.compile(r"((\S.{1,119}?)\2{3,})\s*\S{0,120}\Z", re.DOTALL)


def goes_in_circles(answer: str) -> bool:
    """Whether the answer ends by saying the same four times or more: what a model does that never
    learnt where to stop."""
    found = _LOOP.search(answer[-600:])
    return found is not None and len(found.group(1)) >= 40
