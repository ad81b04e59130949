"""JSON and JSONL, one row at a time.

An array is decoded element by element with the standard library's scanner over a window of the text that is filled as it is used up, so neither the
file nor the rows are held, and every row knows its line. In JSONL a syntax error does not stop the count: all bad lines are counted and the first
five shown; no row after a bad one is given out. The same name twice in one object is an error: which value was meant cannot be known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, TextIO

from tunewright.core.errors import DataError, Problem, problem
from tunewright.core.types import Origin
from tunewright.data.files.kinds import SHOWN_PROBLEMS, RawRow, reads
from tunewright.data.files.source import Source
from tunewright.data.syntax import CONSTANT, find_constant, likely_cause, refuse_constant, refuse_twice

WINDOW = 2**18
KEPT_BEHIND = 2000  # characters before the scanner's place that tell the cause of an error
NEAR_END = 16  # a word, an escape or a number cut by the window's end fails at most this far before it
_space = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder(parse_constant=refuse_constant, object_pairs_hook=refuse_twice)


def json_value(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value at `at` and the index after it. Raises json.JSONDecodeError for everything that can be wrong with one."""
    try:
        return _decoder.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("too deep", text, at) from error
    except ValueError as error:
        # Not JSON's own complaint: a number of more digits than Python converts, a name that stands twice, or a constant such as NaN.
        place = find_constant(text, at) if str(error).startswith(CONSTANT) else at
        raise json.JSONDecodeError(str(error), text, place) from error


def _syntax_problem(name: str, text: str, position: int, message: str, line: int = 1, column: int = 0) -> Problem:
    """The problem at a character of `text`, whose first character stands in `line` after `column` others."""
    start = text.rfind("\n", 0, position)
    at_line = line + text.count("\n", 0, position)
    at_column = position - start if start >= 0 else column + position + 1
    return problem("E-DATA-03", f"{name}, line {at_line}, column {at_column}", cause=likely_cause(text, position, message))


class _Window:
    """A piece of a text that moves forward. `at` is the scanner's place in `text`."""

    def __init__(self, name: str, first: str, rest: TextIO):
        self.name, self.text, self._rest = name, first, rest
        self.at = 0
        self._line, self._column = 1, 0  # of the first character of `text`
        self._row_line, self._counted = 1, 0  # lines counted up to this index
        self._ended = False

    def more(self) -> bool:
        """Drop what was scanned and read on, as much as there is already; False, with nothing dropped, at the end of the file."""
        piece = "" if self._ended else self._rest.read(max(WINDOW, len(self.text)))
        if not piece:
            self._ended = True
            return False
        cut = max(0, self.at - KEPT_BEHIND)
        if cut:
            self.line()
            start = self.text.rfind("\n", 0, cut)
            self._column = cut - start - 1 if start >= 0 else self._column + cut
            self._line += self.text.count("\n", 0, cut)
            self.text = self.text[cut:]
            self.at -= cut
            self._counted = self.at
        self.text += piece
        return True

    def line(self) -> int:
        """The line of the scanner's place."""
        self._row_line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._row_line

    def skip_space(self) -> str:
        """Go to the next character that is no white space and return it; an empty string at the end of the file."""
        while True:
            found = _space.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The value at the scanner's place, which moves behind it. Raises DataError."""
        while True:
            try:
                value, end = json_value(self.text, self.at)
            except json.JSONDecodeError as error:
                # Only what fails at the window's end may be whole further on; a text that never ends stops at the next line break.
                is_cut = error.msg.startswith("Unterminated string") or not self.text[error.pos + NEAR_END :].strip()
                if is_cut and self.more():
                    continue
                raise self.fault(error.pos, error.msg) from error
            # "12" may be the beginning of "123".
            if end < len(self.text) or not self.more():
                self.at = end
                return value

    def fault(self, position: int, message: str) -> DataError:
        """A syntax error at an index of the window."""
        while len(self.text) - position < KEPT_BEHIND:
            dropped = max(0, self.at - KEPT_BEHIND)
            if not self.more():
                break
            position -= dropped
        return DataError(_syntax_problem(self.name, self.text, position, message, self._line, self._column))


