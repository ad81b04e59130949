"""Files to raw rows, each with the file and line it came from. This is the door of the readers.

`stream` gives the rows while it reads and holds neither the file nor the rows. A syntax error stops
the run: half a file is not what somebody meant to train on. The encoding is found and said
(`encodings.py`); bytes that fit none are an error that names the byte and the line. Files packed
with gzip are read as what they hold.

A place is a file, a folder, an address (`remote.py`), or a set of the Hugging Face Hub or of
ModelScope (`hub.py`); the last two become files on this machine first. A folder has parts, told
from the names of its files and subfolders (`folders.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tunewright.core.errors import DataError
from tunewright.data.files import hub, remote
from tunewright.data.files.encodings import find_encoding
from tunewright.data.files.folders import Parts, parts_of_folder
from tunewright.data.files.json_files import wrapped_keys
from tunewright.data.files.source import (
    READERS,
    RawRow,
    RawStream,
    Source,
    ending_of,
    endings,
    find,
    refused,
)

FIRST_BYTES = 1 << 16
TRAINED, HELD, MEASURED = ("train",), ("valid",), ("valid", "test", "train")
"""Which part of a file is read: to train on, to measure beside it, and to measure with a file that
was named for that."""


def find_parts(place: str, folder: str | None = None, *, to_train: bool = True) -> Parts:
    """The files that `place` names: itself, the readable files of a folder by part, or those of an
    address or a hub set, which are fetched.

    `folder` is looked in when `place` is not found here. Raises DataError when there is none; with
    `to_train` also when there is none to train on.
    """
    if remote.is_named(place):
        copies = remote.fetch(place)
        if isinstance(copies, list):
            return Parts(copies)
        place = str(copies)
    if hub.is_named(place):
        return Parts(hub.fetch(place))
    try:
        path = Path(place).expanduser()
        if not _exists(path) and folder is not None and _exists(Path(folder).expanduser() / place):
            path = Path(folder).expanduser() / place
        if path.is_dir():
            found = parts_of_folder(path)
            if to_train:
                found.require_train()
            return found
        is_there = _exists(path)
    except (OSError, ValueError, RuntimeError) as error:
        # A name with a zero byte, a name too long, a ~user that does not exist.
        raise refused(repr(place[:200]), error) from error
    if is_there:
        return Parts([path])
    if hub.could_be(place):
        return Parts(hub.fetch(place))
    raise DataError.of("E-DATA-01", str(place), file=str(place), here=str(Path.cwd()))


def _exists(path: Path) -> bool:
    """Also true for a link that leads nowhere: that is said when it is opened, instead of that
    there is no such file."""
    return os.path.lexists(path)


def parts_inside(path: Path) -> dict[str, str]:
    """Part -> key, for a JSON file that has its rows under keys; empty for any other file, also for
    one that cannot be read: that is said when it is."""
    if ending_of(path)[0] not in (".json", ".jsonl", ".ndjson"):
        return {}
    source = find(path)
    with source.bytes() as content:
        first, _, rest = content.read(FIRST_BYTES).lstrip().partition(b"\n")
    # Rows a line and arrays, which nearly all files are, need no look at the whole file.
    if first.startswith(b"[") or (
        first.startswith(b"{") and first.rstrip().endswith(b"}") and rest.strip()
    ):
        return {}
    source.encoding = find_encoding(source.bytes, source.name)
    return wrapped_keys(source)


def stream(path: Path, *, whole: bool = False, parts: tuple[str, ...] = TRAINED) -> RawStream:
    """The rows of one file, given out while it is read.

    `whole`: a text file is one row (the format `documents`). `parts`: which part is wanted of a
    file that has several. Raises DataError for a file that is missing, of an unknown kind or
    encoding; going through the rows raises it for a file that is empty, damaged or not valid.
    """
    source = find(path)
    kind = READERS.get(source.ending)
    if kind is None:
        raise DataError.of("E-DATA-16", str(path), ending=path.suffix or "-", endings=endings())
    source.whole, source.parts = whole, parts
    if kind.is_text:
        source.encoding = find_encoding(source.bytes, source.name)
        source.notes["encoding_told"] += source.encoding.was_told
    rows = _checked(kind.reader(source), source)
    return RawStream(kind.name, source.encoding.name, rows, source.notes, source.under)


def _checked(rows: Iterator[RawRow], source: Source) -> Iterator[RawRow]:
    """The rows, at least one."""
    is_empty = True
    try:
        for row in rows:
            is_empty = False
            yield row
    except (OSError, UnicodeDecodeError) as error:
        # The whole file was decoded once before: it was changed meanwhile, or the disk failed.
        raise refused(source.name, error) from error
    if is_empty:
        raise DataError.of("E-DATA-06", source.name, file=source.name)
