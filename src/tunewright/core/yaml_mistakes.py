"""The mistakes people make in a run file, named: YAML's own words say where its reader stopped, not
what was meant.

`cause_of` looks at a text that YAML refused, `number_meant` at a value that is nearly a number.
Causes are keys `yaml.*` of the locale, each with what is wrong and what to write.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from tunewright.core.errors import Problem, problem
from tunewright.core.words import say

PATHS = ("model", "adapter", "out", "data", "data.train", "data.dir", "data.held_out")
"""Keys whose value is a path or a name: no control character, no lone quote belongs there."""
ODD_SPACES = "\u00a0\u3000"
SHOWN = 60
_no_space = re.compile(r"^\s*-?\s*([A-Za-z_][\w.]*):(?![\s/\\]|$)")
_wide_colon = re.compile(r"^\s*-?\s*[A-Za-z_][\w.]*\s*\uff1a")
_wide_comma = re.compile(r"[{\[][^}\]\"']*[\uff0c\u3001]")
_equals = re.compile(r"^\s*[A-Za-z_][\w.]*\s*=")
_odd_indent = re.compile(rf"^\s*[{ODD_SPACES}]")
_two_colons = re.compile(r"^\s*-?\s*[A-Za-z_][\w.]*:\s+[^\s\"'{\[|>].*:(?:\s|$)")
_special = re.compile(r":\s+[*&!%@`]|^\s*-\s+[*&!%@`]")
_quote_inside = re.compile(r":\s+'[^']*'[^\s#,}\]]|:\s+\"(?:[^\"\\]|\\.)*\"[^\s#,}\]]")
_decimal = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_thousands = re.compile(r"[-+]?\d{1,3}(?:([,. '_])\d{3})(?:\1\d{3})*")
_percent = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def mistake(key: str, place: str, line: str = "", **fields: Any) -> Problem:
    """The problem of a named mistake. `line` is the text that holds it."""
    shown = line.strip()[:SHOWN]
    return problem(
        "E-CONFIG-45",
        place,
        cause=say(f"yaml.{key}.what", shown=shown, **fields),
        remedy=say(f"yaml.{key}.do", shown=shown, **fields),
    )


def cause_of(text: str, error: Any, name: str) -> Problem | None:
    """What was probably done wrong in a text that YAML refused, with its line; None where nothing
    is recognised."""
    lines = text.split("\n")
    mark, begun = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    at = min(mark.line, len(lines) - 1) if mark else 0
    said = f"{getattr(error, 'problem', '') or ''}"
    key, line = _key_of(
        lines, at, begun.line if begun else at, said, str(getattr(error, "context", "") or "")
    )
    return mistake(key, f"{name}, line {line + 1}", lines[line]) if key else None


def _key_of(lines: list[str], at: int, begun: int, said: str, context: str) -> tuple[str, int]:
    """The cause and the index of its line. `at` is where the reader stopped, `begun` where what it
    was reading begins."""
    if "escape" in said:
        return "backslash", at
    if "got '?'" in said:
        return "question_mark", at
    if "'\\t'" in said:
        return "tab", at
    if "quoted scalar" in context:
        return "open_quote", begun
    # The mistake is in the line where the reader stopped, or in the text just before it.
    before = [
        number
        for number in range(at, max(-1, at - 6), -1)
        if lines[number].strip() and not lines[number].lstrip().startswith("#")
    ]
    for pattern, key in (
        (_wide_colon, "wide_colon"),
        (_odd_indent, "odd_space"),
        (_no_space, "no_space"),
        (_wide_comma, "wide_comma"),
        (_equals, "equals"),
    ):
        for number in before:
            if pattern.search(lines[number]):
                return key, number
    for pattern, key in (
        (_special, "special"),
        (_quote_inside, "quote_inside"),
        (_two_colons, "colon_in_value"),
    ):
        if pattern.search(lines[at]):
            return key, at
    if "expected ',' or" in said or "flow" in context:
        return "open_bracket", begun
    if (
        "mapping values are not allowed" in said
        or "expected <block end>" in said
        or "did not find expected" in said
    ):
        return "indent", at
    return "", at


def no_mapping(text: str, name: str) -> Problem | None:
    """Why a text that YAML takes is not keys with values."""
    lines = text.split("\n")
    if not any(line.strip() and not line.lstrip().startswith("#") for line in lines):
        return mistake("empty", name)
    for pattern, key in ((_wide_colon, "wide_colon"), (_equals, "equals"), (_no_space, "no_space")):
        for number, line in enumerate(lines):
            if pattern.search(line):
                return mistake(key, f"{name}, line {number + 1}", line)
    return None


def in_path(value: Any) -> str:
    """The mistake in a path that YAML took without complaint; empty where there is none."""
    if not isinstance(value, str):
        return ""
    if any(character in value for character in "\a\b\t\n\v\f\r\x1b\0"):
        return "escape"
    if (
        len(value) > 1
        and value[0] in "\u201c\u2018\u300c\u201d"
        and value[-1] in "\u201d\u2019\u300d\u201c"
    ):
        return "curly_quotes"
    return "open_quote" if value.count('"') == 1 and value[-1:] == '"' else ""


def number_meant(value: Any) -> str:
    """How a value that is nearly a number is written here: `2.5e-5` for `2,5e-5`, `1000` for
    `1,000`; empty where it is none, or is one already."""
    if not isinstance(value, str):
        return ""
    plain = (
        unicodedata.normalize("NFKC", value)
        .strip()
        .replace("\u2212", "-")
        .replace("\u2013", "-")
        .replace("\u3001", ",")
    )
    if (share := _percent.fullmatch(plain)) is not None:
        return f"{float(share[1]) / 100:g}"
    if (groups := _thousands.fullmatch(plain)) is not None and plain.lstrip("+-0"):
        return plain.replace(groups[1], "")
    if _decimal.fullmatch(plain):
        return plain.replace(",", ".")
    try:
        float(plain)
    except ValueError:
        return ""
    return plain if plain != value.strip() else ""
