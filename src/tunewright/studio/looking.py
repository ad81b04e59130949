"""The desk's view of data: what is in a file, what the model would see of a row, and a mended copy.

Everything is computed by the functions behind `tunewright data ...`. The page must show a file that
a run would refuse, so what a run refuses comes back as stops beside the rows that could be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.core import compat
from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError, Problem, TunewrightError
from tunewright.core.registry import formats
from tunewright.core.words import say
from tunewright.core.written import json_text
from tunewright.studio.lines import Args, Request

HEAD_ROWS = 20
HEAD_TEXT = 2000
"""Characters of a text in the head of a file: a row may be a book."""
MOST_REPAIRED = 64 * 2**20
"""Bytes of a file for which repairs are looked for: the mender reads it whole."""


class Asked(Args):
    """How rows are to be read: the fields of every call on data."""

    data: str
    model: str | None = None
    tokenizer: str | None = None
    format: str = "auto"
    columns: dict[str, str] = {}
    dir: str | None = None
    objective: str | None = None
    max_tokens: int | None = None
    system: str | None = None
    wording: str | None = None
    labels: list[str] | None = None
    held_out: float | int | str | None = None
    good_only: bool = False

    def config(self, **more: Any) -> DataConfig:
        """The section `data` of a run that reads so."""
        names = ["format", "columns", "dir", "max_tokens", "system", "wording", "labels"]
        names += ["held_out", "good_only"]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return DataConfig(train=self.data, **{**given, **more})


# ---- inspect


def inspect(request: Request) -> dict[str, Any]:
    """Everything about a file of rows. Raises DataError for one of which nothing can be read."""
    from tunewright.data.checks.driver import check, describe_checked
    from tunewright.data.checks.opening import open_tokenizer, with_system

    asked = request.read(Asked)
    head = read_head(asked)
    repairs = possible_repairs(Path(asked.data)) if Path(asked.data).is_file() else Repairs()
    found: dict[str, Any] = {
        **head.as_dict(asked),
        "repairs": repairs.rows,
        "repair_stops": [one.as_dict() for one in repairs.problems],
    }
    request.check()
    try:
        opened = open_tokenizer(asked.model, asked.tokenizer)
        checked = check(with_system(asked.config(), opened), opened)
    except DataError as error:
        if not (head.rows or repairs.rows):
            raise
        stops = [_stop(one) for one in error.problems]
        return {**found, "format": None, "report": None, "text": "", "stops": stops, "warnings": []}
    report = checked.as_dict()
    stops = [one.as_dict() for one in checked.findings if one.severity == "stop"]
    if asked.objective:
        stops += [_stop(one) for one in compat.rows_for(asked.objective, report["kinds"])]
    return {
        **found,
        "format": report["format"],
        "rows": report["rows_read"],
        "kept": report["rows_kept"],
        "dropped": report["rows_dropped"],
        "report": report,
        "text": describe_checked(checked),
        "stops": stops,
        "warnings": [
            *({"what": line} for line in report["warnings"]),
            *(one.as_dict() for one in checked.findings if one.severity == "warn"),
        ],
    }


def _stop(one: Problem) -> dict[str, Any]:
    """A problem in the shape of a finding."""
    said = one.as_dict()
    return {**said, "key": one.code, "severity": "stop", "places": [one.where] if one.where else []}


@dataclass
class Head:
    """The first rows of a file as they stand there."""

    rows: list[Any]
    columns: list[str]
    error: TunewrightError | None = None

    def as_dict(self, asked: Asked) -> dict[str, Any]:
        """For the page."""
        return {
            "rows": len(self.rows),
            "kept": 0,
            "dropped": 0,
            "columns": self.columns,
            "rows_head": [_short(row) for row in self.rows[:HEAD_ROWS]],
            "detected": detected(self.rows, asked.columns),
        }


def read_head(asked: Asked) -> Head:
    """The first rows of what is named, up to the first damage."""
    from tunewright.data.catalogue import names
    from tunewright.data.formats.naming import columns_of
    from tunewright.data.formats.shaping import LOOKED_AT

    raw: list[Any] = []
    try:
        for one in names.resolve(asked.data, asked.dir):
            for path in one.files:
                for row in islice(one.stream(path).rows, LOOKED_AT - len(raw)):
                    raw.append(row)
    except DataError as error:
        return Head([row.value for row in raw], columns_of(raw), error)
    return Head([row.value for row in raw], columns_of(raw))


def detected(rows: Sequence[Any], columns: dict[str, str]) -> list[dict[str, str]]:
    """The formats that the rows resemble, the likeliest first, each with what it is."""
    from tunewright.data.formats.common import Columns

    named = Columns(columns, None, None)
    objects = [named.renamed(row) for row in rows if isinstance(row, dict)]
    scores = {
        entry.name: sum(entry.facts["looks_like"](row) for row in objects)
        for entry in formats
        if "looks_like" in entry.facts
    }
    likely = sorted((name for name in scores if scores[name]), key=lambda name: -scores[name])
    return [{"format": name, "why": _why(name)} for name in likely]


def _why(name: str) -> str:
    from tunewright.advise import listing

    entry = formats.get(name)
    assert entry is not None
    return say("studio.detected", about=listing.about("formats", entry), needs=_needs(entry))


def _needs(entry: Any) -> str:
    return str(entry.facts.get("needs", "")) or "-"


def _short(value: Any) -> Any:
    """A raw value as JSON for the page; long texts are cut."""
    if isinstance(value, str):
        return value if len(value) <= HEAD_TEXT else value[:HEAD_TEXT] + " …"
    if isinstance(value, dict):
        return {str(key): _short(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner) for inner in value]
    # Numbers as their file writes them.
    return value if value is None or isinstance(value, bool | int | float) else json_text(value)


# ---- preview


class Preview(Asked):
    """Which row is shown: counted from 1 among the usable rows; none: one at random."""

    row: int | None = 1


def preview(request: Request) -> dict[str, Any]:
    """A row as the model would see it: every token, what is learnt, and whose turn it stands in."""
    from tunewright.data.checks.opening import open_tokenizer, with_system
    from tunewright.data.checks.showing import show_row

    asked = request.read(Preview)
    opened = open_tokenizer(asked.model, asked.tokenizer)
    config = with_system(asked.config(held_out=0), opened)
    if asked.row is not None and asked.row < 1:
        raise DataError.of("E-DATA-53", asked.data, row=asked.row, rows="-")
    shown = show_row(config, opened, asked.row)
    control = opened.renderer.control if opened is not None else set()
    branches = [
        {
            "role": branch.role,
            "length": branch.length,
            "learnt": branch.learnt,
            "tokens": _tokens(branch.tokens, shown.turns, control),
        }
        for branch in shown.branches
    ]
    return {
        "row": shown.row,
        "of": shown.rows,
        "kind": shown.kind,
        "origin": shown.origin,
        "messages": [{"role": role, "content": text} for role, text in shown.turns],
        "tokens": branches[0]["tokens"] if branches else [],
        "branches": branches,
        "rendered_by": opened.renderer.template_name if opened is not None else None,
        "unused_columns": shown.unused,
    }


def _tokens(
    tokens: Sequence[Any], turns: Sequence[tuple[str, str]], control: set[str]
) -> list[dict[str, Any]]:
    """Each token with the role of the turn that its text belongs to; `template` between them."""
    places = _places("".join(token.text for token in tokens), turns)
    out, at = [], 0
    for token in tokens:
        end = at + len(token.text)
        role = next((role for start, stop, role in places if start < end and at < stop), "template")
        out.append(
            {
                "text": token.text,
                "learnt": token.learnt,
                "weight": token.weight,
                "role": role,
                "special": token.text.strip() in control,
                "id": token.id,
                "start": token.start,
            }
        )
        at = end
    return out


def _places(whole: str, turns: Sequence[tuple[str, str]]) -> list[tuple[int, int, str]]:
    """(from, to, role) of the turns' texts in what the template wrote, in order. Templates trim, so
    the texts are looked for without the white space around them."""
    found, at = [], 0
    for role, text in turns:
        bare = re.sub(r"^\s*<think>\s*</think>", "", text).strip()
        start = whole.find(bare, at) if bare else -1
        if start >= 0:
            at = start + len(bare)
            found.append((start, at, role))
    return found


# ---- repair


@dataclass
class Repairs:
    """What can be mended in a file, and why it cannot be."""

    rows: list[dict[str, Any]]
    problems: list[Problem]

    def __init__(self, rows: Sequence[dict[str, Any]] = (), problems: Sequence[Problem] = ()):
        self.rows, self.problems = list(rows), list(problems)


def possible_repairs(path: Path) -> Repairs:
    """What a repaired copy would change; nothing for a sound file, and for kinds of files that are
    not mended."""
    from tunewright.data.files.repairing import ENDINGS, mend_file

    if path.suffix.lower() not in ENDINGS or path.stat().st_size > MOST_REPAIRED:
        return Repairs()
    try:
        mended = mend_file(path)
    except DataError as error:
        return Repairs((), error.problems)
    return Repairs(_changes(mended.changes))


def _changes(changes: Any) -> list[dict[str, Any]]:
    return [
        {"key": kind, "text": say(f"repair.kind.{kind}", count=count), "count": count}
        for kind, count in changes.most_common()
        if count
    ]


class Repair(Args):
    """The file, and where its mended copy goes: a place that does not exist yet."""

    data: str
    out: str


def repair(request: Request) -> dict[str, Any]:
    """Write a mended copy. Raises DataError for what cannot be mended with certainty."""
    from tunewright.data.files.repairing import repair_file

    asked = request.read(Repair)
    mended = repair_file(Path(asked.data), Path(asked.out))
    return {
        "out": asked.out if mended.changes else None,
        "changes": _changes(mended.changes),
        "changed_lines": mended.changed_lines,
        "diff": mended.diff[:200],
        "lost": mended.lost,
    }
