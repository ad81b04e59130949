"""Rules about the steps: values that are not finite, gradients of zero, rates, held-out loss."""

from __future__ import annotations

import math

from tunewright.advise.doctor.facts import Course, Facts
from tunewright.advise.doctor.outcome import KNOWN, held_fall, learnt, learnt_well, trend
from tunewright.core.words import say
from tunewright.record.diagnosis import Finding, Severity

FEW_SKIPPED = 0.05
"""Float16 finds its scale by skipping a few steps; more than this share of them is a fault."""
SMALL = 10.0
"""A rate that is so many times smaller than the usual one hardly moves the weights: the usual rates
of a method differ by less between models."""
LARGE = 3.0
"""A rate so many times the usual one is to blame for a loss that rises or jumps."""
NOTHING = 0.02
"""A fall of the loss under this share is nothing; above it, it is little."""
FEW_STEPS = 30
"""AdamW moves a weight by about rate x steps. With fewer steps than this even the usual rate of a
method moves little."""
ROSE = 1.1
"""A loss above this many times its start has risen. Loss varies by less over batches of one set."""
JUMPED = 2.0
"""So many times the first loss, over three steps in a row, is a jump no batch explains."""
PAST_BEST = 1.2
PAST_BEST_NATS = 0.05
"""Held-out loss above this many times its lowest, and by so many nats, is overfitting: smaller
differences are noise of a small held-out set."""
WORSE = 1.02
MUCH_WORSE = 1.05
"""Held-out loss of what is handed out above so many times that of the untouched model."""
ZERO_NORM = 1e-8
ALIKE = 0.9
"""From this share of groups with one reward on there is next to nothing to learn from."""


def not_finite(facts: Facts) -> Finding | None:
    """Steps that were skipped, or losses that are no number."""
    course = facts.course
    assert course is not None
    bad = sum(not math.isfinite(loss) for loss in course.losses)
    bad_norms = sum(not math.isfinite(norm) for norm in course.norms)
    count = max(course.skipped, bad, bad_norms)
    steps = max(course.steps, len(course.losses), 1)
    if not count or (course.dtype == "float16" and count < FEW_SKIPPED * steps):
        return None
    bad_end = course.wall == "failed" or count >= FEW_SKIPPED * steps
    return Finding(
        "nan_steps",
        "bad" if bad_end else "warn",
        {"count": count, "steps": steps, **_rate(course), "try_rate": _try(course, 0.2)},
    )


def zero_loss(facts: Facts) -> Finding | None:
    """Every loss is exactly 0 from the first step on: no token was learnt."""
    course = facts.course
    assert course is not None
    losses = course.losses
    if course.rewarded or not losses or any(loss != 0 for loss in losses):
        return None
    return Finding("labels_all_masked", "bad", {"steps": course.steps or len(losses)})


def zero_gradient(facts: Facts) -> Finding | None:
    """Gradients of zero while there is a loss: what trains is not connected to it."""
    course = facts.course
    assert course is not None
    norms = [norm for norm in course.norms if math.isfinite(norm)]
    if course.rewarded or len(norms) < 2 or max(norms) > ZERO_NORM:
        return None
    if all(loss == 0 for loss in course.losses):
        return None  # which is said by `labels_all_masked`
    return Finding("gradient_zero", "bad", {"norm": max(norms), "steps": len(norms)})


def rate_too_large(facts: Facts) -> Finding | None:
    """The training loss rose, or jumped and the answers are poor."""
    course = facts.course
    assert course is not None
    told = trend(course)
    if course.rewarded or told is None or told.first <= 0 or learnt_well(facts):
        return None
    rose = told.last > ROSE * told.first and told.rose
    jumped = told.peak > JUMPED * told.first and told.peak - told.first > KNOWN
    if not rose and not (jumped and _is_large(course)):
        return None
    is_large = _is_large(course) is not False
    return Finding(
        "rate_too_large" if is_large else "loss_rose",
        "bad" if rose or learnt(facts) is False else "warn",
        {
            "first": told.first,
            "last": told.last,
            "peak": told.peak,
            **_rate(course),
            "try_rate": _try(course, 0.1),
        },
    )


def _is_large(course: Course) -> bool | None:
    rate = _peak_rate(course)
    return None if rate is None or not course.usual_rate else rate >= LARGE * course.usual_rate


