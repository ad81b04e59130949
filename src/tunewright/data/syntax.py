"""Why a piece of text is not JSON: the mistakes people make, named.

The causes are keys `data.cause.*` of the locale. They are guesses from what stands around the place where the scanner stopped.
"""

from __future__ import annotations

import re
from typing import NoReturn

from tunewright.core.words import say

CONSTANT = "Not JSON: "
_constant = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b', re.DOTALL)
_word = re.compile(r"[A-Za-z_]+")


def refuse_constant(name: str) -> NoReturn:
    """Given to the decoder: NaN and Infinity are numbers of Python, not of JSON."""
    raise ValueError(CONSTANT + name)


def find_constant(text: str, at: int) -> int:
    """Index of the first NaN or Infinity outside a string, from `at` on; `at` where there is none."""
    return next((m.start() for m in _constant.finditer(text, at) if not m.group().startswith('"')), at)


def likely_cause(text: str, position: int, message: str) -> str:
    """A sentence with the probable mistake at `position`. `message` is the decoder's."""
    key = _cause_key(text, position, message)
    return say(f"data.cause.{key}", message=message, found=text[position : position + 20].split("\n")[0])


def _cause_key(text: str, position: int, message: str) -> str:
    if message.startswith(CONSTANT):
        return "constant"
    for begin, key in (("too deep", "too_deep"), ("Exceeds the limit", "long_number"), ("Extra data", "extra_data")):
        if message.startswith(begin):
            return "comment" if key == "extra_data" and _is_comment(text, position) else key
    if message.startswith("Invalid control character"):
        return "line_break" if text[position : position + 1] in "\r\n" else "control_character"
    if message.startswith("Invalid \\"):
        return "backslash"
    if message.startswith("Unterminated string"):
        return "open_string"
    return _by_character(text, position, message)


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
    if (here in "]}" and before == ",") or (here == "," and text[position + 1 :].lstrip()[:1] in ("]", "}")):
        return "trailing_comma"
    if here == "'":
        return "single_quotes"
    if here in "\u201c\u201d\u2018\u2019\u300c\u300d":
        return "curly_quotes"
    if here in "\uff0c\uff1a\u3001":
        return "wide_punctuation"
    word = _word.match(text, position)
    if word and word.group() in ("None", "True", "False", "undefined", "NaN", "Infinity", "nan", "inf"):
        return "constant"
    if message.startswith("Expecting ',' delimiter"):
        return "missing_comma"
    return "unquoted_key" if message.startswith("Expecting property name") else "unexpected"


def _is_comment(text: str, position: int) -> bool:
    return text.startswith(("//", "/*", "#"), position)
