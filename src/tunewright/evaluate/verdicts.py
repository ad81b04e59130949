"""From scores to a verdict: what is tested, what the data show, and what a contract as a whole
says.

A check FAILS where the data show that its limit is broken, HOLDS where they show that it is kept,
and is UNDECIDED where they show neither. All checks that luck could break share one error rate
(Holm): the chance that a contract fails a model that keeps it is at most `error_rate`. What luck
cannot break (a leak where none is allowed, a size in bytes) takes no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from tunewright.core.words import say
from tunewright.evaluate import significance
from tunewright.evaluate.interval import of_scores, paired

Verdict = Literal["fails", "undecided", "holds"]
SHARES = ("least", "most")
WORST: tuple[Verdict, ...] = ("fails", "undecided", "holds")


@dataclass
class Check:
    """One limit of a clause. `broken` is the chance to see this, or worse, of a model that keeps
    the limit; `kept` the chance to see this, or better, of one that does not. `certain`: luck has
    no part in it."""

    kind: str
    value: float
    limit: float
    broken: float
    kept: float
    beyond: bool
    """The measured value is beyond the limit."""
    certain: bool = False
    interval: tuple[float, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict = "undecided"
    adjusted: float | None = None
    """`broken` after Holm's correction: compared with the error rate."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind,
            "value": self.value,
            "limit": self.limit,
            "interval": None if self.interval is None else list(self.interval),
            "verdict": self.verdict,
            "certain": self.certain,
            "p_broken": self.broken,
            "p_broken_adjusted": self.adjusted,
            "p_kept": self.kept,
            **self.facts,
        }


def least(scores: Sequence[float], limit: float) -> Check:
    """The mean of scores must be at least `limit`."""
    total, count = math.fsum(scores), len(scores)
    value = total / count
    certain = limit >= 1
    all_right = total >= count - 1e-9
    return Check(
        "least",
        value,
        limit,
        broken=significance.few(total, count, limit),
        kept=(0.0 if all_right else 1.0) if certain else significance.many(total, count, limit),
        beyond=value < limit - 1e-12,
        certain=certain,
        interval=of_scores(list(scores)),
        facts={"n": count},
    )


def most(scores: Sequence[float], limit: float) -> Check:
    """At most a share `limit` of scores may be below 1."""
    bad, count = math.fsum(1 - score for score in scores), len(scores)
    certain = limit <= 0
    low, high = of_scores([1 - score for score in scores])
    return Check(
        "most",
        bad / count,
        limit,
        broken=significance.many(bad, count, limit) if bad else 1.0,
        kept=(1.0 if bad else 0.0) if certain else significance.few(bad, count, limit),
        beyond=bad / count > limit + 1e-12,
        certain=certain,
        interval=(low, high),
        facts={"n": count, "found": sum(score < 1 for score in scores)},
    )


def margin(scores: Sequence[float], against: Sequence[float], limit: float, rate: float) -> Check:
    """The mean may lie at most `limit` below that of the other model on the same questions. Where
    no question changed its score, nothing was lost."""
    differences = [a - b for a, b in zip(scores, against, strict=True)]
    found = paired(against, scores, confidence=1 - rate)
    same = not any(differences)
    return Check(
        "margin",
        found.difference,
        -limit,
        broken=1.0 if same else significance.falls(differences, limit),
        kept=0.0 if same else significance.holds(differences, limit),
        beyond=found.difference < -limit - 1e-12,
        interval=(found.low, found.high),
        facts={
            "n": len(differences),
            "better": found.wins,
            "worse": found.losses,
            "equal": found.ties,
        },
    )


def slower(seconds: Sequence[float], against: Sequence[float], limit: float) -> Check:
    """A token may take `1 + limit` times as long as with the other model; timed in turns."""
    ratios = [math.log(a / b) for a, b in zip(seconds, against, strict=True)]
    return _timed("speed_margin", ratios, math.log1p(limit), 1 + limit, len(ratios))


def slow(seconds: Sequence[float], limit: float, kind: str) -> Check:
    """An answer, or a token, may take at most `limit` seconds."""
    logs = [math.log(one) for one in seconds]
    return _timed(kind, logs, math.log(limit), limit, len(logs))


def _timed(kind: str, logs: Sequence[float], limit: float, shown: float, count: int) -> Check:
    middle = median(logs)
    return Check(
        kind,
        math.exp(middle),
        shown,
        broken=significance.ranks_at_most([limit - one for one in logs]),
        kept=significance.ranks_at_most([one - limit for one in logs]),
        beyond=middle > limit,
        interval=_of_ranks(logs),
        facts={"n": count},
    )


def _of_ranks(logs: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median: order statistics whose binomial tails are below 2.5 %."""
    from scipy.stats import binom

    ordered = sorted(logs)
    place = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return math.exp(ordered[place]), math.exp(ordered[-1 - place])


def bytes_of(kind: str, value: int, limit: float, **facts: Any) -> Check:
    """A size, which luck cannot change."""
    beyond = value > limit
    return Check(
        kind,
        value,
        limit,
        broken=0.0 if beyond else 1.0,
        kept=1.0 if beyond else 0.0,
        beyond=beyond,
        certain=True,
        facts=facts,
    )


def decide(checks: Sequence[Check], rate: float) -> None:
    """Write the verdict of every check of a contract into it."""
    open_ = [check for check in checks if not check.certain]
    shown = significance.holm([check.broken for check in open_], rate)
    adjusted = significance.holm_adjusted([check.broken for check in open_])
    for check, fails, p in zip(open_, shown, adjusted, strict=True):
        check.adjusted = p
        check.verdict = "fails" if fails else "holds" if check.kept <= rate else "undecided"
    for check in checks:
        if check.certain:
            check.verdict = "fails" if check.broken <= rate else "holds"


def worst(checks: Sequence[Check]) -> Verdict:
    """The verdict of a clause: that of its worst check."""
    return min((check.verdict for check in checks), key=WORST.index)


def passes(verdict: Verdict, checks: Sequence[Check], undecided: str) -> bool:
    """What a verdict counts as."""
    if verdict != "undecided":
        return verdict == "holds"
    if undecided == "score":
        return not any(check.beyond for check in checks)
    return undecided == "pass"


def sentence(check: Check, lang: str | None = None) -> str:
    """What a check found, in words and figures."""
    shown: dict[str, Any] = dict(check.facts)
    if check.kind in ("size", "memory", "size_margin", "memory_margin"):
        from tunewright.core.files import readable_size

        shown |= {"value": readable_size(check.value), "limit": readable_size(check.limit)}
    elif check.kind == "tokens_per_second":
        shown |= {"value": f"{1 / check.value:.1f}", "limit": f"{1 / check.limit:.1f}"}
    elif check.kind in ("speed_margin", "seconds_per_answer"):
        shown |= {"value": f"{check.value:.2f}", "limit": f"{check.limit:.2f}"}
    elif check.kind == "margin":
        shown |= {"value": f"{check.value:+.3f}", "limit": f"{check.limit:+.3f}"}
    else:
        shown |= {"value": f"{check.value:.3f}", "limit": f"{check.limit:.3f}"}
    if check.interval is not None:
        low, high = check.interval
        if check.kind == "tokens_per_second":
            low, high = 1 / high, 1 / low
        digits = "+.3f" if check.kind == "margin" else ".3f" if check.kind in SHARES else ".2f"
        shown |= {"low": format(low, digits), "high": format(high, digits)}
    text = say(f"gate.check.{check.kind}", lang, **shown)
    if check.adjusted is not None:
        text += " " + say("gate.check.p", lang, p=f"{check.adjusted:.2g}")
    return text
