"""A whole check of a data set: the report that `inspect` makes, with its findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.core import compat
from tunewright.core.config import DataConfig
from tunewright.core.errors import CompatError, raise_all
from tunewright.core.types import Row, Sample
from tunewright.core.words import say
from tunewright.data.checks import HELD_OUT, TRAIN, Finding, all_checks, conclude, points, stops

if TYPE_CHECKING:
    from tunewright.data.checks.opening import Opened


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
    from tunewright.data.inspecting import inspect

    data = inspect(
        config,
        opened.renderer if opened else None,
        opened.context if opened else None,
        needs_tokens=opened is not None,
        refuse=False,
    )
    raise_all(
        compat.rows_for(objective, data.report["kinds"]) if objective is not None else [],
        CompatError,
    )
    found = [Finding.of_dict(one) for one in data.report["findings"]]
    return Checked(
        {**data.report, "warnings": _left(data.report, found)}, found, data.report["score"]
    )


def check_rows(
    train_rows: Sequence[Row],
    train: Sequence[Sample],
    held_rows: Sequence[Row],
    held: Sequence[Sample],
    report: dict[str, Any],
    control: Iterable[str] = (),
) -> list[Finding]:
    """Every check over rows in memory; the sample lists are empty where nothing was encoded.
    `report` gives the counts of dropped rows."""
    checks = all_checks(control)
    for side, rows, samples in ((TRAIN, train_rows, train), (HELD_OUT, held_rows, held)):
        for index, row in enumerate(rows):
            sample = samples[index] if len(samples) else None
            for one in checks:
                one.add(side, index, row.origin, one.feature(row, sample))
    return conclude(checks, report)


def _left(report: dict[str, Any], findings: Sequence[Finding]) -> list[str]:
    """The report's warnings without those that stand among the findings."""
    said = {say("data.warning.dropped", count=report["rows_dropped"], rows=report["rows_read"])}
    said |= {
        say(f"data.warning.{key}", count=report[key])
        for key in ("duplicates", "held_out_overlap")
        if key in report
    }
    said |= {finding.what() for finding in findings}
    if report.get("stop_learnt_share") is not None:
        said.add(say("data.warning.stop_share", share=f"{report['stop_learnt_share']:.0%}"))
    return [warning for warning in report["warnings"] if warning not in said]
