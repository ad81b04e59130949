"""Rows as files have them, and which function reads a file of which ending.

A reader is a generator `(Source) -> Iterator[RawRow]` that holds one row, or one small batch, at a
time. Another kind of file is one such function under `@reads`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunewright.core.types import Origin

if TYPE_CHECKING:
    from tunewright.data.files.source import Source

PACKED = ".gz"
SHOWN_PROBLEMS = 5


class RawRow(NamedTuple):
    """One row as the file has it: any JSON value, and where it starts. In Parquet and Arrow files,
    which have no lines, a line is a row."""

    value: Any
    origin: Origin


@dataclass
class RawFile:
    """The rows of one file. `encoding` is a Python codec name, with `+bom` where a byte order mark
    stood. `notes` are keys of `data.note.*`, counted."""

    path: Path
    kind: str
    encoding: str
    rows: list[RawRow]
    notes: Counter[str] = field(default_factory=Counter)


@dataclass
class RawStream:
    """Like `RawFile`, but `rows` can be gone through once and is read while it is. `notes` is
    complete when the rows are."""

    path: Path
    kind: str
    encoding: str
    rows: Iterator[RawRow]
    notes: Counter[str] = field(default_factory=Counter)
    under: list[dict[str, Any]] = field(default_factory=list)
    """`Source.under`; known from the first row on."""


Reader = Callable[["Source"], Iterator[RawRow]]


@dataclass(frozen=True)
class Kind:
    """A kind of file. `is_text`: the reader wants characters, so the encoding is found first."""

    name: str
    reader: Reader
    is_text: bool = True


READERS: dict[str, Kind] = {}


def reads(kind: str, *endings: str, is_text: bool = True) -> Callable[[Reader], Reader]:
    """Decorator: the function reads files with these endings, and the same packed with gzip."""

    def keep(function: Reader) -> Reader:
        READERS.update({ending: Kind(kind, function, is_text) for ending in endings})
        return function

    return keep


def ending_of(path: Path) -> tuple[str, bool]:
    """The ending that tells the kind, and whether the file is packed: (".json", True) for
    `a.json.gz`."""
    name = path.name.lower()
    packed = name.endswith(PACKED)
    return Path(name.removesuffix(PACKED) if packed else name).suffix, packed


def endings() -> str:
    """All endings that are read, for messages."""
    return ", ".join(sorted(READERS)) + f" (+ {PACKED})"
