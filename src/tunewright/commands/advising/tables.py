"""Questions to tables: a database that can only be read, and what SQL of a model may do in it.

A model's SQL is a stranger's program, so four things hold it: the file is opened read-only
(`mode=ro`, `query_only`), an authoriser allows SELECT, reading and a list of harmless functions and
nothing else, a clock stops what takes longer than `MOST_SECONDS`, and no more than `MOST_ROWS` rows
are read. A CSV file is read into memory, its columns typed by what stands in them.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem

MOST_SECONDS = 2.0
MOST_ROWS = 200
MOST_CHARACTERS = 2_000
"""Of an answer."""
TABLE_ENDINGS = (".csv", ".tsv", ".tab", ".sqlite", ".sqlite3", ".db")
SQLITE_HEAD = b"SQLite format 3\x00"
SAMPLED = 2
"""Rows of each table that the schema shows."""
FUNCTIONS = frozenset(
    """abs avg cast ceil char coalesce count date datetime dense_rank floor glob group_concat hex
    ifnull iif instr julianday length like lower ltrim max min nullif rank round row_number rtrim
    sign strftime substr substring sum time total trim typeof unicode upper""".split()
)
"""What SQL may call: nothing that reads files, loads code or makes texts of any length."""
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}


@dataclass(frozen=True)
class Column:
    """A column. `is_number`: every filled cell that was looked at is a number."""

    name: str
    is_number: bool


@dataclass(frozen=True)
class Table:
    """A table or view."""

    name: str
    columns: tuple[Column, ...]
    rows: int


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


class Database:
    """A file of tables, read-only. `ask` runs SQL of whoever wrote it."""

    def __init__(self, path: Path):
        """Raises UsageError for what is no table (E-ADVISE-03)."""
        self.path = path
        if path.suffix.lower() not in TABLE_ENDINGS or not path.is_file():
            raise _unreadable(path, path.suffix or "-" if path.is_file() else "-")
        try:
            is_file = path.read_bytes()[:16] == SQLITE_HEAD if path.stat().st_size else False
            self._db = _opened(path) if is_file else _loaded(path)
            self.tables = _tables(self._db)
        except sqlite3.Error as error:
            raise _unreadable(path, str(error)) from error
        if not any(table.rows for table in self.tables):
            raise _unreadable(path, "0")
        self._guard()
        self._kept: dict[str, str | None] = {}

    def _guard(self) -> None:
        self._db.execute("PRAGMA query_only=ON")
        if hasattr(self._db, "setlimit"):  # Python 3.11
            limits: Any = sqlite3
            self._db.setlimit(limits.SQLITE_LIMIT_LENGTH, 1_000_000)
            self._db.setlimit(limits.SQLITE_LIMIT_SQL_LENGTH, 20_000)
        self._db.set_authorizer(_authorise)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """At most `MOST_ROWS` rows. Raises sqlite3.Error for SQL that is wrong, forbidden or takes
        too long."""
        end = time.monotonic() + MOST_SECONDS
        self._db.set_progress_handler(lambda: int(time.monotonic() > end), 10_000)
        try:
            return list(self._db.execute(sql, values).fetchmany(MOST_ROWS))
        except sqlite3.Warning as error:  # two statements at once
            raise sqlite3.OperationalError(str(error)) from error
        finally:
            self._db.set_progress_handler(None, 0)

    def ask(self, sql: str) -> str | None:
        """The result of one SELECT as text: a cell, or cells with commas between; empty for no row,
        None for SQL that does not run."""
        if sql not in self._kept:
            try:
                self._kept[sql] = text_of(self.rows(sql))
            except (sqlite3.Error, OverflowError, UnicodeError, ValueError):
                self._kept[sql] = None
        return self._kept[sql]

    def cells(self, table: str, column: str, most: int) -> Iterator[Any]:
        """The different values of a column, at most so many."""
        # The names come from the file's own schema.
        sql = f"SELECT DISTINCT {quoted(column)} FROM {quoted(table)} LIMIT {most}"  # noqa: S608
        for (value,) in self._db.execute(sql):
            yield value

    def schema(self) -> str:
        """The tables as a model is shown them: their columns, and a few rows."""
        parts = []
        for table in self.tables:
            kinds = ", ".join(
                f"{quoted_if_needed(c.name)} {'REAL' if c.is_number else 'TEXT'}"
                for c in table.columns
            )
            lines = [f"CREATE TABLE {quoted_if_needed(table.name)} ({kinds});"]
            rows = self.rows(f"SELECT * FROM {quoted(table.name)} LIMIT {SAMPLED}")  # noqa: S608
            lines += ["-- " + " | ".join(shown(value)[:40] for value in row) for row in rows]
            parts.append("\n".join(lines))
        return "\n".join(parts)[: 2 * MOST_CHARACTERS]


RESERVED = frozenset(
    """add all alter and as asc between by case check collate commit constraint create cross current
    default deferrable delete desc distinct drop else end escape except exists filter for foreign
    from full group groups having if in index indexed inner insert intersect into is isnull join key
    left like limit match natural no not notnull null of offset on or order outer over partition
    pragma primary range references regexp reindex release rename replace restrict right rollback
    row rows select set table temp then to transaction trigger union unique update using vacuum
    values view virtual when where window with without""".split()
)
"""Words of SQL that are no names without quotes."""


def quoted_if_needed(name: str) -> str:
    """A plain name as it is, any other in quotes: what a person would write."""
    plain = re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and name.lower() not in RESERVED
    return name if plain else quoted(name)


def _unreadable(path: Path, cause: str) -> UsageError:
    return UsageError(
        problem("E-ADVISE-03", str(path), cause=cause, endings=", ".join(TABLE_ENDINGS))
    )


def _authorise(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and str(second).lower() not in FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _opened(path: Path) -> sqlite3.Connection:
    made = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    # Bytes that are no UTF-8 must not end the whole measurement.
    made.text_factory = lambda data: data.decode("utf-8", errors="replace")
    return made


def _loaded(path: Path) -> sqlite3.Connection:
    """A CSV or TSV file as a table in memory, called like the file. Raises DataError as data files
    do."""
    from tunewright.data.files.reading import stream

    rows = [row.value for row in stream(path).rows]
    names = list(rows[0])
    table = quoted(re.sub(r"\W+", "_", path.stem).strip("_") or "data")
    columns = {name: [_cell(row.get(name)) for row in rows] for name in names}
    made = sqlite3.connect(":memory:")
    kinds = []
    for name, cells in columns.items():
        numbers = [_number(cell) for cell in cells]
        filled = [n for n, cell in zip(numbers, cells, strict=True) if cell is not None]
        if filled and None not in filled:
            columns[name] = numbers
            kinds.append(f"{quoted(name)} NUMERIC")
        else:
            kinds.append(f"{quoted(name)} TEXT")
    made.execute(f"CREATE TABLE {table} ({', '.join(kinds)})")
    places = ", ".join("?" * len(names))
    made.executemany(f"INSERT INTO {table} VALUES ({places})", zip(*columns.values(), strict=True))  # noqa: S608
    made.commit()
    return made


def _cell(value: Any) -> Any:
    text = "" if value is None else str(value).strip()
    return text or None


def _number(cell: Any) -> int | float | None:
    """The cell as a number; a number with leading zeros is a name (a post code, an article)."""
    text = str(cell)
    if cell is None or re.fullmatch(r"-?0\d+", text):
        return None
    with contextlib.suppress(ValueError):
        return int(text) if re.fullmatch(r"[-+]?\d{1,15}", text) else None or _finite(text)
    return None


def _finite(text: str) -> float | None:
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", text):
        return None
    value = float(text)
    return value if abs(value) < 1e300 else None


def _tables(db: sqlite3.Connection) -> list[Table]:
    names = [
        name
        for (name,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
        )
        if not name.startswith("sqlite_")
    ]
    found = []
    for name in names:
        heads = [row[1] for row in db.execute(f"PRAGMA table_info({quoted(name)})")]
        (rows,) = db.execute(f"SELECT COUNT(*) FROM {quoted(name)}").fetchone()  # noqa: S608
        columns = []
        for head in heads:
            kinds = {
                kind
                for (kind,) in db.execute(
                    f"SELECT DISTINCT typeof(v) FROM (SELECT {quoted(head)} AS v "  # noqa: S608
                    f"FROM {quoted(name)} LIMIT 10000)"
                )
            }
            columns.append(Column(head, bool(kinds) and kinds <= {"integer", "real", "null"}))
        found.append(Table(name, tuple(columns), rows))
    return found


def shown(value: Any) -> str:
    """A cell as text: 12.5, 12 for 12.0, nothing for NULL."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def text_of(rows: list[tuple[Any, ...]]) -> str:
    """Rows as an answer."""
    return ", ".join(text for row in rows for cell in row if (text := shown(cell)))[
        :MOST_CHARACTERS
    ]


_FENCE = re.compile(r"```(?:sql|sqlite)?\s*(.*?)(?:```|$)", re.DOTALL | re.IGNORECASE)


def sql_in(answer: str) -> str:
    """The first statement in what a model wrote, without a fence and what it says around it."""
    fenced = _FENCE.search(answer)
    text = fenced[1] if fenced else answer
    start = re.search(r"\b(SELECT|WITH)\b", text, re.IGNORECASE)
    text = text[start.start() :] if start else text
    out, inside = [], ""
    for sign in text:
        if sign == ";" and not inside:
            break
        inside = "" if sign == inside else inside or (sign if sign in "'\"" else "")
        out.append(sign)
    return "".join(out).strip()
