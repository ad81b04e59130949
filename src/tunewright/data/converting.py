"""Rows of one form written in another: `data convert`. JSON, JSONL, CSV or Parquet.

A form that cannot hold a row does not get a part of it. Each row is written as a candidate by its
format's `write`, the candidate is read back by the form's own reader, and only when that gives the
same row is it kept; otherwise the row is left out with a reason, and the command refuses unless it
was told to leave such rows out. The finished file is read back once more before it takes its place.
Kinds are not turned into one another: a preference is not half an answer.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError
from tunewright.core.files import write_bytes
from tunewright.core.registry import formats
from tunewright.core.types import Origin, PlainText, Row, turns_of
from tunewright.core.words import say
from tunewright.data.catalogue.names import ResolvedEntry, chosen_rows, resolve
from tunewright.data.checks.columns import column_findings
from tunewright.data.files.reading import stream
from tunewright.data.files.source import RawRow
from tunewright.data.files.writing import WRITERS
from tunewright.data.formats.common import Columns, RowFault, Unusable
from tunewright.data.formats.ledger import Ledger
from tunewright.data.formats.naming import columns_of
from tunewright.data.formats.shaping import shape
from tunewright.data.reporting import note, under_key

EXAMPLES = 5
NOWHERE = Origin("", 0, 0)


@dataclass
class Converted:
    """What a conversion wrote and left out. `unread` are rows that could not be used at all,
    `unheld` rows that the target cannot hold."""

    file: str
    to: str
    source_formats: list[str]
    rows_read: int = 0
    rows_written: int = 0
    unread: dict[str, list[Origin]] = field(default_factory=dict)
    unheld: dict[str, list[Origin]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    parts: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; every row read is written, unread or unheld."""
        reasons = {name: _counted(rows, "data") for name, rows in self.unread.items()}
        reasons |= {name: _counted(rows, "convert") for name, rows in self.unheld.items()}
        return {
            "file": self.file,
            "to": self.to,
            "format": ", ".join(dict.fromkeys(self.source_formats)),
            "rows_read": self.rows_read,
            "rows_written": self.rows_written,
            "rows_dropped": sum(map(len, [*self.unread.values(), *self.unheld.values()])),
            "reasons": {name: {"what": _reason(name), **entry} for name, entry in reasons.items()},
            "notes": {name: count for name, count in sorted(self.notes.items()) if count},
            "parts": self.parts,
            "columns": {
                "found": len(self.ledger.had),
                "used": self.ledger.used(),
                "unused": self.ledger.unused(),
            },
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        shown = self.as_dict()
        keys = ("file", "to", "format", "rows_read", "rows_written", "rows_dropped")
        out = [say("convert.done", **{key: shown[key] for key in keys})]
        for e in shown["reasons"].values():
            out.append(f"  {e['count']}: {e['what']} ({', '.join(e['examples'])})")
        out += [*self.parts, *(f"! {note(name, count)}" for name, count in shown["notes"].items())]
        return out + [f"! {one.what()}" for one in column_findings(shown)]


def _counted(rows: list[Origin], stage: str) -> dict[str, Any]:
    return {"count": len(rows), "stage": stage, "examples": list(map(str, rows[:EXAMPLES]))}


def _reason(name: str) -> str:
    keys = (f"convert.reason.{name}", f"data.reason.{name}")
    return next((text for key in keys if (text := say(key)) != key), name)


def convert(
    source: str,
    out: Path,
    to: str,
    *,
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
    drop: bool = False,
    force: bool = False,
) -> Converted:
    """Read `source` (whatever `data.train` names) and write its rows to `out` in the form `to`, in
    their order.

    Raises DataError, with nothing written, where `out` exists and `force` is not set, where the
    form or the ending is not known, where no row is left, and where the form cannot hold some rows
    and `drop` is not set.
    """
    forms = [entry.name for entry in formats if "write" in entry.facts]
    ending = out.suffix.lower()
    if to not in forms:
        raise DataError.of("E-DATA-48", "--to", to=to, known=", ".join(forms))
    if ending not in WRITERS:
        raise DataError.of("E-DATA-48", str(out), to=ending or "-", known=", ".join(WRITERS))
    if out.exists() and (not force or out.is_dir()):
        raise DataError.of("E-DATA-47", str(out), file=str(out))
    made = Converted(str(out), to, [])
    written: list[dict[str, Any]] = []
    kept: list[Row] = []
    for row in _rows(source, data_format, columns, data_dir, made):
        try:
            written.append(_held(row, to, ending))
            kept.append(row)
        except RowFault as fault:
            made.unheld.setdefault(fault.unusable.reason, []).append(row.origin)
    made.rows_written = len(written)
    if not written or (made.unheld and not drop):
        shown = made.as_dict()["reasons"].values()
        reasons = "; ".join(f"{e['count']} {e['what']} ({', '.join(e['examples'])})" for e in shown)
        told = {"rows": made.rows_read, "fit": len(written), "reasons": reasons or "-"}
        raise DataError.of("E-DATA-49", source, to=f"{to} ({ending})", **told)
    content = WRITERS[ending](written)
    _prove(content, to, ending, kept, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)
    return made


def _rows(
    source: str,
    data_format: str,
    columns: dict[str, str] | None,
    data_dir: str | None,
    made: Converted,
) -> Iterator[Row]:
    """The usable rows of everything that `source` names; the others are counted in `made`."""
    named = {"file": source, "format": data_format, "columns": columns or {}}
    for entry in resolve(named, data_dir):
        found: list[RawRow] = []
        made.parts += filter(None, [entry.parts.said([])])
        for path in entry.files:
            opened = entry.stream(path)
            found += opened.rows
            made.notes += opened.notes
            made.parts += map(under_key, opened.under)
        for row in _shaped(entry, found, made):
            if isinstance(row, tuple):
                made.unread.setdefault(row[0], []).append(row[1])
            else:
                yield row
        made.notes += entry.notes.notes
        made.ledger.merge(entry.notes.ledger.plain())


def _shaped(
    entry: ResolvedEntry, found: list[RawRow], made: Converted
) -> Iterator[Row | tuple[str, Origin]]:
    """Rows of one entry, or (reason, where) for those that cannot be used."""
    if entry.convert is not None:
        entry.check_columns(set(columns_of(found)))
        made.source_formats.append(entry.format)
        chosen = chosen_rows(len(found), entry.limit, entry.name)
        made.rows_read += len(chosen)
        for index in chosen:
            value, origin = found[index]
            row = entry.convert(value, origin)
            yield (row.reason, origin) if isinstance(row, Unusable) else row
        return
    shaped = shape(found, entry.format, entry.columns)
    made.source_formats.append(shaped.format)
    made.rows_read += len(found)
    made.notes += shaped.notes
    made.ledger.merge(shaped.ledger.plain())
    yield from shaped.rows
    yield from ((one.reason, one.origin) for one in shaped.dropped)


def _prove(content: bytes, to: str, ending: str, kept: list[Row], source: str) -> None:
    """Read the finished file as anybody would; raise DataError, before it stands anywhere, where it
    holds other rows than were written."""
    entry = formats.get(to)
    assert entry is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        path.write_bytes(content)
        again = [entry.function(row.value, row.origin, Columns()) for row in stream(path).rows]
    pairs = zip(kept, again, strict=False)
    wrong = [str(row.origin) for row, found in pairs if _bare(found) != _bare(row)]
    if wrong or len(again) != len(kept):
        reasons = f"{_reason('differs_when_read')} ({', '.join(wrong[:EXAMPLES]) or len(again)})"
        told = {"rows": len(kept), "fit": len(kept) - len(wrong), "reasons": reasons}
        raise DataError.of("E-DATA-49", source, to=f"{to} ({ending})", **told)


def _held(row: Row, to: str, ending: str) -> dict[str, Any]:
    """The row in the form `to`. Raises RowFault with a key of `convert.reason.*` where reading it
    back would not give the same row."""
    entry = formats.get(to)
    assert entry is not None
    candidate: dict[str, Any] = entry.facts["write"](row)
    if row.weight != 1:
        candidate["weight"] = row.weight
    tools = None if isinstance(row, PlainText) else row.tools
    if tools:
        candidate["tools"] = tools
    if ending == ".csv" and not all(isinstance(cell, str) for cell in candidate.values()):
        raise RowFault("only_text_in_csv")
    if ending == ".parquet" and (tools or any(m.tool_calls for m in turns_of(row))):
        # A column has one type, so every call would get the arguments of all others, empty.
        raise RowFault("no_tools_in_parquet")
    again = entry.function(candidate, replace(NOWHERE, file=f"rows{ending}"), Columns())
    if _bare(again) != _bare(row):
        raise RowFault("differs_when_read")
    return candidate


def _bare(row: Row | Unusable) -> Row | Unusable:
    """The row without where it came from."""
    return row if isinstance(row, Unusable) else replace(row, origin=NOWHERE)