def barely_moved(facts: Facts) -> Finding | None:
    """Nothing was learnt: because the rate is small, the steps are few, or for another reason."""
    course = facts.course
    assert course is not None
    if course.steps == 1 and len(course.losses) == 1 and not learnt_well(facts):
        return _one_step(course)
    if course.rewarded or learnt(facts) is not False:
        return None
    told, held = trend(course), held_fall(course)
    if told is None or (told.last > ROSE * told.first and told.rose):
        return None
    rate, usual = _peak_rate(course), course.usual_rate
    steps = course.steps or len(course.losses)
    evidence = {
        "first": told.first,
        "last": told.last,
        "fall_share": max(0.0, told.fall),
        "steps": steps,
        **_rate(course),
        **({"held_share": max(0.0, held)} if held is not None else {}),
    }
    severity: Severity = "bad" if max(told.fall, held or 0.0) < NOTHING else "warn"
    if rate is not None and usual and rate < usual / SMALL:
        return Finding("rate_too_small", severity, evidence | {"try_rate": usual})
    if steps < FEW_STEPS:
        return Finding("steps_too_few", severity, evidence | {"try_steps": 10 * FEW_STEPS})
    return Finding("not_learnt", severity, evidence | {"try_rate": _try(course, 5)})


def _one_step(course: Course) -> Finding | None:
    """One step leaves nothing to compare."""
    loss = course.losses[0]
    if course.rewarded or not math.isfinite(loss) or course.ended:
        return None
    evidence = {"first": loss, "last": loss, "fall_share": 0.0, "steps": 1, **_rate(course)}
    return Finding("steps_too_few", "warn", evidence | {"try_steps": 10 * FEW_STEPS})


def unfinished(facts: Facts) -> Finding | None:
    """The run did not reach its end."""
    course = facts.course
    assert course is not None
    if not course.ended:
        return None
    failed = course.ended == "failed"
    evidence = {"step": course.steps, "steps": course.total_steps or "?", "folder": facts.name}
    return Finding(
        "run_failed" if failed else "run_unfinished",
        "bad" if failed else "warn",
        evidence | {"reason": course.why or say("run.status_unknown")},
    )


def overfitting(facts: Facts) -> Finding | None:
    """The held-out loss rose from its lowest, or what is handed out is worse than the start."""
    course = facts.course
    assert course is not None
    points = [(step, loss) for step, loss in course.held if math.isfinite(loss)]
    if course.rewarded or len(points) < 2:
        return None
    told = trend(course)
    if told is not None and told.last > told.first:
        return None  # the training loss rose as well: that is no overfitting
    low_step, low = min(points, key=lambda point: point[1])
    last_step, last = points[-1]
    kept = course.held_kept if course.held_kept is not None else last
    before = points[0][1] if points[0][0] == 0 else None
    worse = before is not None and before > 0 and kept > WORSE * before
    past = last > PAST_BEST * low and last - low > PAST_BEST_NATS and last_step > low_step
    if not worse and not past:
        return None
    is_bad = worse and before is not None and kept > MUCH_WORSE * before
    code = "overfitting" if kept > PAST_BEST * low or worse else "overfitting_kept_best"
    return Finding(
        code,
        "bad" if is_bad else "warn",
        {
            "before": before if before is not None else points[0][1],
            "low": low,
            "low_step": low_step,
            "last": last,
            "last_step": last_step,
            "kept": kept,
        },
    )


def rewards_alike(facts: Facts) -> Finding | None:
    """Nearly all drawn answers to a question get one reward, so nothing tells them apart."""
    course = facts.course
    assert course is not None
    share = course.groups_alike
    if share is None or share < ALIKE:
        return None
    return Finding("rewards_alike", "bad", {"alike_share": share, "steps": course.steps})


def none_picked(facts: Facts) -> Finding | None:
    """Of all answers that were drawn none was good enough to be learnt."""
    course = facts.course
    assert course is not None
    if course.picked is None or course.picked > 0:
        return None
    evidence = {"steps": course.steps, "finished_share": course.finished}
    return Finding("none_picked" if course.finished else "none_ended", "bad", evidence)


def _peak_rate(course: Course) -> float | None:
    rates = [rate for rate in course.rates if math.isfinite(rate)]
    return max(rates) if rates else None


def _rate(course: Course) -> dict[str, float | None]:
    return {"rate": _peak_rate(course), "usual": course.usual_rate}


def _try(course: Course, factor: float) -> float | None:
    rate = _peak_rate(course)
    if factor < 1 and rate is not None and course.usual_rate and rate > course.usual_rate:
        return course.usual_rate
    return None if rate is None else rate * factor
