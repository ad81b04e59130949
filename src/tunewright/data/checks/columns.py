"""Findings from the column ledger of the report: columns that were not used."""

from __future__ import annotations

from typing import Any

from tunewright.core.words import say
from tunewright.data.checks.base import SHOWN_PLACES, Finding

SHOWN_COLUMNS, NAME_CHARACTERS = 8, 60


def column_findings(report: dict[str, Any]) -> list[Finding]:
    """`unused_columns`: what differs from row to row and looks like a part of the lesson.
    `passed_over`: the others, which cost nothing."""
    columns = report.get("columns")
    if not columns:
        return []
    found = []
    lesson = [one for one in columns["unused"] if one["why"] == "lesson"]
    others = [one for one in columns["unused"] if one["why"] != "lesson"]
    if lesson:
        places = [one["place"] for one in lesson if one["place"]][:SHOWN_PLACES]
        fields = {"shown": _listed(lesson), "first": _short(lesson[0]["name"])}
        count, total = len(lesson), max(columns["found"], len(lesson))
        found.append(Finding("unused_columns", "warn", count, total, places, fields))
    if others:
        count, total = len(others), max(columns["found"], len(others))
        found.append(Finding("passed_over", "info", count, total, [], {"shown": _listed(others)}))
    return found


def _listed(unused: list[dict[str, Any]]) -> str:
    """The columns with an example each, and in how many rows where that is not all."""
    said = []
    for one in unused[:SHOWN_COLUMNS]:
        parts = []
        if one["why"] in ("empty", "same", "copy", "dropped"):
            parts.append(say(f"data.left.{one['why']}"))
        if one["rows"] < one["of"]:
            parts.append(say("data.left.rows", rows=one["rows"], of=one["of"]))
        if one["example"]:
            parts.append(say("data.left.example", example=_plain(one["example"])))
        said.append(f"`{_short(one['name'])}`" + (f" ({', '.join(parts)})" if parts else ""))
    return ", ".join([*said, "..."] if len(unused) > SHOWN_COLUMNS else said)


def _short(name: str) -> str:
    return _plain(name[:NAME_CHARACTERS]) + ("..." if len(name) > NAME_CHARACTERS else "")


def _plain(text: str) -> str:
    """Text from a file on one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)
