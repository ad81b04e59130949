"""Files on disk as bytes or characters, rows as files have them, and which function reads a file of
which ending.

A `Source` is opened as often as a reader likes, and unpacked on the way if it is packed. Only
regular files are read: a pipe or a device may never end. A packed file may hold at most
`MOST_RATIO` times its own size once that is more than `FREE_BYTES`: text packs 3 to 20 times, a
file made to fill a memory 1,000 times (deflate can do 1,032).

A reader is a generator `(Source) -> Iterator[RawRow]` that holds one row, or one small batch, at a
time. Another kind of file is one such function under `@reads`.
"""

from __future__ import annotations

import gzip
import io
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, TextIO, cast

from tunewright.core.errors import DataError
from tunewright.core.types import Origin
from tunewright.core.words import say
from tunewright.data.files.encodings import CHUNK_BYTES, UTF8, Encoding

PACKED = ".gz"
SHOWN_PROBLEMS = 5
FREE_BYTES = 64 * 2**20
MOST_RATIO = 200


class RawRow(NamedTuple):
    """One row as the file has it: any JSON value, and where it starts. In Parquet and Arrow files,
    which have no lines, a line is a row."""

    value: Any
    origin: Origin


@dataclass
class RawStream:
    """The rows of one file, gone through once and read while they are. `encoding` is
    a Python codec name, with `+bom` where a byte order mark stood. `notes` are keys of
    `data.note.*`, counted, complete when the rows are."""

    kind: str
    encoding: str
    rows: Iterator[RawRow]
    notes: Counter[str] = field(default_factory=Counter)
    under: list[dict[str, Any]] = field(default_factory=list)
    """`Source.under`; known from the first row on."""


@dataclass
class Source:
    """A file to read. `name` stands in messages; `whole` asks a text reader for one row a file;
    `notes` counts what was converted."""

    path: Path
    ending: str
    packed: bool
    size: int
    encoding: Encoding = UTF8
    whole: bool = False
    notes: Counter[str] = field(default_factory=Counter)
    parts: tuple[str, ...] = ("train",)
    """Which part is wanted of a file that has several, the first that there is."""
    under: list[dict[str, Any]] = field(default_factory=list)
    """Where rows stand under a key: its name, the part it is, the keys of other parts."""

    @property
    def name(self) -> str:
        """The path as text."""
        return str(self.path)

    def bytes(self) -> BinaryIO:
        """The content, unpacked. Reading raises DataError for a packed file that is damaged, cut
        off or unreasonably large."""
        try:
            opened = self.path.open("rb")
        except OSError as error:
            raise refused(self.name, error) from error
        if not self.packed:
            return opened
        return cast(
            "BinaryIO", io.BufferedReader(_Unpacked(opened, self.name, self.size), CHUNK_BYTES)
        )

    def text(self, newline: str | None = None) -> TextIO:
        """The content as characters, after its byte order mark. `newline` as in `open`: None makes
        every line end "\\n"."""
        content = self.bytes()
        content.read(self.encoding.mark_bytes)
        return io.TextIOWrapper(
            cast("IO[bytes]", content),
            encoding=self.encoding.codec,
            errors="strict",
            newline=newline,
        )


def find(path: Path) -> Source:
    """The file at `path`. Raises DataError where there is none that can be read as a file."""
    ending, packed = ending_of(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise refused(str(path), error) from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError.of(
            "E-DATA-30", str(path), file=str(path), kind=say(f"data.kind.{_kind(found.st_mode)}")
        )
    return Source(path, ending, packed, found.st_size)


def refused(name: str, error: Exception) -> DataError:
    """The operating system's refusal as ours."""
    return DataError.of("E-DATA-02", name, file=name, cause=error)


def _kind(mode: int) -> str:
    kinds = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((name for name, is_kind in kinds.items() if is_kind(mode)), "device")


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, with every fault as a DataError and a bound on its size."""

    def __init__(self, packed: BinaryIO, name: str, size: int):
        self._packed, self._file, self._name = packed, gzip.GzipFile(fileobj=packed), name
        self._most = max(FREE_BYTES, size * MOST_RATIO)
        self._size, self._read = size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        try:
            count = self._file.readinto(into)
        except EOFError as error:
            raise DataError.of("E-DATA-31", self._name, file=self._name) from error
        except (OSError, zlib.error) as error:
            raise DataError.of("E-DATA-32", self._name, file=self._name, cause=error) from error
        self._read += count
        if self._read > self._most:
            most = self._most // 2**20
            raise DataError.of(
                "E-DATA-33",
                self._name,
                file=self._name,
                size=self._size,
                most=most,
                ratio=MOST_RATIO,
            )
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._packed.close()
        super().close()


# ---- kinds of files


Reader = Callable[[Source], Iterator[RawRow]]


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
