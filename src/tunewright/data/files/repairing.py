"""JSON as people paste it, repaired where it has a single possible meaning: a copy is written, the
original is never touched.

Mended are comments, commas before a closing bracket, single and curly quotes around strings, None,
True and False, Chinese commas and colons, names without quotes, line breaks and control characters
inside strings, and text read in a wrong encoding (`mojibake.py`). Everything else keeps its place
and spelling, so that the difference shows what was done and nothing more. Where a string may end in
two places, a bracket is missing or a number is none, the mender stops and names the place; it never
guesses. (json-repair does, even when strict: for 18 of the 21 texts of the tests that may mean two
things.)
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.core.errors import DataError, Problem, problem
from tunewright.core.files import write_text
from tunewright.core.words import say
from tunewright.data.files.encodings import decode
from tunewright.data.files.mojibake import damage, repair
from tunewright.data.files.syntax import likely_cause

ENDINGS = (".json", ".jsonl", ".md", ".ndjson", ".txt")
LINE_ENDINGS = (".jsonl", ".ndjson")
SHOWN_LINES = 40
MOST_PROBLEMS = 5
_CLOSING = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u300c": "\u300d"}
_CURLY = frozenset("\u201c\u2018\u300c\u201d\u2019")
_CONSTANTS = {
    "None": "null",
    "True": "true",
    "False": "false",
    "null": "null",
    "true": "true",
    "false": "false",
}
_COMMAS, _COLONS = ",\uff0c", ":\uff1a"
_space = re.compile(r"[ \t\r\n]+")
_comment = re.compile(r"//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
_number = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])")
_word = re.compile(r"[^\W\d]\w*")
_escape = re.compile(
    r'\\(?:(["\\/bfnrt])|u([0-9a-fA-F]{4})|(\')|(?:x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})))'
)
_stop = re.compile(r'["\\\x00-\x1f\u201c\u201d\u2018\u2019\u300c\u300d\']')


@dataclass
class Mended:
    """A file as it would be written, and what was done to it: counts by kind, a unified diff,
    places that stay damaged."""

    text: str
    changes: Counter[str] = field(default_factory=Counter)
    diff: list[str] = field(default_factory=list)
    changed_lines: int = 0
    lost: list[str] = field(default_factory=list)


class _Unsure(Exception):
    """Raised at the first place that may mean several things."""

    def __init__(self, at: int, message: str):
        self.at, self.message = at, message
        super().__init__(message)


def repair_file(file: Path, out: Path) -> Mended:
    """Write a mended copy of `file` to `out`; nothing is written where nothing was wrong.

    Raises DataError for a place that cannot be mended with certainty, for a kind of file that is
    not mended, and where `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise DataError.of("E-DATA-51", str(out), out=str(out))
    mended = mend_file(file)
    if mended.changes:
        write_text(out, mended.text)
    return mended


def mend_file(file: Path) -> Mended:
    """What `repair_file` would write."""
    if file.suffix.lower() not in ENDINGS:
        raise DataError.of(
            "E-DATA-52", str(file), ending=file.suffix or "-", endings=", ".join(ENDINGS)
        )
    if not file.is_file():
        key = "E-DATA-56" if file.exists() else "E-DATA-01"
        raise DataError.of(key, str(file), file=str(file), here=str(Path.cwd()))
    data = file.read_bytes()
    text, encoding = decode(data, str(file))
    mended = mend_text(text, str(file), file.suffix.lower())
    if encoding != "utf-8":
        mended.changes["bom" if encoding == "utf-8+bom" else "encoding"] += 1
    before, after = text.split("\n"), mended.text.split("\n")
    mended.diff = (
        list(difflib.unified_diff(before, after, file.name, file.name, lineterm="", n=0))
        if before != after
        else []
    )
    mended.changed_lines = sum(line.startswith("-") for line in mended.diff[2:])
    return mended


def mend_text(text: str, name: str, ending: str) -> Mended:
    """The mended text of a file with this ending. Raises DataError with up to five places that are
    not certain."""
    mended = _mend(text, name, ending)
    mended.changes = +mended.changes
    return mended


def _mend(text: str, name: str, ending: str) -> Mended:
    mended = Mended("")
    if ending not in (*LINE_ENDINGS, ".json"):
        lines = [
            _sound(line, mended, f"{name}:{number}")
            for number, line in enumerate(text.split("\n"), start=1)
        ]
        mended.text = "\n".join(lines)
        return mended
    first = text.lstrip().split("\n", 1)[0].strip()
    # As the reader tells them apart: an array in a .jsonl file, and lines that are arrays.
    is_array = (
        first == "["
        or first.startswith("[{")
        or (first.startswith("[") and first.endswith((",", "{")))
    )
    if ending in LINE_ENDINGS and not is_array:
        return _mend_lines(text, name, mended)
    try:
        mender = _Mender(text, mended, name, 1)
        mended.text = mender.document()
    except _Unsure as unsure:
        raise DataError(_uncertain(text, unsure, name, 1)) from unsure
    return mended


def _mend_lines(text: str, name: str, mended: Mended) -> Mended:
    problems, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            lines.append(_Mender(line, mended, name, number).document())
        except _Unsure as unsure:
            problems.append(_uncertain(line, unsure, name, number))
    if problems:
        rest = len(problems) - MOST_PROBLEMS
        raise DataError(
            [
                *problems[:MOST_PROBLEMS],
                *(
                    [problem("E-DATA-04", name, count=rest, total=len(problems))]
                    if rest > 0
                    else []
                ),
            ]
        )
    mended.text = "\n".join(lines)
    return mended


def _uncertain(text: str, unsure: _Unsure, name: str, first_line: int) -> Problem:
    line = first_line + text.count("\n", 0, unsure.at)
    column = unsure.at - (text.rfind("\n", 0, unsure.at) + 1) + 1
    return problem(
        "E-DATA-50",
        f"{name}, line {line}, column {column}",
        cause=likely_cause(text, unsure.at, unsure.message),
    )


def _sound(value: str, mended: Mended, place: str) -> str:
    """The text with its wrong reading undone; what cannot be undone is noted."""
    kind = damage(value)
    if kind == "lost":
        mended.lost.append(place)
    if kind != "repairable":
        return value
    mended.changes["mojibake"] += 1
    return repair(value)


class _Mender:
    """One walk over relaxed JSON that writes strict JSON. `at` is the next character to read; `out`
    holds what was written."""

    def __init__(self, text: str, mended: Mended, name: str, first_line: int):
        self.text, self.mended, self.name, self.first_line = text, mended, name, first_line
        self.at = 0
        self.out: list[str] = []

    def document(self) -> str:
        """All values of the text, one after the other."""
        self.skip()
        while self.at < len(self.text):
            self.value()
            self.skip()
            if self.at < len(self.text) and self.text[self.at] not in "[{":
                raise _Unsure(self.at, "Extra data")
        return "".join(self.out)

    def skip(self) -> None:
        """Copy white space, leave comments out."""
        while self.at < len(self.text):
            found = _space.match(self.text, self.at)
            if found:
                self.out.append(found.group())
                self.at = found.end()
                continue
            found = _comment.match(self.text, self.at)
            if not found:
                return
            self.mended.changes["comment"] += 1
            # The lines keep their numbers.
            self.out.append("\n" * found.group().count("\n"))
            self.at = found.end()

    def value(self) -> None:
        """One value. Raises _Unsure."""
        # Containers are kept on a stack of our own: deep nesting must not end in Python's.
        stack: list[str] = []
        while True:
            here = self.text[self.at : self.at + 1]
            if here and here in "[{":
                self.out.append(here)
                self.at += 1
                self.skip()
                stack.append("]" if here == "[" else "}")
                if not self.closes(stack):
                    if stack[-1] == "}":
                        self.name_and_colon()
                    continue
            else:
                self.scalar()
            while stack:
                if not self.next_or_close(stack):
                    break
            else:
                return

    def closes(self, stack: list[str]) -> bool:
        """Take the closing bracket, if it stands here."""
        if self.text[self.at : self.at + 1] != stack[-1]:
            return False
        self.out.append(stack.pop())
        self.at += 1
        return True

    def next_or_close(self, stack: list[str]) -> bool:
        """After a value: True when its container closed, False when another value follows."""
        self.skip()
        if self.closes(stack):
            return True
        here = self.text[self.at : self.at + 1]
        if not here or here not in _COMMAS:
            raise _Unsure(self.at, "Expecting ',' delimiter")
        place = len(self.out)
        self.out.append(",")
        self.mended.changes["wide_punctuation"] += here != ","
        self.at += 1
        self.skip()
        if self.text[self.at : self.at + 1] == stack[-1]:
            self.out[place] = ""
            self.mended.changes["trailing_comma"] += 1
            return self.closes(stack)
        if stack[-1] == "}":
            self.name_and_colon()
        return False

    def name_and_colon(self) -> None:
        """The name of an object's entry and what follows it."""
        here = self.text[self.at : self.at + 1]
        word = _word.match(self.text, self.at)
        if here in _CLOSING and here:
            self.string()
        elif word and word.group() not in _CONSTANTS:
            self.out.append(json.dumps(word.group(), ensure_ascii=False))
            self.mended.changes["unquoted_key"] += 1
            self.at = word.end()
        else:
            raise _Unsure(self.at, "Expecting property name enclosed in double quotes")
        self.skip()
        here = self.text[self.at : self.at + 1]
        if not here or here not in _COLONS:
            raise _Unsure(self.at, "Expecting ':' delimiter")
        self.mended.changes["wide_punctuation"] += here != ":"
        self.out.append(":")
        self.at += 1
        self.skip()

    def scalar(self) -> None:
        """A string, number or constant."""
        here = self.text[self.at : self.at + 1]
        if here and here in _CLOSING:
            self.string()
            return
        number = _number.match(self.text, self.at)
        word = _word.match(self.text, self.at)
        if number:
            self.out.append(number.group())
            self.at = number.end()
        elif word and word.group() in _CONSTANTS:
            strict = _CONSTANTS[word.group()]
            self.mended.changes["constant"] += strict != word.group()
            self.out.append(strict)
            self.at = word.end()
        else:
            raise _Unsure(self.at, "Expecting value")

    def string(self) -> None:
        """A string between any of the quotes. It ends at the first closing quote, and what follows
        must fit; otherwise it is not certain."""
        begin, opening = self.at, self.text[self.at]
        value, kinds = self.characters(_CLOSING[opening])
        end = self.at
        self.require_end(opening)
        raw = self.text[begin:end]
        place = f"{self.name}:{self.first_line + self.text.count(chr(10), 0, begin)}"
        sound = _sound(value, self.mended, place) if not value.isascii() else value
        self.mended.changes.update(kinds)
        if opening != '"':
            self.mended.changes["curly_quotes" if opening in _CURLY else "single_quotes"] += 1
        if sound != value or kinds or opening != '"':
            raw = json.dumps(sound, ensure_ascii=False)
        self.out.append(raw)

    def characters(self, closing: str) -> tuple[str, Counter[str]]:
        """The text of the string at `at`, and what in it was no JSON. Curly quotes inside curly
        quotes must come in pairs."""
        begin, opening = self.at, self.text[self.at]
        at, depth = begin + 1, 1
        parts: list[str] = []
        kinds: Counter[str] = Counter()
        while True:
            found = _stop.search(self.text, at)
            if not found:
                raise _Unsure(begin, "Unterminated string starting at")
            parts.append(self.text[at : found.start()])
            at, char = found.start(), found.group()
            if char == "\\":
                escape = _escape.match(self.text, at)
                # \' and \x41 are Python's; in a string between double quotes nobody can tell
                # whether the backslash was meant.
                if not escape or (opening != "'" and (escape[3] or escape[4] or escape[5])):
                    raise _Unsure(at, "Invalid \\escape")
                code = escape[2] or escape[4] or escape[5]
                if code and int(code, 16) > 0x10FFFF:
                    raise _Unsure(at, "Invalid \\escape")
                parts.append(
                    chr(int(code, 16)) if code else escape[3] or json.loads(f'"{escape.group()}"')
                )
                at = escape.end()
                continue
            at += 1
            if char == closing and (opening == closing or depth == 1):
                self.at = at
                return self._joined("".join(parts), begin), kinds
            if opening != closing:
                depth += (char == opening) - (char == closing)
            if char < " ":
                kinds["control_character"] += 1
            parts.append(char)

    def _joined(self, text: str, begin: int) -> str:
        """Two halves of a character, written as two escapes, are one character; a half alone is not
        text."""
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError as error:
            raise _Unsure(begin, "Invalid \\uXXXX escape") from error

    def require_end(self, opening: str) -> None:
        """After a string comes a comma, a colon, a closing bracket, a comment or the end; anything
        else says that it ended too early."""
        at = self.at
        while True:
            space = _space.match(self.text, at) or _comment.match(self.text, at)
            if not space:
                break
            at = space.end()
        following = self.text[at : at + 1]
        if following and following not in "]}" + _COMMAS + _COLONS:
            raise _Unsure(self.at, "Expecting ',' delimiter")
        if following in _COMMAS and following and opening == "'" and not self._separates(at + 1):
            # 'a', b' : the quote before the comma may be an apostrophe.
            raise _Unsure(self.at, "Expecting ',' delimiter")

    def _separates(self, at: int) -> bool:
        """Whether a value, a name or a bracket follows a comma."""
        while True:
            space = _space.match(self.text, at) or _comment.match(self.text, at)
            if not space:
                break
            at = space.end()
        rest = self.text[at : at + 1]
        return (
            not rest
            or rest in "[{]}"
            or rest in _CLOSING
            or bool(_number.match(self.text, at))
            or bool(_word.match(self.text, at))
        )


def describe_repair(file: Path, out: Path, mended: Mended) -> str:
    """What was mended, for a terminal: counts, the first lines of the difference, and what stays
    damaged."""
    lost = (
        [say("repair.lost", count=len(mended.lost), places=", ".join(mended.lost[:MOST_PROBLEMS]))]
        if mended.lost
        else []
    )
    if not mended.changes:
        return "\n".join([say("repair.none", file=file), *lost])
    kinds = ", ".join(
        say(f"repair.kind.{kind}", count=count)
        for kind, count in mended.changes.most_common()
        if count
    )
    lines = [
        say(
            "repair.done",
            out=out,
            changes=sum(mended.changes.values()),
            lines=mended.changed_lines,
            kinds=kinds,
        ),
        *lost,
    ]
    lines += mended.diff[:SHOWN_LINES]
    if len(mended.diff) > SHOWN_LINES:
        lines.append(say("repair.more", count=len(mended.diff) - SHOWN_LINES))
    return "\n".join(lines)
