"""How long a run may ask, and which questions are left out where they would take longer.

The questions serve the run, so asking them before and after takes at most a tenth of the estimated
training, or 20 s where that is more: both together, as a person waits for both. What asking will
take is counted: token rows of the questions through the model's weights, and for each token of the
longest answer one reading of the weights, at the rates that this machine shows. A question that a
person wrote is always asked; of the rows that stand in for such, as many as the time allows, the
first ones first, and the same before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.advise import fit, speed
from tunewright.advise.speed import Rates
from tunewright.engine.placement import World
from tunewright.models.shape import BYTES, ModelShape
from tunewright.run.prepare import Plan

LEAST_SECONDS = speed.ASK_LEAST_SECONDS
FEW_ROWS = 0.2
"""Share of the rate of large matrix products that products of a few rows reach."""
READS = speed.DECODE_EFFICIENCY
"""Share of the rate of reading memory that a decoding step reaches."""


SLOWEST = Rates(5e9, 1e9)
"""Any machine is faster: what is asked in time at this pace needs no measuring."""


@dataclass(frozen=True)
class Question:
    """What a question costs: its tokens, the most tokens of its answer, whether the answer from
    before training is kept already, and whether it may be left out."""

    tokens: int
    most: int
    is_kept: bool
    is_row: bool


@dataclass(frozen=True)
class Allowed:
    """Seconds for asking, what all questions would take, and the places of those to ask."""

    seconds: float
    needed: float
    asked: list[int]


def allow(
    plan: Plan, world: World, questions: Sequence[Question], rates: speed.Rates | None = None
) -> Allowed:
    """Choose the questions to ask. Takes about 0.2 s where `rates` are not known and must be
    measured, which small models do not need."""
    shape, item = fit.shape_of(plan.source.folder), BYTES[world.dtype]
    everything = list(range(len(questions)))
    needed = seconds_of(questions, shape, item, SLOWEST)
    if needed <= LEAST_SECONDS or not any(one.is_row for one in questions):
        return Allowed(LEAST_SECONDS, needed, everything)
    rates = rates or speed.measured_rates(shape, world)
    seconds = speed.seconds_allowed(plan.estimate(world, rates).seconds or 0.0)
    pace = Rates(rates.flops * speed.EFFICIENCY, rates.bytes)
    needed = seconds_of(questions, shape, item, pace)
    return Allowed(seconds, needed, choose(questions, shape, item, pace, seconds))


def places_in(
    plan: Plan, world: World, questions: Sequence[Question], rates: Rates | None, seconds: float
) -> list[int]:
    """The places of the questions for which `seconds` suffice, before and after together."""
    shape, item = fit.shape_of(plan.source.folder), BYTES[world.dtype]
    if seconds_of(questions, shape, item, SLOWEST) <= seconds:
        return list(range(len(questions)))
    rates = rates or speed.measured_rates(shape, world)
    pace = Rates(rates.flops * speed.EFFICIENCY, rates.bytes)
    return choose(questions, shape, item, pace, seconds)


def choose(
    questions: Sequence[Question], shape: ModelShape, item: int, pace: Rates, seconds: float
) -> list[int]:
    """The places of the questions to ask in `seconds`: all that may not be left out, then as many
    of the others as there is time for, in their order. `item` are bytes of a weight."""
    asked = [i for i, one in enumerate(questions) if not one.is_row]
    for i, one in enumerate(questions):
        if one.is_row:
            more = [questions[j] for j in (*asked, i)]
            if seconds_of(more, shape, item, pace) <= seconds:
                asked.append(i)
    return sorted(asked)


def seconds_of(questions: Sequence[Question], shape: ModelShape, item: int, pace: Rates) -> float:
    """Seconds that asking all of `questions` takes at most, before and after."""
    fresh = [one for one in questions if not one.is_kept]
    return sum(_once(some, shape, item, pace) for some in (fresh, questions))


def _once(questions: Sequence[Question], shape: ModelShape, item: int, pace: Rates) -> float:
    """Seconds of asking them once: the rows of the questions, then answers side by side."""
    if not questions:
        return 0.0
    active = shape.active_weights + shape.head_weights
    reading = 2.0 * active * sum(one.tokens for one in questions) / pace.flops
    steps = max(one.most for one in questions)
    weights = steps * active * item / (READS * pace.bytes)
    written = sum(one.most for one in questions)
    return reading + max(weights, 2.0 * active * written / (FEW_ROWS * pace.flops))
