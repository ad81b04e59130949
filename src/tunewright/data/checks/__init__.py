"""Checks of the data: what a row shows, gathered over a whole set, with counts and places.

`all_checks` makes the checks, whoever walks over the rows gives each row's `feature` to `add`, and
`conclude` turns all of it into findings and a score. A new check is a class as in `base.Check`, one
entry in `all_checks`, and three sentences in the locale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tunewright.data.checks.answers import Labels
from tunewright.data.checks.base import HELD_OUT, TRAIN, Check, Finding
from tunewright.data.checks.columns import column_findings
from tunewright.data.checks.dropped import dropped_findings, noted_findings
from tunewright.data.checks.judgements import Judgements
from tunewright.data.checks.repeats import Repeats
from tunewright.data.checks.roles import Roles
from tunewright.data.checks.tokens import Learning, Lengths
from tunewright.data.checks.wording import ControlTokens, Encodings, Languages, Personal

STOP_POINTS, WARN_POINTS, WARN_SHARE_POINTS = 40, 2, 20
_ORDER = {"stop": 0, "warn": 1, "info": 2}


def all_checks(control: Iterable[str] = (), words: Iterable[str] = ()) -> list[Check]:
    """A fresh instance of every check. `control` are the control tokens of the model's own
    tokenizer, `words` its other added tokens."""
    return [
        Lengths(),
        Learning(),
        Repeats(),
        Roles(),
        Labels(),
        Judgements(),
        Languages(),
        ControlTokens(control, words),
        Personal(),
        Encodings(),
    ]


def conclude(findings: Iterable[Finding], report: dict[str, Any]) -> list[Finding]:
    """What the checks found and what the report's counts say, one of a key, the gravest first."""
    found: dict[str, Finding] = {}
    for finding in [
        *dropped_findings(report),
        *column_findings(report),
        *noted_findings(report),
        *findings,
    ]:
        found.setdefault(finding.key, finding)
    return sorted(
        found.values(), key=lambda f: (_ORDER[f.severity], -(f.count / f.total if f.total else 0))
    )


def points(finding: Finding) -> int:
    """What a finding takes from the score: 40 for a stop; 2 and up to 20 more by the share of rows
    for a warning; nothing for an info."""
    if finding.severity == "info":
        return 0
    if finding.severity == "stop":
        return STOP_POINTS
    share = min(1.0, finding.count / finding.total) if finding.total else 0.0
    return WARN_POINTS + round(WARN_SHARE_POINTS * share)


def score(findings: Sequence[Finding], report: dict[str, Any]) -> int:
    """0 to 100. Each finding's part is `points`; a set without a usable row has 0."""
    return max(0, 100 - sum(map(points, findings))) if report.get("rows_kept", 1) else 0


def stops(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that make training meaningless."""
    return [finding for finding in findings if finding.severity == "stop"]


__all__ = [
    "HELD_OUT",
    "TRAIN",
    "Check",
    "Finding",
    "all_checks",
    "conclude",
    "points",
    "score",
    "stops",
]
