"""Findings from the counts of the report: rows that were dropped before any check saw them, and
notes on content that is learnt in a changed form."""

from __future__ import annotations

import re
from typing import Any

from tunewright.data.checks.base import SHOWN_PLACES, Finding, Severity
from tunewright.data.store.good_answers import LEFT_OUT

EMPTY = ("empty_answer", "empty_question", "empty_text", "no_answer", "no_text")
NOTED = ("tools_unwritten", "numbers_respelt", "carriage_returns", "marks_on_questions")
"""Notes on what is not learnt as its file has it."""
HALF, GIANT = 0.5, 5
_too_long = re.compile(r"^(?P<place>.*): too_long \((?P<length>\d+) > (?P<limit>\d+)\)$")


def dropped_findings(report: dict[str, Any]) -> list[Finding]:
    """`empty`, `too_long` and one `dropped` for all the other reasons, from a data report; a giant
    row among those that were too long."""
    reasons, read = report["reasons"], report["rows_read"]
    found = []

    def finding(key: str, names: list[str]) -> None:
        count = sum(reasons[name]["count"] for name in names)
        places = [place for name in names for place in reasons[name]["examples"]][:SHOWN_PLACES]
        shown = ", ".join(f"{reasons[name]['what']}: {reasons[name]['count']}" for name in names)
        fields = {"shown": shown} if key != "too_long" else {}
        severity: Severity = "stop" if count >= HALF * read else "warn"
        found.append(Finding(key, severity, count, read, places, fields))

    if empty := [name for name in reasons if name in EMPTY]:
        finding("empty", empty)
    if "too_long" in reasons:
        finding("too_long", ["too_long"])
        found += _giants(report)
    if rest := [name for name in reasons if name not in (*EMPTY, "too_long", LEFT_OUT)]:
        finding("dropped", rest)
    return found


def noted_findings(report: dict[str, Any]) -> list[Finding]:
    """One finding for each note of NOTED."""
    rows, notes = report["rows_read"], report.get("notes", {})
    return [
        Finding(key, "warn", min(notes[key], rows), rows, [], {"times": notes[key]})
        for key in NOTED
        if notes.get(key)
    ]


def _giants(report: dict[str, Any]) -> list[Finding]:
    """A dropped row that dwarfs the other ones: five times the next percent, or the limit where it
    is alone."""
    matches = [m for m in map(_too_long.match, report["dropped"]["rows"]) if m]
    if not matches:
        return []
    lengths = sorted(int(m["length"]) for m in matches)
    next_percent = lengths[max(0, int(len(lengths) * 0.98) - 1)] if len(lengths) > 1 else 0
    usual = max(next_percent, int(matches[0]["limit"]))
    giants = [m for m in matches if int(m["length"]) > GIANT * usual]
    giants.sort(key=lambda m: -int(m["length"]))
    if not giants:
        return []
    middle = lengths[len(lengths) // 2]
    fields = {"unit": "tokens", "longest": lengths[-1], "p99": usual, "p50": middle}
    places = [m["place"] for m in giants[:SHOWN_PLACES]]
    return [Finding("giant_row", "warn", len(giants), report["rows_read"], places, fields)]
