"""What the figures of a run mean: one sentence, plain warnings, and what to try next.

Every judgement is a rule over figures that stand in the page, with its threshold here and nowhere
else. Rules speak only when their figures exist.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from tunewright.core.words import say
from tunewright.report.record import (
    KINDS,
    Count,
    Record,
    finite,
    mapping,
    number,
    status_of_summary,
)

BARELY = 0.10
"""A fall of the training loss under this share is no learning worth the name."""
ROSE = 1.02
"""Held-out loss above this many times its start, or its lowest point, has risen."""
GOOD_TRAIN = 0.8
GOOD_HELD_OUT = 0.5
DROPPED = 0.05
SURE = 2.0
"""Standard errors of a change of the reward from which it is called one."""


@dataclass(frozen=True)
class Finding:
    """A sentence of the report: a key of the locale, its fields, and `good`, `warn` or `bad`."""

    key: str
    tone: str = "warn"
    fields: dict[str, Any] = field(default_factory=dict)


def show(value: float | None) -> str:
    """A loss or rate for people: four digits that count, NaN and infinities as what they are, a
    dash for nothing."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


@dataclass(frozen=True)
class Losses:
    """The losses of a run, from the summary or, where that is missing, from the events."""

    first: float | None
    final: float | None
    held_before: float | None
    held_after: float | None

    @property
    def fall(self) -> float | None:
        """Share by which the training loss fell; None where it cannot be said."""
        if (
            self.first is None
            or self.final is None
            or not (math.isfinite(self.first) and math.isfinite(self.final))
            or self.first <= 0
        ):
            return None
        return 1 - self.final / self.first


def losses_of(record: Record) -> Losses:
    """First and final training loss, held-out loss before and after."""
    from_steps = [number(e.get("loss")) for e in record.steps]
    measured = record.evaluations

    def figure(key: str, fallback: float | None) -> float | None:
        return record.figure(key) if key in record.summary else fallback

    return Losses(
        figure("first_loss", from_steps[0] if from_steps else None),
        figure("final_loss", from_steps[-1] if from_steps else None),
        figure(
            "held_out_loss_before", measured[0][1] if measured and measured[0][0] == 0 else None
        ),
        figure("held_out_loss", measured[-1][1] if measured else None),
    )


def status_of(record: Record) -> str:
    """`done`, `stopped`, `failed`, or `unknown` where the summary does not say."""
    return status_of_summary(record.summary)


def skipped_steps(record: Record) -> int:
    """Steps whose update was not applied because a value was not finite. The summary counts them as
    a number or lists them."""
    value = record.summary.get("skipped_steps")
    if isinstance(value, list):
        return len(value)
    told = finite(value)
    return int(told) if told is not None else sum(e.get("applied") is False for e in record.steps)


def circling(record: Record) -> int:
    """Answers after training that hit the length limit or go in circles; those that did so before
    are no news but count too."""
    told = finite(record.summary.get("answers_at_limit"))
    return max(int(told or 0), sum(a.after_cut for a in record.answers))


def count_of(record: Record, kind: str) -> Count | None:
    """The counts of one kind of question, or None where none with an expected answer was asked."""
    return next((c for c in record.counts if c.kind == kind and c.asked), None)


def is_rewarded(record: Record) -> bool:
    """Whether the run learnt from rewards: then its loss says nothing about what it learnt."""
    return any("reward" in mapping(event.get("figures")) for event in record.steps)


def _rewards_of(record: Record) -> list[float]:
    """The mean reward of every round, of a run that learns from rewards."""
    found = [finite(mapping(event.get("figures")).get("reward")) for event in record.steps]
    return [value for value in found if value is not None]


