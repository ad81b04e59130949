"""Whether judgements can teach anything: good and bad answers, right and wrong steps, pairs that
differ. If all are the same, there is nothing to tell apart."""

from __future__ import annotations

from typing import Any

from tunewright.core.types import Judged, Origin, Preference, Row, Sample, Stepwise
from tunewright.data.checks.base import TRAIN, Finding, Severity, Tally, hash64

FEWEST_PAIRS = 5


class Judgements:
    """Judged answers of which all are good or all bad, steps that are all right or all wrong,
    margins that are all alike, and pairs in which one side is the same text everywhere."""

    name = "judgements"

    def __init__(self) -> None:
        self._answers: dict[bool, Tally] = {True: Tally(), False: Tally()}
        self._steps: dict[bool, Tally] = {True: Tally(), False: Tally()}
        self._pairs = Tally()
        self._first: dict[str, Any] = {}
        self._alike = {"chosen": True, "rejected": True, "margin": True}

    def feature(self, row: Row, sample: Sample | None) -> tuple[str, Any] | None:
        """What is judged, and how; None for a row without a judgement."""
        if isinstance(row, Stepwise):
            return "steps", tuple({good for _, good in row.steps})
        if isinstance(row, Judged):
            return "answer", row.good
        if isinstance(row, Preference):
            return "pair", (
                hash64(row.chosen[-1].content),
                hash64(row.rejected[-1].content),
                row.margin,
            )
        return None

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Count a row that is trained on."""
        if side != TRAIN or feature is None:
            return
        kind, said = feature
        if kind == "answer":
            self._answers[said].add(origin)
        elif kind == "steps":
            for good in said:
                self._steps[good].add(origin)
        else:
            self._pairs.add(origin)
            for name, value in zip(self._alike, said, strict=True):
                self._alike[name] = (
                    self._alike[name]
                    and value is not None
                    and value == self._first.setdefault(name, value)
                )

    def findings(self) -> list[Finding]:
        """`one_sided_answers`, `one_sided_steps`, `one_margin`, `one_chosen`, `one_rejected`."""
        found = []
        for key, tallies in (("answers", self._answers), ("steps", self._steps)):
            there = [good for good in tallies if tallies[good].count]
            if len(there) == 1:
                side = "good" if there[0] else "bad"
                found.append(tallies[there[0]].finding(f"one_sided_{key}_{side}", "warn"))
        for name, is_alike in self._alike.items():
            if is_alike and self._pairs.count >= FEWEST_PAIRS:
                severity: Severity = "info" if name == "margin" else "warn"
                found.append(self._pairs.finding(f"one_{name}", severity))
        return found
