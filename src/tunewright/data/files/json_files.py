"""JSON and JSONL, one row at a time.

An array is decoded element by element with the standard library's scanner over a window of the text
that is filled as it is used up, so neither the file nor the rows are held, and every row knows its
line. In JSONL a syntax error does not stop the count: all bad lines are counted and the first five
shown; no row after a bad one is given out. The same name twice in one object is an error: which
value was meant cannot be known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, TextIO

from tunewright.core.errors import DataError, Problem, problem
from tunewright.core.types import Origin
from tunewright.core.written import read_float, read_int
from tunewright.data.files.folders import part_of
from tunewright.data.files.source import SHOWN_PROBLEMS, RawRow, Source, reads
from tunewright.data.files.syntax import (
    CONSTANT,
    find_constant,
    likely_cause,
    refuse_constant,
    refuse_twice,
)
from tunewright.data.files.turns import are_turns, is_turn

WINDOW = 2**18
KEPT_BEHIND = 2000  # characters before the scanner's place that tell the cause of an error
NEAR_END = (
    16  # a word, an escape or a number cut by the window's end fails at most this far before it
)
WRAPPERS = frozenset(
    """
    data rows examples items records samples instances entries dataset results conversations
    dialogues dialogs questions 数据
    """.split()
)
"""Keys under which programs put the list of rows; a part's name (`train`, `test`, ...) is one as
well."""
_space = re.compile(r"[ \t\r\n]*")
_begins_a_turn = re.compile(r'\[\s*\{\s*"(?:role|from|content|value)"\s*:')
_decoder = json.JSONDecoder(
    parse_constant=refuse_constant,
    object_pairs_hook=refuse_twice,
    parse_float=read_float,
    parse_int=read_int,
)


def json_value(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value at `at` and the index after it. Raises json.JSONDecodeError for everything
    that can be wrong with one."""
    try:
        return _decoder.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("too deep", text, at) from error
    except ValueError as error:
        # Not JSON's own complaint: a number of more digits than Python converts, a name that stands
        # twice, or a constant such as NaN.
        place = find_constant(text, at) if str(error).startswith(CONSTANT) else at
        raise json.JSONDecodeError(str(error), text, place) from error


def _syntax_problem(
    name: str, text: str, position: int, message: str, line: int = 1, column: int = 0
) -> Problem:
    """The problem at a character of `text`, whose first character stands in `line` after `column`
    others."""
    start = text.rfind("\n", 0, position)
    at_line = line + text.count("\n", 0, position)
    at_column = position - start if start >= 0 else column + position + 1
    where = f"{name}, line {at_line}, column {at_column}"
    return problem("E-DATA-03", where, cause=likely_cause(text, position, message))


class _Window:
    """A piece of a text that moves forward. `at` is the scanner's place in `text`."""

    def __init__(self, name: str, first: str, rest: TextIO):
        self.name, self.text, self._rest = name, first, rest
        self.at = 0
        self._line, self._column = 1, 0  # of the first character of `text`
        self._row_line, self._counted = 1, 0  # lines counted up to this index
        self._ended = False

    def more(self) -> bool:
        """Drop what was scanned and read on, as much as there is already; False, with nothing
        dropped, at the end of the file."""
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
        """Go to the next character that is no white space and return it; an empty string at the end
        of the file."""
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
                # Only what fails at the window's end may be whole further on; a text that never
                # ends stops at the next line break.
                is_open = error.msg.startswith("Unterminated string")
                is_cut = is_open or not self.text[error.pos + NEAR_END :].strip()
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
        return DataError(
            _syntax_problem(self.name, self.text, position, message, self._line, self._column)
        )


