"""Raw rows to rows: which format a file has, and what could not be used.

The format is told from the first rows: every registered format says how much each of them resembles
it, and the highest sum wins. A tie, or nothing at all, is an error that lists the columns that were
found and what each format needs; `data.format` and `data.columns` decide then. A tie is settled by
the objective, where only one of the formats makes rows that it learns from, or learns from best.

`Shaper` converts one row at a time, for sets that are streamed; `shape` converts a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunewright.core.errors import DataError
from tunewright.core.registry import formats
from tunewright.core.types import ROW_KINDS, Origin, Row
from tunewright.data.files.source import RawRow
from tunewright.data.formats.common import Columns, Unusable, plain_name
from tunewright.data.formats.ledger import Ledger
from tunewright.data.formats.naming import (
    columns_of,
    printable,
    require_columns,
    require_read,
    shown_names,
    unknown,
)

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
    """Rows of one source, their format, what was dropped, and notes on what was converted."""

    rows: list[Row]
    dropped: list[Dropped]
    format: str
    notes: Counter[str]
    ledger: Ledger


class Shaper:
    """Rows of one source in one format, one at a time. `first` are its first rows (up to
    LOOKED_AT), from which `auto` tells the format; `wants` are the kinds of rows that the objective
    learns from, the best first, which decide where the columns leave it open.

    Raises DataError for a format that is unknown, ambiguous or absent. `format` is the name,
    `notes` counts what was converted.
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
            raise DataError.of(
                "E-DATA-10",
                "data.format",
                name=self.format,
                guess=guess,
                known=", ".join(formats.names()),
            )
        self._function = entry.function

    @property
    def notes(self) -> Counter[str]:
        """What was converted so far, counted: keys of `data.note.*`."""
        return self._columns.notes

    @property
    def ledger(self) -> Ledger:
        """Which columns of the rows so far were used, and which were left."""
        return self._columns.ledger

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
    """Rows in the named or detected format. Raises DataError for a format that is unknown,
    ambiguous or absent, and for columns that do not exist."""
    if columns:
        require_columns(columns, columns_of(raw), columns_of(raw[:LOOKED_AT]))
    shaper = Shaper(raw[:LOOKED_AT], format_name, columns, wording=wording, labels=labels)
    rows: list[Row] = []
    dropped: list[Dropped] = []
    for one in raw:
        made = shaper.row(one)
        if isinstance(made, Dropped):
            dropped.append(made)
        else:
            rows.append(made)
    require_read(shaper.format, columns, shaper.ledger)
    return Shaped(rows, dropped, shaper.format, shaper.notes, shaper.ledger)


def detect(raw: Sequence[RawRow], columns: Columns, wants: Sequence[str] = ()) -> str:
    """The name of the format that the first rows resemble most. Raises DataError where none does,
    two do alike and `wants` does not decide, or a text has its answer beside it."""
    objects = [columns.renamed(one.value) for one in raw[:LOOKED_AT] if isinstance(one.value, dict)]
    scores = {
        entry.name: sum(entry.facts["looks_like"](row) for row in objects)
        for entry in formats
        if "looks_like" in entry.facts
    }
    best = max(scores.values(), default=0)
    winners = [name for name, score in scores.items() if score == best and score]
    if len(winners) > 1:
        winners = _wanted(winners, raw, columns, wants)
    where = raw[0].origin.file if raw else "data.train"
    if len(winners) == 1 and not (
        best <= len(objects) and _answers_nothing(winners[0], raw[:LOOKED_AT], columns)
    ):
        winner = formats.get(winners[0])
        if winner is not None and "refuse" in winner.facts:
            winner.facts["refuse"](objects, winner.name, where)
        return winners[0]
    if len(winners) > 1:
        found = shown_names(columns_of(raw[:LOOKED_AT]))
        needs = "; ".join(
            f"{entry.name}: {entry.facts.get('needs', '?')}"
            for entry in formats
            if entry.name in winners
        )
        raise DataError.of(
            "E-DATA-09",
            where,
            formats=", ".join(winners),
            columns=found,
            needs=needs,
            format=winners[0],
        )
    raise unknown([one.value for one in raw[:LOOKED_AT]], where)


def _answers_nothing(name: str, raw: Sequence[RawRow], columns: Columns) -> bool:
    """Whether a format finds no answer in any of the rows, and they have columns it does not know:
    it was told from their questions alone."""
    entry = formats.get(name)
    if entry is None or not any(
        plain_name(column) not in entry.facts.get("reads", ())
        for column in columns_of(raw[:LOOKED_AT])
    ):
        return False
    looked = Columns(columns, columns.wording, columns.labels)
    for one in raw:
        made = entry.function(one.value, one.origin, looked)
        if not isinstance(made, Unusable) or made.reason not in ("no_answer", "not_an_object"):
            return False
    return bool(raw)


def _wanted(
    names: list[str], raw: Sequence[RawRow], columns: Columns, wants: Sequence[str]
) -> list[str]:
    """Those of several formats that make rows of the kind that is wanted most; all of them where
    none does."""
    kinds: dict[str, str] = {}
    for name in names:
        entry = formats.get(name)
        assert entry is not None
        # Looked at only: what is converted on the way is counted when the rows are read.
        made = [
            entry.function(one.value, one.origin, Columns(columns, columns.wording, columns.labels))
            for one in raw[:LOOKED_AT]
        ]
        kinds[name] = next((ROW_KINDS[type(row)] for row in made if type(row) in ROW_KINDS), "")
    return next(
        (found for kind in wants if (found := [name for name in names if kinds[name] == kind])),
        names,
    )
