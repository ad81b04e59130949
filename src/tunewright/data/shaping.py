"""Raw rows to rows: which format a file has, and what could not be used.

The format is told from the first rows: every registered format says how much each of them resembles it, and the highest sum wins. A tie, or
nothing at all, is an error that lists the columns that were found and what each format needs; `data.format` and `data.columns` decide then. A tie is
settled by the objective, where only one of the formats makes rows that it learns from, or learns from best.

`Shaper` converts one row at a time, for sets that are streamed; `shape` converts a list.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunewright.core.errors import DataError, problem
from tunewright.core.registry import formats
from tunewright.core.types import ROW_KINDS, Origin, Row
from tunewright.data.formats.common import Columns, Unusable
from tunewright.data.reading import RawRow

LOOKED_AT = 100
SHOWN_COLUMNS, SHOWN_CHARACTERS = 20, 60


@dataclass(frozen=True)
class Dropped:
    """A row that is not trained on, and why: a key of `data.reason.*` and what was found."""

    origin: Origin
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass
class Shaped:
    """Rows of one source, the format they had, what was dropped, and notes on what was converted."""

    rows: list[Row]
    dropped: list[Dropped]
    format: str
    notes: Counter[str]


class Shaper:
    """Rows of one source in one format, one at a time. `first` are its first rows (up to LOOKED_AT), from which `auto` tells the format; `wants` are the
    kinds of rows that the objective learns from, the best first, which decide where the columns leave it open.

    Raises DataError for a format that is unknown, ambiguous or absent. `format` is the name, `notes` counts what was converted.
    """

    def __init__(
        self,
        first: Sequence[RawRow],
        format_name: str = "auto",
        columns: Mapping[str, str] | None = None,
        *,
        wording: str | None = None,
        labels: Sequence[str] | None = None,
        wants: Sequence[str] = (),
    ):
        self._columns = Columns(columns, wording, labels)
        self.format = detect(first, self._columns, wants) if format_name == "auto" else format_name
        entry = formats.get(self.format)
        if entry is None:
            guess = formats.guess(self.format) or "auto"
            raise DataError(problem("E-DATA-10", "data.format", name=self.format, guess=guess, known=", ".join(formats.names())))
        self._function = entry.function

    @property
    def notes(self) -> Counter[str]:
        """What was converted so far, counted: keys of `data.note.*`."""
        return self._columns.notes

    def row(self, raw: RawRow) -> Row | Dropped:
        """One row, or why it cannot be used."""
        made = self._function(raw.value, raw.origin, self._columns)
        if not isinstance(made, Unusable):
            return made
        return Dropped(raw.origin, made.reason, printable(made.detail))


def shape(
    raw: Sequence[RawRow],
    format_name: str = "auto",
    columns: Mapping[str, str] | None = None,
    *,
    wording: str | None = None,
    labels: Sequence[str] | None = None,
) -> Shaped:
    """Rows in the named or detected format. Raises DataError for a format that is unknown, ambiguous or absent, and for columns that do not exist."""
    check_columns(raw, columns)
    shaper = Shaper(raw[:LOOKED_AT], format_name, columns, wording=wording, labels=labels)
    rows: list[Row] = []
    dropped: list[Dropped] = []
    for one in raw:
        made = shaper.row(one)
        if isinstance(made, Dropped):
            dropped.append(made)
        else:
            rows.append(made)
    return Shaped(rows, dropped, shaper.format, shaper.notes)


def detect(raw: Sequence[RawRow], columns: Columns, wants: Sequence[str] = ()) -> str:
    """The name of the format that the first rows resemble most. Raises DataError where none does, or two do alike and `wants` does not decide."""
    objects = [columns.renamed(one.value) for one in raw[:LOOKED_AT] if isinstance(one.value, dict)]
    scores = {entry.name: sum(entry.facts["looks_like"](row) for row in objects) for entry in formats if "looks_like" in entry.facts}
    best = max(scores.values(), default=0)
    winners = [name for name, score in scores.items() if score == best and score]
    if len(winners) > 1:
        winners = _wanted(winners, raw, columns, wants)
    if len(winners) == 1:
        return winners[0]
    where = raw[0].origin.file if raw else "data.train"
    found = _shown(_columns(raw)) or f"- ({type(raw[0].value).__name__ if raw else '-'})"
    needs = "; ".join(f"{entry.name}: {entry.facts.get('needs', '?')}" for entry in formats)
    if winners:
        raise DataError(problem("E-DATA-09", where, formats=", ".join(winners), columns=found, needs=needs))
    raise DataError(problem("E-DATA-08", where, columns=found, needs=needs))


def _wanted(names: list[str], raw: Sequence[RawRow], columns: Columns, wants: Sequence[str]) -> list[str]:
    """Those of several formats that make rows of the kind that is wanted most; all of them where none does."""
    kinds: dict[str, str] = {}
    for name in names:
        entry = formats.get(name)
        assert entry is not None
        # Looked at only: what is converted on the way is counted when the rows are read.
        made = [entry.function(one.value, one.origin, Columns(columns, columns.wording, columns.labels)) for one in raw[:LOOKED_AT]]
        kinds[name] = next((ROW_KINDS[type(row)] for row in made if type(row) in ROW_KINDS), "")
    return next((found for kind in wants if (found := [name for name in names if kinds[name] == kind])), names)


def printable(text: str) -> str:
    """A text that any terminal and any file can take: half characters and control characters are written as escapes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _shown(names: Iterable[str]) -> str:
    """Names of columns for a message: not too many, not too long."""
    listed = list(names)
    cut = [printable(name[:SHOWN_CHARACTERS]) + ("..." if len(name) > SHOWN_CHARACTERS else "") for name in listed[:SHOWN_COLUMNS]]
    return ", ".join([*cut, "..."] if len(listed) > SHOWN_COLUMNS else cut)


def _columns(raw: Sequence[RawRow]) -> list[str]:
    """Names of columns in the first rows, in the order in which they appear."""
    return list(dict.fromkeys(name for one in raw[:LOOKED_AT] if isinstance(one.value, dict) for name in one.value))


def check_columns(raw: Sequence[RawRow], columns: Mapping[str, str] | None) -> None:
    """Every renamed column exists in at least one of the rows. Raises DataError with the closest names."""
    if not columns:
        return
    there = {name for one in raw if isinstance(one.value, dict) for name in one.value}
    problems = []
    for ours, theirs in columns.items():
        if theirs not in there:
            close = difflib.get_close_matches(theirs, sorted(there)[:1000], n=1)
            guess = _shown(close) or "-"
            problems.append(problem("E-DATA-11", f"data.columns.{ours}", column=theirs, guess=guess, columns=_shown(_columns(raw))))
    if problems:
        raise DataError(problems)