@reads("json", ".json")
def read_json(source: Source) -> Iterator[RawRow]:
    """Rows of an array, of objects one after the other, or of one object a line."""
    with source.text() as text:
        head, first = _beginning(text)
        if first.startswith("{") and first.rstrip().endswith("}"):
            yield from _lines(source.name, head, text)
        elif first.startswith("["):
            yield from _array(_Window(source.name, head, text))
        elif first:
            yield from _one_after_another(_Window(source.name, head, text))


@reads("jsonl", ".jsonl", ".ndjson")
def read_jsonl(source: Source) -> Iterator[RawRow]:
    """One JSON value a line; blank lines are skipped. A file that is an array after all, or objects over several lines, is read as that."""
    with source.text() as text:
        head, first = _beginning(text)
        first = first.strip()
        if first.startswith("[") and (first == "[" or first.endswith((",", "{")) or first.startswith("[{")):
            yield from _array(_Window(source.name, head, text))
        elif first == "{":
            yield from _one_after_another(_Window(source.name, head, text))
        else:
            yield from _lines(source.name, head, text)


def _beginning(text: TextIO) -> tuple[str, str]:
    """What was read of the file, at least up to its first text, and the first line with text as far as it was read.

    A line that goes on and does not begin with a bracket is read to its end, because how it ends tells lines from one long value.
    """
    head = ""
    while not head.strip():
        piece = text.read(WINDOW)
        if not piece:
            return head, ""
        head += piece
    start = len(head) - len(head.lstrip())
    if "\n" not in head[start:] and not head.startswith("[", start):
        head += text.readline()
    end = head.find("\n", start)
    return head, head[start : end if end >= 0 else len(head)]


def _array(window: _Window) -> Iterator[RawRow]:
    """Elements of the array at the window's place, with their lines."""
    window.skip_space()
    window.at += 1
    row = 0
    character = window.skip_space()
    while character != "]" or row:
        line = window.line()
        value = window.value()
        row += 1
        yield RawRow(value, Origin(window.name, line, row))
        character = window.skip_space()
        if character == "]":
            break
        if character != ",":
            raise window.fault(window.at, "Expecting ',' delimiter")
        window.at += 1
        character = window.skip_space()
    window.at += 1
    if window.skip_space():
        raise window.fault(window.at, "Extra data")


def _one_after_another(window: _Window) -> Iterator[RawRow]:
    row = 0
    while window.skip_space():
        line = window.line()
        value = window.value()
        row += 1
        yield RawRow(value, Origin(window.name, line, row))


def _lines(name: str, head: str, text: TextIO) -> Iterator[RawRow]:
    # Only line ends of files end a line: str.splitlines would also cut at U+2028, which JSON allows inside strings.
    begun = head.split("\n")
    begun[-1] += text.readline()
    problems: list[Problem] = []
    bad = row = 0
    for number, line in enumerate(chain(begun, text), start=1):
        found = _space.match(line)
        begin = found.end() if found else 0
        if begin == len(line):
            continue
        try:
            value, end = json_value(line, begin)
            rest = _space.match(line, end)
            if rest and rest.end() < len(line):
                raise json.JSONDecodeError("Extra data", line, rest.end())
        except json.JSONDecodeError as error:
            bad += 1
            if bad <= SHOWN_PROBLEMS:
                problems.append(_syntax_problem(name, line.rstrip("\n"), error.pos, error.msg, number))
            continue
        row += 1
        if not bad:
            yield RawRow(value, Origin(name, number, row))
    if bad > SHOWN_PROBLEMS:
        problems.append(problem("E-DATA-04", name, count=bad - SHOWN_PROBLEMS, total=bad))
    if problems:
        raise DataError(problems)