@reads("json", ".json")
def read_json(source: Source) -> Iterator[RawRow]:
    """Rows of an array, of objects one after the other, of one object a line, or of the list that
    stands under a key of the only object."""
    keys = wrapped_keys(source)
    with source.text() as text:
        head, first = _beginning(text)
        if keys:
            yield from _under(_Window(source.name, head, text), _chosen_key(keys, source))
        elif first.startswith("{") and first.rstrip().endswith("}"):
            yield from _lines(source.name, head, text)
        elif first.startswith("["):
            yield from _arrays(source.name, head, text)
        elif first:
            yield from _one_after_another(_Window(source.name, head, text))


@reads("jsonl", ".jsonl", ".ndjson")
def read_jsonl(source: Source) -> Iterator[RawRow]:
    """One JSON value a line; blank lines are skipped. A file that is an array after all, or objects
    over several lines, is read as that."""
    keys = wrapped_keys(source)
    with source.text() as text:
        head, first = _beginning(text)
        first = first.strip()
        if keys:
            yield from _under(_Window(source.name, head, text), _chosen_key(keys, source))
        elif first.startswith("[") and (
            first == "[" or first.endswith((",", "{")) or first.startswith(("[{", "[[{"))
        ):
            yield from _arrays(source.name, head, text)
        elif first == "{":
            yield from _one_after_another(_Window(source.name, head, text))
        else:
            yield from _lines(source.name, head, text)


def _arrays(name: str, head: str, text: TextIO) -> Iterator[RawRow]:
    """A file that begins with a bracket: one array of rows, or a dialogue a line."""
    start = len(head) - len(head.lstrip())
    # A first turn may be longer than what is read so far.
    if is_turn(_first_element(head, start)) or _begins_a_turn.match(head, start):
        if "\n" not in head[start:]:
            head += text.readline()
        end = head.find("\n", start)
        if _is_dialogue(head[start : end if end >= 0 else len(head)]):
            yield from _lines(name, head, text)
            return
    turns: list[RawRow] | None = []
    for one in _array(_Window(name, head, text)):
        if turns is not None and is_turn(one.value):
            turns.append(one)
            continue
        yield from turns or ()
        turns = None
        yield RawRow(_row(one.value), one.origin)
    if turns:
        yield RawRow(_row([one.value for one in turns]), turns[0].origin)


def _first_element(head: str, start: int) -> Any:
    """The first element of the array at `start`, where it is an object that is there already."""
    found = _space.match(head, start + 1)
    try:
        return json_value(head, found.end() if found else start + 1)[0]
    except json.JSONDecodeError:
        return None


def _is_dialogue(line: str) -> bool:
    try:
        value, end = json_value(line)
    except json.JSONDecodeError:
        return False
    return not line[end:].strip() and are_turns(value)


def _row(value: Any) -> Any:
    """The value as a row: a list of turns is a dialogue whose object was left out."""
    if type(value) is list and are_turns(value):
        return {"messages" if "role" in value[0] else "conversations": value}
    return value


# ---- rows under a key


def wrapped_keys(source: Source) -> dict[str, str]:
    """Part -> the key under which its rows stand, for a file that is one object around lists of
    rows; empty for any other file.

    Raises DataError where several lists could be meant.
    """
    with source.text() as text:
        head, first = _beginning(text)
        if not first.startswith("{"):
            return {}
        window = _Window(source.name, head, text)
        shapes: dict[str, tuple[str, int]] = {}
        try:
            for name in _names(window):
                shapes[name] = _shape_of(window)
            if window.skip_space():
                return {}
        except DataError:
            return {}  # the reader says what is wrong
    kinds = set(shapes.values())
    if len(shapes) > 1 and len(kinds) == 1 and kinds.pop()[0] == "column":
        columns = ", ".join(list(shapes)[:10])
        raise DataError.of("E-DATA-98", source.name, file=source.name, columns=columns)
    rows = [name for name, (kind, _) in shapes.items() if kind == "rows"]
    parts = {name: part_of(name) for name in rows}
    named = [name for name in rows if parts[name] or name.strip().lower() in WRAPPERS]
    if not named and len(rows) == len(shapes) == 1:
        named = rows
    keys: dict[str, str] = {}
    for name in named:
        part = parts[name] or "train"
        if part in keys:
            told = {"first": keys[part], "second": name}
            raise DataError.of("E-DATA-97", source.name, file=source.name, **told)
        keys[part] = name
    return keys


