"""The lowest loss that the data allows: where a question stands with several answers, no model can
give all of them probability 1.

For every learnt span of a row, the best any model can do is to answer as often as the data does:
n(beginning and span) / n(beginning), counted over all rows. The sum of the negative logarithms is
the entropy of the answers given their questions, in nats; divided by the learnt weight it is the
training loss that cannot be undercut. Source: Gibbs' inequality, applied to the rows as they stand.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from tunewright.core.types import Sample

MOST_ROWS = 20_000
"""Rows that are counted. Fewer rows show fewer repeated questions, so the floor that is found can
only be too low, never too high."""
MOST_SECONDS = 0.1
"""The doctor of every run must not be felt."""


@dataclass(frozen=True)
class Floor:
    """`loss` in nats a learnt token; `rows` are those whose question has another answer too."""

    loss: float
    rows: int
    counted: int


def entropy_floor(samples: Iterable[Sample], most_seconds: float = MOST_SECONDS) -> Floor | None:
    """The floor of the mean loss over the learnt tokens of `samples`; None where nothing is
    learnt. Looks at the first branch of each."""
    started = time.perf_counter()
    begins: dict[bytes, float] = {}
    wholes: dict[tuple[bytes, bytes], float] = {}
    learnt, counted = 0.0, 0
    answers: dict[bytes, int] = {}
    kept: list[list[tuple[bytes, bytes, float]]] = []
    for number, sample in enumerate(samples):
        late = number % 64 == 0 and time.perf_counter() - started > most_seconds
        if number >= MOST_ROWS or (number and late):
            break
        branch, spans = sample.branches[0], []
        tokens = array("i", branch.tokens)
        for first, after, weight in _spans(branch.learnt, branch.weights):
            begin, span = tokens[:first].tobytes(), tokens[first:after].tobytes()
            begins[begin] = begins.get(begin, 0.0) + weight
            if (begin, span) not in wholes:
                answers[begin] = answers.get(begin, 0) + 1
            wholes[begin, span] = wholes.get((begin, span), 0.0) + weight
            learnt += weight * (after - first)
            spans.append((begin, span, weight))
        kept.append(spans)
        counted += 1
    if not learnt:
        return None
    nats = sum(
        weight * math.log(begins[begin] / wholes[begin, span])
        for spans in kept
        for begin, span, weight in spans
    )
    rows = sum(any(answers[begin] > 1 for begin, _, _ in spans) for spans in kept)
    return Floor(nats / learnt, rows, counted)


def _spans(learnt: list[int], weights: list[float]) -> Iterable[tuple[int, int, float]]:
    """Learnt indices as half-open ranges of one weight each; those of weight 0 left out."""
    start = 0
    for i in range(1, len(learnt) + 1):
        ends = i == len(learnt)
        if ends or learnt[i] != learnt[i - 1] + 1 or weights[i] != weights[start]:
            if weights[start] > 0:
                yield learnt[start], learnt[i - 1] + 1, weights[start]
            start = i
