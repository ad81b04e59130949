"""Did it learn? What the losses, the answers and a probe say together.

A cause (a small rate, few learnt tokens) is worth a finding only where the training failed: the
same setting is right in a run that learnt. So rules about causes ask here first.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.advise.doctor.facts import Asked, Course, Facts
from tunewright.core.comparing import contains

BARELY = 0.05
"""A fall of the mean loss under this share is no learning: on the same rows the mean over a quarter
of the steps differs by as much from draw to draw."""
BARELY_TEXT = 0.01
"""The same for running text, whose loss falls slowly: from 3.0 to 2.9 is an honest result."""
KNOWN = 0.1
"""Below this loss, in nats a token, the model knew the rows before: nothing was left to learn."""
RIGHT = 0.5
"""From this share of right answers on a run has learnt, whatever its loss did."""
RANKED = 0.75
"""From this share of rightly ranked pairs on pairs were learnt, however little the loss fell."""
SURE = 2.0
"""Standard errors by which two means must differ to count as different."""
GAIN = 0.1
"""Nats by which the answers of a probed model must have become likelier."""


@dataclass(frozen=True)
class Trend:
    """Mean losses at the beginning and at the end, and the standard error of their difference."""

    first: float
    last: float
    error: float
    peak: float
    """The largest mean of three steps in a row."""

    @property
    def fall(self) -> float:
        """Share by which the loss fell; negative where it rose."""
        return 1 - self.last / self.first if self.first > 0 else 0.0

    @property
    def rose(self) -> bool:
        """By more than chance."""
        return self.last - self.first > SURE * self.error


def trend(course: Course) -> Trend | None:
    """How the training loss went; None for fewer than two finite losses."""
    losses = [loss for loss in course.losses if math.isfinite(loss)]
    if len(losses) < 2:
        return None
    k = max(1, len(losses) // 4)
    # The first loss is that of the untouched model; those after it have already learnt something.
    begin, end = losses[: max(1, min(k, 3))], losses[-k:]
    error = math.hypot(_error(begin, losses), _error(end, losses))
    threes = [statistics.fmean(losses[i : i + 3]) for i in range(max(1, len(losses) - 2))]
    return Trend(statistics.fmean(begin), statistics.fmean(end), error, max(threes))


def _error(part: Sequence[float], losses: Sequence[float]) -> float:
    """Standard error of a mean; infinite where so few losses tell nothing of it. What a step
    differs from the next one by is the noise of batches: the trend hardly shows in it."""
    if len(losses) < 3:
        return math.inf
    steps = [abs(a - b) for a, b in itertools.pairwise(losses)]
    return statistics.median(steps) / math.sqrt(2) / math.sqrt(len(part))


def held_fall(course: Course) -> float | None:
    """Share by which the held-out loss of the weights that are handed out lies below that of the
    start."""
    before = next((loss for step, loss in course.held if step == 0), None)
    after = course.held_kept if course.held_kept is not None else _last(course.held)
    if before is None or after is None or not math.isfinite(before) or before <= 0:
        return None
    return 1 - after / before if math.isfinite(after) else None


def _last(held: Sequence[tuple[int, float]]) -> float | None:
    return held[-1][1] if held and held[-1][0] > 0 else None


def expected_of(asked: Sequence[Asked] | None, *, kinds: Sequence[str] = ()) -> list[Asked]:
    """The questions whose answer is known."""
    return [
        one
        for one in asked or ()
        if one.expected.strip() and (not kinds or one.kind in kinds) and one.kind != "general"
    ]


def right_share(asked: Sequence[Asked] | None, *, before: bool = False) -> float | None:
    """Share of the questions with a known answer that are answered right."""
    known = [one for one in expected_of(asked) if not before or one.before is not None]
    if not known:
        return None
    given = [(one.before if before else one.after) or "" for one in known]
    right = sum(contains(text, one.expected) for text, one in zip(given, known, strict=True))
    return right / len(known)


def learnt(facts: Facts) -> bool | None:
    """Whether the training has learnt what it was taught; None where nobody can say."""
    right, before = right_share(facts.asked), right_share(facts.asked, before=True)
    if right is not None and right >= RIGHT and (before is None or right > before):
        return True
    said = [told for told in (_by_probe(facts), _by_course(facts.course)) if told is not None]
    return None if not said else any(said)


def _by_probe(facts: Facts) -> bool | None:
    probed = facts.probed
    if probed is None or probed.base is None or probed.pairs:
        return None
    base, tuned = -probed.base.answer, -probed.tuned.answer
    if not (math.isfinite(base) and math.isfinite(tuned)):
        return False
    return tuned <= KNOWN or (base - tuned >= GAIN and base - tuned >= BARELY * base)


def _by_course(course: Course | None) -> bool | None:
    if course is None or course.rewarded:
        return None
    if course.ranked is not None and course.ranked >= RANKED:
        return True
    told, held = trend(course), held_fall(course)
    least = BARELY_TEXT if course.objective == "pretrain" else BARELY
    falls = [fall for fall in (told.fall if told else None, held) if fall is not None]
    if not falls:
        return None
    if told is not None and told.first <= KNOWN and told.last <= KNOWN:
        return True
    return max(falls) >= least


def learnt_well(facts: Facts) -> bool:
    """Whether it clearly works: most answers are right, or the held-out loss is far below its
    start."""
    right = right_share(facts.asked)
    if right is not None:
        return right >= RIGHT
    held = held_fall(facts.course) if facts.course is not None else None
    return held is not None and held >= 0.3