def _headline_of_rewards(record: Record) -> Finding:
    """Did the reward rise? By the held-out prompts where there are some, else by the first and last
    quarter of the rounds."""
    held = mapping(record.summary.get("held_out_figures"))
    change, error, after = (
        finite(held.get(name)) for name in ("reward_change", "reward_change_error", "reward")
    )
    if change is None or error is None or after is None:
        values = _rewards_of(record)
        if len(values) < 4:
            return Finding("report.learnt.unknown", "warn")
        part = max(1, len(values) // 4)
        first, last = values[:part], values[-part:]
        after = statistics.fmean(last)
        change = after - statistics.fmean(first)
        error = math.sqrt(sum(statistics.pvariance(side) / part for side in (first, last)))
    fields = {"before": show(after - change), "after": show(after), "error": show(error)}
    if abs(change) <= max(SURE * error, 1e-9):
        return Finding("report.learnt.reward_same", "bad", fields)
    if change > 0:
        return Finding("report.learnt.reward_rose", "good", fields)
    return Finding("report.learnt.reward_fell", "bad", fields)


def headline(record: Record) -> Finding:
    """Did it learn? One of `report.learnt.*`."""
    if is_rewarded(record):
        return _headline_of_rewards(record)
    losses = losses_of(record)
    known = {"first": show(losses.first), "final": show(losses.final)}
    if losses.first is None or losses.final is None:
        return Finding("report.learnt.unknown", "warn")
    if losses.fall is None:
        return Finding("report.learnt.not_finite", "bad", known)
    known["fall"] = f"{100 * losses.fall:.0f} %"
    if losses.fall < BARELY:
        return Finding(
            "report.learnt.barely" if losses.fall >= 0 else "report.learnt.rose", "bad", known
        )
    return Finding("report.learnt.yes", "good", known)


def warnings_of(record: Record) -> list[Finding]:
    """All that a reader must know before trusting the run."""
    losses, found = losses_of(record), []
    if is_rewarded(record):
        losses = Losses(None, None, None, None)
    status = status_of(record)
    if status != "done":
        found.append(
            Finding(f"report.warn.status_{status}", "bad" if status == "failed" else "warn")
        )
    if losses.fall is not None and losses.fall < BARELY:
        found.append(
            Finding("report.warn.barely", "bad", {"fall": f"{100 * losses.fall:.0f} %"})
            if losses.fall >= 0
            else Finding("report.warn.rose", "bad")
        )
    found += _held_out_warnings(record, losses)
    skipped = skipped_steps(record)
    if skipped:
        found.append(Finding("report.warn.skipped", "bad", {"count": skipped}))
    if circling(record):
        found.append(
            Finding(
                "report.warn.endless",
                "warn",
                {"count": circling(record), "total": len(record.answers)},
            )
        )
    forgotten = sum(c.forgotten for c in record.counts)
    if forgotten:
        found.append(Finding("report.warn.forgotten", "warn", {"count": forgotten}))
    changed = sum(a.reload_differs for a in record.answers)
    if changed:
        found.append(Finding("report.warn.reload", "bad", {"count": changed}))
    return sorted(found, key=lambda f: f.tone != "bad")


def _held_out_warnings(record: Record, losses: Losses) -> list[Finding]:
    before, after = finite(losses.held_before), finite(losses.held_after)
    if before is not None and after is not None and after > before * ROSE:
        return [
            Finding(
                "report.warn.held_out_rose", "bad", {"before": show(before), "after": show(after)}
            )
        ]
    low = lowest(record)
    points = [p for p in record.evaluations if math.isfinite(p[1])]
    if low and points[-1][1] > low[1] * ROSE and points[-1][0] > low[0]:
        kept = after is not None and after <= low[1] * ROSE
        key = "report.warn.overfit_kept" if kept else "report.warn.overfit"
        return [
            Finding(key, "warn", {"step": low[0], "low": show(low[1]), "last": show(points[-1][1])})
        ]
    return []


def lowest(record: Record) -> tuple[int, float] | None:
    """The evaluation with the lowest held-out loss."""
    return min(
        (p for p in record.evaluations if math.isfinite(p[1])), key=lambda p: p[1], default=None
    )


def advice(record: Record) -> list[Finding]:
    """What to do next, chosen by the figures; the most urgent first. Never empty."""
    keys = {f.key for f in warnings_of(record)}
    found: list[Finding] = []
    if status_of(record) in ("stopped", "failed", "unknown"):
        found.append(Finding("report.next.resume", "bad", {"run": record.run.as_posix()}))
    if "report.warn.skipped" in keys or headline(record).key == "report.learnt.not_finite":
        found.append(Finding("report.next.not_finite", "bad", {"rate": _scaled(record, 0.25)}))
    if "report.warn.endless" in keys:
        found.append(Finding("report.next.endless"))
    memorised = keys & {
        "report.warn.held_out_rose",
        "report.warn.overfit",
        "report.warn.overfit_kept",
    }
    early = _best_too_early(record) if "report.warn.overfit_kept" in keys else None
    if early:
        found.append(early)
    elif memorised:
        found.append(
            Finding(
                "report.next.memorised", "warn", {"epochs": _factor(record, "engine.epochs", 0.5)}
            )
        )
    if "report.warn.forgotten" in keys:
        found.append(Finding("report.next.forgotten"))
    found += _answers_advice(record, bool(memorised)) if not early else []
    found += _data_advice(record)
    if not any(f.tone == "bad" for f in found):
        found.append(Finding("report.next.use", "good", {"run": record.run.as_posix()}))
    return found


def _is_poor(train: Count | None) -> bool:
    return train is not None and train.right_after < GOOD_TRAIN * train.asked


def _best_too_early(record: Record) -> Finding | None:
    """The kept weights are too early a state to answer what was trained."""
    train = count_of(record, "train")
    if train is None or not _is_poor(train):
        return None
    return Finding(
        "report.next.best_too_early", "warn", {"right": train.right_after, "asked": train.asked}
    )


def _answers_advice(record: Record, memorised: bool) -> list[Finding]:
    train, held = count_of(record, "train"), count_of(record, "held_out")
    fall = losses_of(record).fall
    if _is_poor(train) or (fall is not None and fall < BARELY):
        more = {
            "epochs": _factor(record, "engine.epochs", 2),
            "rate": _scaled(record, 2),
            "rank": _factor(record, "method.rank", 2),
        }
        return [
            Finding("report.next.poor", "warn" if fall is None or fall >= BARELY else "bad", more)
        ]
    if held and held.right_after < GOOD_HELD_OUT * held.asked and not memorised:
        return [
            Finding(
                "report.next.wordings", "warn", {"right": held.right_after, "asked": held.asked}
            )
        ]
    if any(not a.pending for a in record.answers) and not any(c.asked for c in record.counts):
        return [Finding("report.next.no_expected", "warn")]
    return []


def _data_advice(record: Record) -> list[Finding]:
    read, dropped = finite(record.data.get("rows_read")), finite(record.data.get("rows_dropped"))
    found = []
    if read and dropped and dropped > DROPPED * read:
        found.append(Finding("report.next.dropped", "warn", {"count": int(dropped)}))
    if (
        record.data.get("held_out") == 0
        and finite(losses_of(record).held_after) is None
        and count_of(record, "held_out") is None
    ):
        found.append(Finding("report.next.no_held_out", "warn"))
    return found


def _factor(record: Record, key: str, factor: float) -> str:
    """The setting times `factor` as one would type it; a word where the setting is not known."""
    value = finite(record.settings.get(key))
    return f"{value * factor:g}" if value else "N"


def _scaled(record: Record, factor: float) -> str:
    """The learning rate that was used, times `factor`."""
    rate = finite(record.summary.get("learning_rate")) or finite(
        record.settings.get("engine.learning_rate")
    )
    return f"{rate * factor:.1e}".replace("e-0", "e-") if rate else "2e-4"


def kind_label(kind: str, lang: str) -> str:
    """The name of a kind of question; an unknown kind is its own name."""
    return say(f"report.kind.{kind}", lang=lang) if kind in KINDS else kind
