"""Lengths, and what of the data is learnt: tokens, stop tokens, rows that were cut."""

from __future__ import annotations

import math
from array import array
from typing import Any

from tunewright.core.types import Origin, Row, Sample
from tunewright.data.checks.base import TRAIN, Finding, Places, Severity, Tally, view_of
from tunewright.data.labels import QUESTION

HALF = 0.5
"""From this share of the answers on, a model without their stop tokens never learns to end."""
LITTLE_LEARNT = 0.02
GIANT, GIANT_OF_FEW, MANY = 5, 10, 100
SHORTEST_GIANT = 400
BINS = 12


def percentile(ordered: Any, share: float) -> int:
    """The nearest-rank percentile of sorted lengths."""
    return int(ordered[max(0, math.ceil(share * len(ordered)) - 1)])


def histogram(ordered: Any) -> list[list[int]]:
    """[from, to, rows] for bins of equal width on a logarithmic scale; `to` is included."""
    import numpy

    low, high = max(1, int(ordered[0])), max(1, int(ordered[-1]))
    edges = sorted({round(low * (high / low) ** (k / BINS)) for k in range(BINS + 1)})
    if len(edges) == 1:
        return [[low, high, len(ordered)]]
    edges[-1] = high
    bins = []
    before = 0
    for k, edge in enumerate(edges[1:]):
        after = int(numpy.searchsorted(ordered, edge, side="right"))
        bins.append([edges[k] if k == 0 else edges[k] + 1, edge, after - before])
        before = after
    return bins


class Lengths:
    """How long the rows are, in tokens where there is a tokenizer and in characters otherwise, and
    single rows that dwarf the rest."""

    name = "lengths"

    def __init__(self) -> None:
        self._lengths = array("Q")
        self._places = Places()
        self._unit = "characters"

    def feature(self, row: Row, sample: Sample | None) -> tuple[int, bool]:
        """The length of the longest branch, and whether it is in tokens."""
        if sample is not None:
            return max(len(branch.tokens) for branch in sample.branches), True
        return sum(map(len, view_of(row).all())), False

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Keep the length of a row that is trained on."""
        if side == TRAIN:
            length, in_tokens = feature
            self._unit = "tokens" if in_tokens else "characters"
            self._lengths.append(length)
            self._places.add(origin)

    def findings(self) -> list[Finding]:
        """`lengths` always, `giant_row` for rows five times as long as 99 of 100 (ten times as nine
        of ten in small sets)."""
        import numpy

        if not self._lengths:
            return []
        lengths = numpy.frombuffer(self._lengths, numpy.uint64)
        ordered = numpy.sort(lengths)
        facts = {
            "min": int(ordered[0]),
            **{f"p{k}": percentile(ordered, k / 100) for k in (50, 90, 99)},
            "max": int(ordered[-1]),
        }
        unit, total = self._unit, len(ordered)
        fields = {"unit": unit, **facts, "bins": histogram(ordered)}
        found = [Finding("lengths", "info", total, total, [], fields)]
        limit = GIANT * facts["p99"] if total >= MANY else GIANT_OF_FEW * facts["p90"]
        giants = numpy.flatnonzero(lengths > max(limit, SHORTEST_GIANT))
        if len(giants):
            order = giants[numpy.argsort(lengths[giants])[::-1]]
            fields = {"unit": unit, "longest": int(lengths[order[0]])}
            fields |= {"p99": facts["p99"], "p50": facts["p50"]}
            places = self._places.first(order)
            found.append(Finding("giant_row", "warn", len(giants), total, places, fields))
        return found


class Learning:
    """Which share of the tokens is learnt, with which stop tokens, and what was cut."""

    name = "learning"

    def __init__(self) -> None:
        self._rows = self._tokens = self._learnt = self._answers = self._stops = 0
        self._unstopped, self._cut, self._nothing = Tally(), Tally(), Tally()

    def feature(
        self, row: Row, sample: Sample | None
    ) -> tuple[int, int, int, int, bool, bool] | None:
        """Tokens, learnt ones, answers, stop tokens learnt, cut, only a question; None without a
        tokenizer."""
        if sample is None:
            return None
        tokens = sum(len(b.tokens) for b in sample.branches)
        learnt = sum(len(b.learnt) for b in sample.branches)
        facts = sample.facts
        answers, stops = facts.get("answers", 0), facts.get("stops_learnt", 0)
        asks = all(b.role == QUESTION for b in sample.branches)
        return tokens, learnt, answers, stops, bool(facts.get("truncated")), asks

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Count a row that is trained on."""
        if side != TRAIN or feature is None or feature[5]:
            return
        tokens, learnt, answers, stops, cut, _ = feature
        self._rows += 1
        self._tokens += tokens
        self._learnt += learnt
        self._answers += answers
        self._stops += stops
        if stops < answers:
            self._unstopped.add(origin, answers - stops)
        if cut:
            self._cut.add(origin)
        if not learnt:
            self._nothing.add(origin)

    def findings(self) -> list[Finding]:
        """`learnt` and `stops` always (with tokens); `nothing_learnt`, `little_learnt`, `no_stop`,
        `truncated` where they apply."""
        if not self._rows:
            return []
        found = [
            Finding("learnt", "info", self._learnt, self._tokens),
            Finding("stops", "info", self._stops, self._answers),
        ]
        if not self._learnt:
            found.append(self._nothing.finding("nothing_learnt", "stop"))
        elif self._learnt < LITTLE_LEARNT * self._tokens:
            found.append(Finding("little_learnt", "warn", self._learnt, self._tokens))
        if self._unstopped.count:
            severity: Severity = "stop" if self._unstopped.count >= HALF * self._answers else "warn"
            found.append(self._unstopped.finding("no_stop", severity, self._answers))
        if self._cut.count:
            # Somebody asked for it, and the stop tokens are kept.
            found.append(self._cut.finding("truncated", "warn", self._rows))
        return found
