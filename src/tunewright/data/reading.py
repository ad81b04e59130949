"""Files to raw rows, each with the file and line it came from.

A JSON array is decoded one element at a time with the standard library's scanner, so that every row knows its line and a syntax error is named
with file, line, column and its likely cause. A syntax error stops the run (every bad line of a JSONL file is counted, the first five are shown):
half a file is not what somebody meant to train on. A `.txt` or `.md` file holds one row per block of lines; blank lines separate blocks, and in
a file without any blank line every line is a row.

Bytes are UTF-8, with or without a byte order mark, or UTF-16/32 with one; anything else is an error that names the byte and the line.
Readers are registered by file ending with `@reads`, so another kind of file is one function.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError, Problem, problem
from tunewright.core.types import Origin
from tunewright.data.syntax import CONSTANT, find_constant, likely_cause, refuse_constant

SHOWN_PROBLEMS = 5
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_space = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder(parse_constant=refuse_constant)


@dataclass(frozen=True)
class RawRow:
    """One row as the file has it: any JSON value, and where it starts."""

    value: Any
    origin: Origin


@dataclass
class RawFile:
    """The rows of one file. `encoding` is a Python codec name, with `+bom` where a byte order mark stood."""

    path: Path
    kind: str
    encoding: str
    rows: list[RawRow]


Reader = Callable[[str, str], list[RawRow]]
READERS: dict[str, tuple[str, Reader]] = {}


def reads(kind: str, *endings: str) -> Callable[[Reader], Reader]:
    """Decorator: the function turns (text, file name) into rows for files with these endings."""

    def keep(function: Reader) -> Reader:
        READERS.update({ending: (kind, function) for ending in endings})
        return function

    return keep


def data_files(place: str, folder: str | None = None) -> list[Path]:
    """The files that `place` names: itself, or the readable files of a folder, sorted. `folder` is looked in when `place` is not found here.

    Raises DataError when there is none.
    """
    try:
        path = Path(place).expanduser()
        if not path.exists() and folder is not None and (Path(folder).expanduser() / place).exists():
            path = Path(folder).expanduser() / place
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if _is_data(p))
            if not files:
                raise DataError(problem("E-DATA-07", str(path), folder=str(path), endings=", ".join(sorted(READERS))))
            return files
        if not path.exists():
            raise DataError(problem("E-DATA-01", str(place), file=str(place), here=str(Path.cwd())))
    except (OSError, ValueError, RuntimeError) as error:
        # A name with a zero byte, a name too long, a ~user that does not exist.
        raise DataError(problem("E-DATA-02", repr(place[:200]), file=repr(place[:200]), cause=_cause(error))) from error
    return [path]


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in READERS and not path.name.startswith(".") and path.name != "dataset_info.json" and path.is_file()


def read(path: Path) -> RawFile:
    """All rows of one file. Raises DataError for a file that is missing, empty, of an unknown kind or encoding, or not valid JSON."""
    found = READERS.get(path.suffix.lower())
    if found is None:
        raise DataError(problem("E-DATA-16", str(path), ending=path.suffix or "-", endings=", ".join(sorted(READERS))))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(problem("E-DATA-02", str(path), file=str(path), cause=_cause(error))) from error
    text, encoding = decode(data, str(path))
    if not text.strip():
        raise DataError(problem("E-DATA-06", str(path), file=str(path)))
    kind, reader = found
    rows = reader(text, str(path))
    if not rows:
        raise DataError(problem("E-DATA-06", str(path), file=str(path)))
    return RawFile(path, kind, encoding, rows)


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def decode(data: bytes, name: str) -> tuple[str, str]:
    """Text and encoding of a file's bytes. Raises DataError naming the first byte and line that do not fit."""
    mark, codec = next(((mark, codec) for mark, codec in BOMS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        return body.decode(codec), f"{codec}+bom" if mark else codec
    except UnicodeDecodeError as error:
        line = body[: error.start].decode(codec, errors="ignore").count("\n") + 1
        where = f"{name}, line {line}"
        offset = error.start + len(mark)
        raise DataError(problem("E-DATA-05", where, codec=codec, byte=offset, value=f"0x{data[offset]:02x}", guess=_guess(data))) from error


def _guess(data: bytes) -> str:
    """A codec the bytes do fit, for the message only."""
    if data[:4000].count(0) > len(data[:4000]) // 4:
        return "UTF-16"
    for codec in ("gb18030", "big5", "shift_jis", "cp1252"):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        # Latin text in a Chinese codec comes out as rare characters; real Chinese is mostly common ones.
        if codec == "cp1252" or sum("\u4e00" <= c <= "\u9fff" for c in text[:4000]) > len(text[:4000]) // 20:
            return {"gb18030": "GBK", "cp1252": "Windows-1252"}.get(codec, codec)
    return "?"


def _syntax_problem(name: str, text: str, position: int, message: str, base: int = 1) -> Problem:
    """The problem at a character of `text`; its first line has number `base`."""
    line = base + text.count("\n", 0, position)
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return problem("E-DATA-03", f"{name}, line {line}, column {column}", cause=likely_cause(text, position, message))


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at `at` and the index after it. Raises json.JSONDecodeError for everything that can be wrong with one."""
    try:
        return _decoder.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("too deep", text, at) from error
    except ValueError as error:
        # Not JSON's own complaint: a number of more digits than Python converts, or a constant such as NaN.
        place = find_constant(text, at) if str(error).startswith(CONSTANT) else at
        raise json.JSONDecodeError(str(error), text, place) from error


def _after_space(text: str, at: int) -> int:
    found = _space.match(text, at)
    return found.end() if found else at


def _line_at(text: str, at: int) -> str:
    end = text.find("\n", at)
    return text[at : end if end >= 0 else len(text)]


@reads("json", ".json")
def read_json(text: str, name: str) -> list[RawRow]:
    """Rows of an array, of objects one after the other, or of one object a line."""
    start = _after_space(text, 0)
    first_line = _line_at(text, start)
    if text[start] == "[":
        return list(_array(text, name, start))
    if text[start] == "{" and first_line.rstrip().endswith("}"):
        return read_jsonl(text, name)
    return list(_one_after_another(text, name, start))


def _array(text: str, name: str, start: int) -> Iterator[RawRow]:
    """Elements of the array at `start`, with their lines."""
    line, counted, row = 1, 0, 0
    at = _after_space(text, start + 1)
    fault = ""
    while text[at : at + 1] != "]" or row:
        try:
            value, end = _value(text, at)
        except json.JSONDecodeError as error:
            raise DataError(_syntax_problem(name, text, error.pos, error.msg)) from error
        row += 1
        line += text.count("\n", counted, at)
        counted = at
        yield RawRow(value, Origin(name, line, row))
        at = _after_space(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            fault = "Expecting ',' delimiter"
            break
        at = _after_space(text, at + 1)
    rest = _after_space(text, at + 1)
    if not fault and rest < len(text):
        at, fault = rest, "Extra data"
    if fault:
        raise DataError(_syntax_problem(name, text, at, fault))


def _one_after_another(text: str, name: str, at: int) -> Iterator[RawRow]:
    row, line, counted = 0, 1, 0
    while at < len(text):
        try:
            value, end = _value(text, at)
        except json.JSONDecodeError as error:
            raise DataError(_syntax_problem(name, text, error.pos, error.msg)) from error
        row += 1
        line += text.count("\n", counted, at)
        counted = at
        yield RawRow(value, Origin(name, line, row))
        at = _after_space(text, end)


@reads("jsonl", ".jsonl", ".ndjson")
def read_jsonl(text: str, name: str) -> list[RawRow]:
    """One JSON value a line; blank lines are skipped. A file that is an array after all is read as one."""
    start = _after_space(text, 0)
    first = _line_at(text, start).strip()
    if first.startswith("[") and (first == "[" or first.endswith((",", "{")) or first.startswith("[{")):
        return list(_array(text, name, start))
    rows: list[RawRow] = []
    problems: list[Problem] = []
    bad = 0
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        begin = _after_space(line, 0)
        if begin == len(line):
            continue
        try:
            value, end = _value(line, begin)
            rest = _after_space(line, end)
            if rest < len(line):
                raise json.JSONDecodeError("Extra data", line, rest)
            rows.append(RawRow(value, Origin(name, number, len(rows) + 1)))
        except json.JSONDecodeError as error:
            bad += 1
            if bad <= SHOWN_PROBLEMS:
                problems.append(_syntax_problem(name, line, error.pos, error.msg, number))
    if bad > SHOWN_PROBLEMS:
        problems.append(problem("E-DATA-04", name, count=bad - SHOWN_PROBLEMS, total=bad))
    if problems:
        raise DataError(problems)
    return rows


@reads("text", ".txt", ".md")
def read_text(text: str, name: str) -> list[RawRow]:
    """Blocks of lines between blank lines; without blank lines, every line. Each row is `{"text": block}`."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    one_a_line = all(line.strip() for line in lines)
    rows: list[RawRow] = []
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line)
        if block and (one_a_line or not line.strip()):
            started = number if one_a_line else number - len(block)
            rows.append(RawRow({"text": "\n".join(block)}, Origin(name, started, len(rows) + 1)))
            block = []
    return rows
