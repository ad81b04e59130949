"""A whole check of a data set: the report that `inspect` makes, its findings, and both for a
terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core import compat
from tunewright.core.config import DataConfig
from tunewright.core.errors import CompatError, raise_all
from tunewright.core.words import say
from tunewright.data.checks import Finding, points, stops
from tunewright.data.checks.opening import Opened
from tunewright.data.inspecting import inspect
from tunewright.data.reporting import describe

BAR = 40
PARTS = (" ", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589", "\u2588")
QUIET = ("learnt", "stops", "lengths", "passed_over")
"""Findings whose figures stand in the report above already."""


@dataclass
class Checked:
    """A data report, its findings, the gravest first, and the score."""

    report: dict[str, Any]
    findings: list[Finding]
    score: int

    @property
    def is_stopped(self) -> bool:
        """Whether training would be meaningless."""
        return bool(stops(self.findings))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the data report with `findings`, `score`, what lowers the score, and `stop`."""
        lowered = {finding.key: points(finding) for finding in self.findings if points(finding)}
        return {**self.report, "score_lowered_by": lowered, "stop": self.is_stopped}


def check(config: DataConfig, opened: Opened | None, objective: str | None = None) -> Checked:
    """Check the data of a run. Raises DataError only for files that cannot be read: what a run
    would refuse is described. With the name of an `objective`, raises CompatError for rows that it
    cannot learn from."""
    renderer, context = (opened.renderer, opened.context) if opened else (None, None)
    report = inspect(config, renderer, context, refuse=False).report
    if objective is not None:
        raise_all(compat.rows_for(objective, report["kinds"]), CompatError)
    found = [Finding.of_dict(one) for one in report["findings"]]
    return Checked({**report, "warnings": _left(report, found)}, found, report["score"])


def _left(report: dict[str, Any], findings: Sequence[Finding]) -> list[str]:
    """The report's warnings without those that stand among the findings."""
    said = {say("data.warning.dropped", count=report["rows_dropped"], rows=report["rows_read"])}
    for key in ("duplicates", "held_out_overlap"):
        said.add(say(f"data.warning.{key}", count=report[key]))
    said |= {finding.what() for finding in findings}
    if report.get("stop_learnt_share") is not None:
        said.add(say("data.warning.stop_share", share=f"{report['stop_learnt_share']:.0%}"))
    return [warning for warning in report["warnings"] if warning not in said]


# ---- for a terminal


def bars(rows: Sequence[Sequence[int]]) -> list[str]:
    """One line for each [from, to, count]: range, bar in eighths of a character, count."""
    most = max((count for _, _, count in rows), default=0)
    names = [f"{low:,}" if low >= high else f"{low:,}-{high:,}" for low, high, _ in rows]
    width = max(map(len, names), default=0)
    lines = []
    for name, (_, _, count) in zip(names, rows, strict=True):
        whole, part = divmod(max(1, round(8 * BAR * count / most)) if count else 0, 8)
        bar = PARTS[8] * whole + PARTS[part].strip()
        lines.append(f"  {name:>{width}} {bar} {count:,}".rstrip())
    return lines


def describe_findings(findings: Sequence[Finding], score: int) -> str:
    """Every finding with its places and remedy, the lengths as a chart, and the score with what
    lowers it."""
    lines: list[str] = []
    for finding in findings:
        if finding.key == "lengths":
            unit = say(f"check.unit.{finding.fields['unit']}")
            lines += [say("check.say.histogram", unit=unit), *bars(finding.fields["bins"])]
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
    is_learnt = any(finding.key == "learnt" for finding in checked.findings)
    if report.get("tokens_total") is None and not is_learnt:
        lines.append(say("check.say.no_model"))
    return "\n".join(lines)