def _shape_of(window: _Window) -> tuple[str, int]:
    """What the value at the window's place is, and how long: `rows` (objects that are no turns, or
    dialogues), a `column` of plain values, or `other`."""
    if window.skip_space() != "[":
        value = window.value()
        is_column = type(value) is dict and all(
            name.isdigit() and type(one) not in (dict, list) for name, one in value.items()
        )
        return ("column", len(value)) if is_column and value else ("other", 0)
    count, are_rows, are_plain = 0, True, True
    for one in _array(window, closed=True):
        count += 1
        are_rows = are_rows and (
            (type(one.value) is dict and not is_turn(one.value)) or are_turns(one.value)
        )
        are_plain = are_plain and type(one.value) not in (dict, list)
    kind = "rows" if are_rows else "column" if are_plain else "other"
    return (kind if count else "other"), count


def _names(window: _Window) -> Iterator[str]:
    """The names of the object at the window's place; whoever asks for the next one has gone behind
    the value."""
    window.skip_space()
    window.at += 1
    while window.skip_space() not in ("}", ""):
        if window.text[window.at] == ",":
            window.at += 1
            window.skip_space()
        name = window.value()
        if not isinstance(name, str) or window.skip_space() != ":":
            raise window.fault(window.at, "Expecting ':' delimiter")
        window.at += 1
        window.skip_space()
        yield name
    window.at += 1


def _chosen_key(keys: dict[str, str], source: Source) -> str:
    """The key of the part that this reading is for. Raises DataError where the file has no such
    part."""
    part = next((part for part in source.parts if part in keys), None)
    if part is None:
        names = ", ".join(keys.values())
        told = {"folder": source.name, "files": names, "first": source.name}
        raise DataError.of("E-DATA-95", source.name, **told)
    key = keys[part]
    others = [name for name in keys.values() if name != key]
    source.under.append({"file": source.name, "key": key, "part": part, "others": others})
    return key


def _under(window: _Window, key: str) -> Iterator[RawRow]:
    for name in _names(window):
        if name == key:
            yield from (RawRow(_row(one.value), one.origin) for one in _array(window, closed=True))
        elif window.skip_space() == "[":
            for _ in _array(window, closed=True):
                pass
        else:
            window.value()


# ---- the ways in which rows stand in a file


def _beginning(text: TextIO) -> tuple[str, str]:
    """What was read of the file, at least up to its first text, and the first line with text as far
    as it was read.

    A line that goes on and does not begin with a bracket is read to its end, because how it ends
    tells lines from one long value.
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


def _array(window: _Window, closed: bool = False) -> Iterator[RawRow]:
    """Elements of the array at the window's place, with their lines. `closed`: more may follow
    behind it."""
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
    if not closed and window.skip_space():
        raise window.fault(window.at, "Extra data")


def _one_after_another(window: _Window) -> Iterator[RawRow]:
    row = 0
    while window.skip_space():
        line = window.line()
        value = window.value()
        row += 1
        yield RawRow(value, Origin(window.name, line, row))


def _lines(name: str, head: str, text: TextIO) -> Iterator[RawRow]:
    # Only line ends of files end a line: str.splitlines would also cut at U+2028, which JSON allows
    # inside strings.
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
                bare = line.rstrip("\n")
                problems.append(_syntax_problem(name, bare, error.pos, error.msg, number))
            continue
        row += 1
        if not bad:
            yield RawRow(value if type(value) is dict else _row(value), Origin(name, number, row))
    if bad > SHOWN_PROBLEMS:
        problems.append(problem("E-DATA-04", name, count=bad - SHOWN_PROBLEMS, total=bad))
    if problems:
        raise DataError(problems)
