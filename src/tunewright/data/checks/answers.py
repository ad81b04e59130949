"""The answers as labels: which there are, and how even."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tunewright.core.types import Judged, Origin, Preference, Prompt, Row, Sample
from tunewright.data.checks.base import TRAIN, Finding, view_of

LONGEST_LABEL, MOST_LABELS = 40, 200
FEWEST_ROWS, ROWS_A_LABEL = 20, 5
UNEVEN = 10


class Labels:
    """The answers of a set that has few different short ones, and whether one of them crowds out
    the rest."""

    name = "labels"

    def __init__(self) -> None:
        self._rows = 0
        self._counts: Counter[str] | None = Counter()

    def feature(self, row: Row, sample: Sample | None) -> str | None:
        """The answer where it is short; None without an answer, "" for a long one."""
        if isinstance(row, (Prompt, Preference)):
            return None
        if isinstance(row, Judged):
            return str(row.good).lower()
        view = view_of(row)
        if view.kind != "dialogue":
            return None
        answer = view.last.strip()
        return answer if len(answer) <= LONGEST_LABEL else ""

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Count an answer, until there are too many different ones to be labels."""
        if side != TRAIN or feature is None:
            return
        self._rows += 1
        if self._counts is not None:
            self._counts[feature] += 1
            if len(self._counts) > MOST_LABELS:
                self._counts = None

    def findings(self) -> list[Finding]:
        """`labels` with every count, or `uneven_labels` where one is ten times as frequent as
        another."""
        counts = self._counts
        if counts is None or counts.get("") or len(counts) < 2:
            return []
        if self._rows < max(FEWEST_ROWS, ROWS_A_LABEL * len(counts)):
            return []
        ordered = counts.most_common()
        (top, most), (least, fewest) = ordered[0], ordered[-1]
        shown = ", ".join(f"{label} {count}" for label, count in ordered[:10])
        fields = {
            "labels": dict(ordered),
            "shown": shown + (" ..." if len(ordered) > 10 else ""),
            "different": len(ordered),
            "top": top,
            "least": least,
            "fewest": fewest,
        }
        if most >= UNEVEN * fewest:
            return [Finding("uneven_labels", "warn", most, self._rows, [], fields)]
        return [Finding("labels", "info", self._rows, self._rows, [], fields)]
