"""Rules about the rows: too few, cut, repeated, contradicting each other, or of the wrong form."""

from __future__ import annotations

import math

from tunewright.advise.doctor.facts import Facts
from tunewright.advise.doctor.outcome import learnt_well, trend
from tunewright.record.diagnosis import Finding, Severity

FEW_DISTINCT = 2
"""Up to so many different rows a model can only learn these answers by heart."""
LITTLE_LEARNT = 0.02
"""The data check warns from the same share on; here the training must have failed as well, since a
label after a long text is a good task."""
FEW_TOKENS = 20
"""Learnt tokens of the whole set: fewer are a word or two."""
CUT_WARN, CUT_BAD = 0.05, 0.3
DROPPED_WARN, DROPPED_BAD = 0.1, 0.5
REPEATED_WARN, REPEATED_BAD = 0.2, 0.5
"""Shares of the rows. A tenth of repeated rows weighs these a little more and does no harm."""
LEAKED = 0.2
FLOOR = 0.05
"""Nats a token. A lower floor hides behind the noise of a few batches."""
AT_FLOOR = 1.5
"""Up to so many times the floor a loss has reached it as far as training can tell."""
CONSTANT = 0.9
SWAPPED, TEMPLATE = 0.05, 0.05
"""Shares of the rows from which a finding of the data check decides what is learnt."""


def one_example(facts: Facts) -> Finding | None:
    """One row, or one row many times."""
    data = facts.data
    assert data is not None
    if not data.distinct or data.distinct > FEW_DISTINCT:
        return None
    severity: Severity = "bad" if data.distinct == 1 else "warn"
    return Finding("one_example", severity, {"distinct": data.distinct, "rows": data.rows})


def few_learnt_tokens(facts: Facts) -> Finding | None:
    """Next to nothing of the rows is learnt, and it shows."""
    data = facts.data
    assert data is not None
    if not data.tokens or data.learnt_tokens is None or learnt_well(facts):
        return None
    share = data.learnt_tokens / data.tokens
    if share >= LITTLE_LEARNT and data.learnt_tokens >= FEW_TOKENS:
        return None
    figures = {"learnt": data.learnt_tokens, "tokens": data.tokens, "learnt_share": share}
    return Finding("few_learnt_tokens", "bad", figures)


def answers_cut(facts: Facts) -> Finding | None:
    """Answers whose middle or end was cut off to make the rows fit."""
    data = facts.data
    assert data is not None
    share = data.truncated / data.rows if data.rows else 0.0
    if share < CUT_WARN:
        return None
    severity: Severity = "bad" if share >= CUT_BAD else "warn"
    return Finding(
        "answers_cut", severity, {"count": data.truncated, "rows": data.rows, "cut_share": share}
    )


def rows_dropped(facts: Facts) -> Finding | None:
    """A good part of the rows is not used at all."""
    data = facts.data
    assert data is not None
    share = data.dropped / data.read if data.read else 0.0
    if share < DROPPED_WARN:
        return None
    severity: Severity = "bad" if share >= DROPPED_BAD else "warn"
    figures = {"count": data.dropped, "rows": data.read, "dropped_share": share}
    return Finding("rows_dropped", severity, figures | {"too_long": data.too_long})


def duplicates(facts: Facts) -> Finding | None:
    """Rows that are there several times."""
    data = facts.data
    assert data is not None
    share = data.duplicates / data.rows if data.rows else 0.0
    if share < REPEATED_WARN:
        return None
    severity: Severity = "bad" if share >= REPEATED_BAD else "warn"
    return Finding(
        "duplicates",
        severity,
        {
            "count": data.duplicates,
            "rows": data.rows,
            "repeated_share": share,
            "distinct": (data.rows or 0) - data.duplicates,
        },
    )


def held_out_leaks(facts: Facts) -> Finding | None:
    """Held-out rows that are trained on: their figures say nothing about new questions."""
    data = facts.data
    assert data is not None
    share = data.leaked / data.held_out if data.held_out else 0.0
    if share < LEAKED:
        return None
    figures = {"count": data.leaked, "rows": data.held_out, "leaked_share": share}
    return Finding("held_out_leaks", "warn", figures)


def entropy_floor(facts: Facts) -> Finding | None:
    """The loss lies at the lowest that the data allows: one question has several answers."""
    data, course = facts.data, facts.course
    assert data is not None and course is not None
    told = trend(course)
    if data.floor is None or data.floor < FLOOR or told is None or not course.learns_text:
        return None
    if not math.isfinite(told.last) or told.last > AT_FLOOR * data.floor:
        return None
    return Finding(
        "entropy_floor",
        "warn",
        {
            "floor": data.floor,
            "last": told.last,
            "rows": data.floor_rows,
            "total": data.rows,
            "perplexity": math.exp(min(data.floor, 50.0)),
        },
    )


def constant_answers(facts: Facts) -> Finding | None:
    """One answer stands in most rows."""
    return _checked(facts, "constant_answers", "constant_answers", CONSTANT, "warn")


def roles_swapped(facts: Facts) -> Finding | None:
    """Questions stand where the answers belong."""
    return _checked(facts, "swapped_roles", "roles_swapped", SWAPPED, "bad")


def template_in_rows(facts: Facts) -> Finding | None:
    """The rows bring the marks of another template, which are learnt as text."""
    return _checked(facts, "wrong_template", "template_in_rows", TEMPLATE, "bad")


def _checked(facts: Facts, key: str, code: str, least: float, severity: Severity) -> Finding | None:
    """A finding of the data check that decides what is learnt."""
    data = facts.data
    assert data is not None
    count, total = data.found.get(key, (0, 0))
    if not total or count < least * total:
        return None
    return Finding(code, severity, {"count": count, "rows": total, "found_share": count / total})
