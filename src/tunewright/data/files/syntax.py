"""Why a piece of text is not JSON: the mistakes people make, named.

The causes are keys `data.cause.*` of the locale. They are guesses from what stands around the place
where the scanner stopped.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from tunewright.core.words import say

CONSTANT, TWICE = "Not JSON: ", "Name twice: "
SHOWN_CHARACTERS = 60
_constant = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b', re.DOTALL)
_word = re.compile(r"[A-Za-z_]+")
_curly = re.compile(
    r"[{\[,:]\s*[\u201c\u201d\u201e\u201f\u2018\u2019]|[\u201c\u201d\u201e\u201f\u2018\u2019]\s*[:,}\]]"
)
_curly_before = re.compile(r'[\u201c\u201d\u201e\u201f\u2018\u2019]\s*[:,]\s*"$')
CURLY_QUOTES = (
    "\u201c\u201d\u201e\u201f\u2018\u2019\u300c\u300d\u2033\u2032\uff02\uff07\u00ab\u00bb"
)
WIDE_MARKS = "\uff0c\uff1a\u3001\uff5b\uff5d\uff3b\uff3d\u3010\u3011"
ODD_SPACES = "\u00a0\u3000\u200b\u200c\u200d\u2028\u2029\u2060\u0085\x0b\x0c"
PYTHON_WORDS = ("None", "True", "False")
OTHER_WORDS = ("undefined", "NaN", "Infinity", "nan", "inf", "null", "true", "false")


def refuse_constant(name: str) -> NoReturn:
    """Given to the decoder: NaN and Infinity are numbers of Python, not of JSON."""
    raise ValueError(CONSTANT + name)


def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Given to the decoder: an object whose names differ. JSON itself would keep the last of two
    values without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise ValueError(TWICE + next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return found


def find_constant(text: str, at: int) -> int:
    """Index of the first NaN or Infinity outside a string from `at` on, or `at`."""
    return next(
        (m.start() for m in _constant.finditer(text, at) if not m.group().startswith('"')), at
    )


def likely_cause(text: str, position: int, message: str) -> str:
    """A sentence with the probable mistake at `position`. `message` is the decoder's."""
    key = _cause_key(text, position, message)
    found = (
        message.removeprefix(TWICE)
        if key == "name_twice"
        else text[position : position + 20].split("\n")[0]
    )
    code = f"U+{ord(text[position]):04X}" if position < len(text) else "-"
    return say(
        f"data.cause.{key}", message=message[:SHOWN_CHARACTERS], found=_printable(found), code=code
    )


def _printable(text: str) -> str:
    """Short, and without what a terminal would obey or no encoding can hold."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:SHOWN_CHARACTERS])


def _cause_key(text: str, position: int, message: str) -> str:
    for begin, key in (
        (CONSTANT, "constant"),
        (TWICE, "name_twice"),
        ("too deep", "too_deep"),
        ("Exceeds the limit", "long_number"),
    ):
        if message.startswith(begin):
            return key
    if message.startswith("Extra data"):
        return _of_extra_data(text, position)
    if message.startswith(
        ("Invalid control character", "Unterminated string", "Expecting ':'")
    ) and _curly.search(_line_before(text, position)):
        return "curly_quotes"
    if message.startswith("Expecting ',' delimiter") and _curly_before.search(
        text[max(0, position - 20) : position]
    ):
        return "curly_quotes"
    if message.startswith("Invalid control character"):
        return "line_break" if text[position : position + 1] in "\r\n" else "control_character"
    if message.startswith("Invalid \\"):
        return "backslash"
    if message.startswith("Unterminated string"):
        return "open_string"
    return _by_character(text, position, message)


def _line_before(text: str, position: int) -> str:
    """The line of a position, up to the end of the string that begins or breaks there."""
    end = text.find("\n", position)
    return text[
        text.rfind("\n", 0, position) + 1 : min(end if end >= 0 else len(text), position + 200)
    ]


def _of_extra_data(text: str, position: int) -> str:
    if _is_comment(text, position):
        return "comment"
    here = text[position]
    if here == "\ufeff":
        return "mark_inside"
    if here in ODD_SPACES:
        return "odd_space"
    if here in "]}":
        return "wrong_bracket"
    return "several_arrays" if here == "[" else "extra_data"


def _by_character(text: str, position: int, message: str) -> str:
    here = text[position : position + 1]
    before = text[max(0, position - 2000) : position].rstrip()[-1:]
    if not text[position:].strip() or not here:
        return "missing_bracket"
    if "\x00" in text[max(0, position - 2) : position + 3]:
        return "nul"
    if _is_comment(text, position):
        return "comment"
    # Newer decoders stop at the comma itself, older ones after it.
    if (here in "]}" and before == ",") or (
        here == "," and text[position + 1 :].lstrip()[:1] in ("]", "}")
    ):
        return "trailing_comma"
    for characters, key in (
        (CURLY_QUOTES, "curly_quotes"),
        (WIDE_MARKS, "wide_punctuation"),
        (ODD_SPACES, "odd_space"),
        ("\ufeff", "mark_inside"),
    ):
        if here in characters:
            return key
    if here == "'":
        return "single_quotes"
    if here == "<":
        return "markup"
    if text.startswith("&quot;", position) or text.startswith("&#", position):
        return "html_quotes"
    if here == "`":
        return "code_fence"
    word = _word.match(text, position)
    if word and word.group() in PYTHON_WORDS:
        return "python_constant"
    if word and word.group() in OTHER_WORDS:
        return "constant"
    return _by_expectation(here, before, message)


def _by_expectation(here: str, before: str, message: str) -> str:
    """What the decoder waited for, where the character itself says nothing."""
    if message.startswith("Expecting ',' delimiter"):
        if here in "]}":
            return "wrong_bracket"
        return "missing_comma_between" if here in "{[" and before in ("}", "]") else "missing_comma"
    if message.startswith("Expecting ':'"):
        return "missing_colon"
    if message.startswith("Expecting property name"):
        return "wrong_bracket" if here == "]" else "unquoted_key"
    if here == "," or (here in "}]" and before in ":{["):
        return "missing_value"
    return "unexpected"


def _is_comment(text: str, position: int) -> bool:
    return text.startswith(("//", "/*", "#"), position)
