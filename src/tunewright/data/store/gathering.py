"""All rows of a set read here, prepared by workers, written in the order in which they were read,
and what happened to them counted."""

from __future__ import annotations

import marshal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from tunewright.core.types import ROW_KINDS, Origin, Row
from tunewright.data.files.source import RawRow
from tunewright.data.formats.common import Unusable
from tunewright.data.formats.ledger import Ledger
from tunewright.data.formats.naming import printable
from tunewright.data.formats.shaping import Dropped
from tunewright.data.store import columns as token_store
from tunewright.data.store.columns import Writer
from tunewright.data.store.preparing import Job
from tunewright.data.store.splitting import KEYS
from tunewright.data.store.workers import Workers

if TYPE_CHECKING:
    import numpy as np

CHUNK_ROWS = 256
EXAMPLES, LISTED = 5, 1000
FEATURES_IN_MEMORY = 8 << 20


@dataclass
class Source:
    """One file and how its rows are made. `convert` is a catalogue's."""

    file: str
    rows: Iterator[RawRow]
    format: str | None
    columns: dict[str, str]
    weight: float
    number: int
    """Of the entry of `data.train` it belongs to."""
    held: bool = False
    convert: Callable[[Any, Origin], Row | Unusable] | None = None
    after: Callable[[set[str], Ledger], None] | None = None
    """Called with the columns that were seen and the file's ledger, after the last row."""


@dataclass
class Tally:
    """What happened to the rows of a set, without sentences, so that it can be kept and told in any
    language."""

    read: int = 0
    dropped: int = 0
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)
    listed: list[tuple[str, int, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    ledger: Ledger = field(default_factory=Ledger)

    def drop(self, one: Dropped, listed_of_file: int) -> None:
        """Count a dropped row; the first ones of each file are listed."""
        self.dropped += 1
        entry = self.reasons.setdefault(one.reason, {"count": 0, "examples": [], "details": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(str(one.origin))
            entry["details"].append(printable(one.detail))
        if listed_of_file < LISTED:
            self.listed.append((one.origin.file, one.origin.line, str(one)))


class Features:
    """The checks' features of all rows, kept in a nameless file until the split is known."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=FEATURES_IN_MEMORY)  # noqa: SIM115
        self._sizes: list[int] = []

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def add(self, data: bytes) -> None:
        """Keep what a job brought."""
        self._file.write(data)
        self._sizes.append(len(data))

    def __iter__(self) -> Iterator[list[Any]]:
        self._file.seek(0)
        for size in self._sizes:
            yield from marshal.loads(self._file.read(size))  # noqa: S302 - a nameless file of this process


@dataclass
class Gathered:
    """Every row of a set, written, before it is split."""

    train: Tally
    held: Tally
    num_train: int
    """Rows of `data.train`; those of a held-out file follow them."""
    keys: np.ndarray
    """uint64, rows x `splitting.KEYS`."""


def gather(
    sources: Iterable[Source],
    workers: Workers,
    writer: Writer,
    features: Features,
    files: list[str],
) -> Gathered:
    """Work through all files. Appends their names to `files`. Raises DataError for what a file or a
    worker has to say."""
    import numpy as np

    tallies = {False: Tally(), True: Tally()}
    kept = Counter[bool]()
    keys = bytearray()
    for source in sources:
        files.append(source.file)
        tally, listed, seen = tallies[source.held], 0, set[str]()
        mapped = Ledger()
        converted: list[Dropped] = []
        for _, done in workers.results(_jobs(source, tally, seen, converted)):
            for one in [*converted, *done.dropped]:
                tally.drop(one, listed)
                listed += 1
            converted.clear()
            tally.notes.update(done.notes)
            seen |= done.seen
            tally.ledger.merge(done.ledger)
            mapped.merge(done.ledger)
            numbers = {"source": source.number, "file": len(files) - 1}
            for name, number in numbers.items():
                done.columns[name] = np.full(done.kept, number, "<i4").tobytes()
            writer.add(done.columns)
            features.add(done.features)
            keys += done.keys
            kept[source.held] += done.kept
        for one in converted:
            tally.drop(one, listed)
        if source.after is not None:
            source.after(seen, mapped)
    table = np.frombuffer(keys, "<u8").reshape(-1, len(KEYS))
    return Gathered(tallies[False], tallies[True], kept[False], table)


def _jobs(source: Source, tally: Tally, seen: set[str], converted: list[Dropped]) -> Iterator[Job]:
    """The rows of a file in jobs. A catalogue's converter is a function of this process, so its
    rows are made here."""
    rows = iter(source.rows)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        tally.read += len(chunk)
        if source.convert is None:
            items: list[Any] = [(value, at.line, at.row) for value, at in chunk]
            yield Job(source.file, source.format, source.columns, source.weight, items)
            continue
        items = []
        for value, at in chunk:
            seen.update(value if isinstance(value, dict) else ())
            made = source.convert(value, at)
            if isinstance(made, Unusable):
                converted.append(Dropped(at, made.reason, made.detail))
            else:
                items.append((ROW_KINDS[type(made)], token_store.row_bytes(made), at.line, at.row))
        yield Job(source.file, None, {}, source.weight, items)
