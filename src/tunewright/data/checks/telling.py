"""The findings for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core.words import say
from tunewright.data.checks import Finding, points, stops
from tunewright.data.checks.driver import Checked
from tunewright.data.describing import describe

BAR = 40
PARTS = (" ", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589", "\u2588")
QUIET = ("learnt", "stops", "lengths", "passed_over")
"""Findings whose figures stand in the report above already."""


def bars(rows: Sequence[Sequence[int]]) -> list[str]:
    """One line for each [from, to, count]: the range, a bar in eighths of a character, the count."""
    most = max((count for _, _, count in rows), default=0)
    names = [f"{low:,}" if low >= high else f"{low:,}-{high:,}" for low, high, _ in rows]
    width = max(map(len, names), default=0)
    lines = []
    for name, (_, _, count) in zip(names, rows, strict=True):
        eighths = max(1, round(8 * BAR * count / most)) if count else 0
        lines.append(
            f"  {name:>{width}} {PARTS[8] * (eighths // 8)}{PARTS[eighths % 8].strip()} {count:,}".rstrip()
        )
    return lines


def describe_findings(findings: Sequence[Finding], score: int) -> str:
    """Every finding with its places and remedy, the lengths as a chart, and the score with what
    lowers it."""
    lines: list[str] = []
    for finding in findings:
        if finding.key == "lengths":
            lines += [
                say("check.say.histogram", unit=say(f"check.unit.{finding.fields['unit']}")),
                *bars(finding.fields["bins"]),
            ]
    for finding in findings:
        if finding.key in QUIET:
            continue
        mark = say(f"check.say.{finding.severity}")
        lines.append(say("check.say.finding", mark=mark, name=finding.name(), what=finding.what()))
        if finding.places:
            lines.append("    " + say("check.say.places", places=", ".join(finding.places)))
        if finding.severity != "info":
            lines.append("    " + finding.remedy())
    parts = [
        say("check.say.part", name=finding.name(), points=points(finding))
        for finding in findings
        if points(finding)
    ]
    lowered, total = say("check.say.lowered", parts=", ".join(parts)), sum(map(points, findings))
    said = [say("check.say.score", score=score)]
    if score < 100 - total:
        said += [say("check.say.nothing_left"), *([lowered] if parts else [])]
    elif parts:
        said += [lowered, *([say("check.say.least", total=total)] if total > 100 else [])]
    else:
        said.append(say("check.say.clean"))
    lines.append(" · ".join(said))
    grave = stops(findings)
    return "\n".join([*lines, *([say("check.say.stopped", count=len(grave))] if grave else [])])


def describe_checked(checked: Checked, colour: bool = False) -> str:
    """The data report and everything that was found in it."""
    report = checked.report
    lines = [describe(report, colour), "", describe_findings(checked.findings, checked.score)]
    return "\n".join(
        [
            *lines,
            *(
                [say("check.say.no_model")]
                if report.get("tokens_total") is None
                and not any(f.key == "learnt" for f in checked.findings)
                else []
            ),
        ]
    )
