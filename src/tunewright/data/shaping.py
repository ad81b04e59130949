"""Raw rows to rows: which format a file has, and what could not be used.

The format is told from the first rows: every registered format says how much each of them resembles it, and the highest sum wins. A tie, or
nothing at all, is an error that lists the columns that were found and what each format needs; `data.format` and `data.columns` decide then.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.core.errors import DataError, problem
from tunewright.core.registry import formats
from tunewright.core.types import Origin, Row
from tunewright.data.formats.common import Columns, Unusable
from tunewright.data.reading import RawRow

LOOKED_AT = 100


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


def shape(raw: Sequence[RawRow], format_name: str = "auto", columns: dict[str, str] | None = None) -> Shaped:
    """Rows in the named or detected format. Raises DataError for a format that is unknown, ambiguous or absent, and for columns that do not exist."""
    named = Columns(columns)
    _check_columns(raw, named)
    chosen = detect(raw, named) if format_name == "auto" else format_name
    entry = formats.get(chosen)
    if entry is None:
        raise DataError(problem("E-DATA-10", "data.format", name=chosen, guess=formats.guess(chosen) or "auto", known=", ".join(formats.names())))
    rows: list[Row] = []
    dropped = []
    for one in raw:
        made = entry.function(one.value, one.origin, named)
        if isinstance(made, Unusable):
            dropped.append(Dropped(one.origin, made.reason, made.detail))
        else:
            rows.append(made)
    return Shaped(rows, dropped, chosen, named.notes)


def detect(raw: Sequence[RawRow], columns: Columns) -> str:
    """The name of the format that the first rows resemble most. Raises DataError where none does, or two do alike."""
    objects = [columns.renamed(one.value) for one in raw[:LOOKED_AT] if isinstance(one.value, dict)]
    scores = {entry.name: sum(entry.facts["looks_like"](row) for row in objects) for entry in formats if "looks_like" in entry.facts}
    best = max(scores.values(), default=0)
    winners = [name for name, score in scores.items() if score == best and score]
    if len(winners) == 1:
        return winners[0]
    where = raw[0].origin.file if raw else "data.train"
    found = ", ".join(map(str, _columns(raw)[:20])) or f"- ({type(raw[0].value).__name__})"
    needs = "; ".join(f"{entry.name}: {entry.facts.get('needs', '?')}" for entry in formats)
    if winners:
        raise DataError(problem("E-DATA-09", where, formats=", ".join(winners), columns=found, needs=needs))
    raise DataError(problem("E-DATA-08", where, columns=found, needs=needs))


def _columns(raw: Sequence[RawRow]) -> list[str]:
    """Names of columns in the first rows, in the order in which they appear."""
    return list(dict.fromkeys(name for one in raw[:LOOKED_AT] if isinstance(one.value, dict) for name in one.value))


def _check_columns(raw: Sequence[RawRow], columns: Columns) -> None:
    """Every renamed column exists in at least one row."""
    if not columns:
        return
    there = {name for one in raw if isinstance(one.value, dict) for name in one.value}
    problems = []
    for ours, theirs in columns.items():
        if theirs not in there:
            close = difflib.get_close_matches(theirs, sorted(there), n=1)
            found = ", ".join(_columns(raw)[:20])
            problems.append(problem("E-DATA-11", f"data.columns.{ours}", column=theirs, guess=close[0] if close else "-", columns=found))
    if problems:
        raise DataError(problems)
