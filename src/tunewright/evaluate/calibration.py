"""Can the model's sureness be believed, and when should it rather not answer?

Confidence is the probability of the chosen option among the options. The expected calibration error
is the mean gap between confidence and accuracy over bins of equal width, weighted by rows (Naeini
et al. 2015; Guo et al. 2017). Few rows make it large even for a perfect model, so `by_chance_95`
says what such a model would stay below in 95 of 100 draws (Broecker and Smith 2007, consistency
resampling). An abstention threshold is chosen on one half of the rows and measured on the other:
on the rows that chose it any threshold looks too good.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

from tunewright.evaluate.interval import bootstrap_of, of_scores, wilson

BINS = 15
"""Of equal width, from 0 to 1."""
FEWEST_ROWS = 20
"""Below this nothing can be said of a threshold: half of them would be ten."""
CURVE_POINTS = 50


def shares(scores: Sequence[float]) -> list[float]:
    """Probabilities of the options among themselves, from their log-probabilities in nats."""
    most = max(scores)
    raised = [math.exp(score - most) for score in scores]
    total = math.fsum(raised)
    return [one / total for one in raised]


def bin_of(confidence: float, bins: int = BINS) -> int:
    """The bin of a confidence: (i / bins, (i + 1) / bins], the first with its lower end."""
    return bisect.bisect_left([i / bins for i in range(1, bins)], confidence)


def report(
    confidences: Sequence[float], right: Sequence[bool], *, seed: int = 0, bins: int = BINS
) -> dict[str, Any]:
    """{"ece", "ece_interval_95", "by_chance_95", "mean_confidence", "accuracy", "brier",
    "brier_interval_95", "bins"} of decisions. `brier` is the mean squared gap between confidence
    and being right. Raises ValueError for no rows or lists of different lengths."""
    if not confidences or len(confidences) != len(right):
        raise ValueError(f"{len(confidences)} confidences, {len(right)} verdicts")
    count = len(confidences)
    rows = []
    for confidence, is_right in zip(confidences, right, strict=True):
        row = [0.0] * bins
        row[bin_of(confidence, bins)] = confidence - is_right
        rows.append(row)

    def ece(gaps: Any) -> float:
        return math.fsum(abs(float(gap)) for gap in gaps) / count

    value = ece([math.fsum(column) for column in zip(*rows, strict=True)])
    low, high = bootstrap_of(rows, ece, seed=seed)
    squares = [(c - r) ** 2 for c, r in zip(confidences, right, strict=True)]
    return {
        "ece": value,
        # Drawing again adds noise, and noise adds to a sum of absolute gaps: the value may lie
        # below every draw.
        "ece_interval_95": [min(low, value), max(high, value)],
        "by_chance_95": _by_chance(confidences, seed, bins),
        "mean_confidence": math.fsum(confidences) / count,
        "accuracy": sum(right) / count,
        "brier": math.fsum(squares) / count,
        "brier_interval_95": list(of_scores(squares, seed=seed)),
        "bins": _bins(confidences, right, bins),
    }


def _by_chance(confidences: Sequence[float], seed: int, bins: int, draws: int = 1000) -> float:
    """What the ECE of a model that is right as often as it says stays below in 95 % of draws."""
    import numpy as np

    rng = np.random.default_rng(seed)
    sure_N = np.asarray(confidences)
    place_N = np.array([bin_of(c, bins) for c in confidences])
    found = [
        np.abs(
            np.bincount(place_N, sure_N - (rng.random(len(sure_N)) < sure_N), minlength=bins)
        ).sum()
        for _ in range(draws)
    ]
    return float(np.quantile(found, 0.95)) / len(sure_N)


def _bins(confidences: Sequence[float], right: Sequence[bool], bins: int) -> list[dict[str, Any]]:
    """The bins that have rows."""
    inside: dict[int, list[tuple[float, bool]]] = {}
    for pair in zip(confidences, right, strict=True):
        inside.setdefault(bin_of(pair[0], bins), []).append(pair)
    out = []
    for i in sorted(inside):
        here = inside[i]
        hits = sum(is_right for _, is_right in here)
        out.append(
            {
                "from": i / bins,
                "to": (i + 1) / bins,
                "rows": len(here),
                "confidence": math.fsum(c for c, _ in here) / len(here),
                "accuracy": hits / len(here),
                "interval_95": list(wilson(hits, len(here))),
            }
        )
    return out


# ---- when not to answer


def threshold_for(
    confidences: Sequence[float], right: Sequence[bool], target: float
) -> float | None:
    """The lowest confidence from which on all rows together are wrong in at most a share `target`;
    None where no threshold reaches it. Rows of equal confidence stay together."""
    ordered = sorted(zip(confidences, right, strict=True), reverse=True)
    wrong, found = 0, None
    for i, (confidence, is_right) in enumerate(ordered):
        wrong += not is_right
        is_last = i + 1 == len(ordered) or ordered[i + 1][0] < confidence
        if is_last and wrong <= target * (i + 1):
            found = confidence
    return found


def abstention(
    confidences: Sequence[float], right: Sequence[bool], target: float, *, seed: int = 0
) -> dict[str, Any]:
    """From which confidence on the model may answer so that a share `target` of its answers is
    wrong: chosen on one half of the rows, drawn by `seed`, and measured on the other.

    {"target_error", "threshold" (None where none reaches it), "chosen_on", "measured_on", "holds"}
    with for each half its rows, the share it answers and the share of errors among those, with
    intervals. `holds`: False where the error on the other half is surely above the target, True
    where it is surely not, None where the rows cannot tell or there are too few.
    """
    from tunewright.core.seeds import permutation

    count = len(confidences)
    out: dict[str, Any] = {"target_error": target, "threshold": None, "holds": None, "rows": count}
    out["curve"] = curve(confidences, right)
    if count < FEWEST_ROWS:
        return out | {"too_few": FEWEST_ROWS}
    order = permutation(seed, "abstention", count)
    halves = [sorted(order[: count // 2]), sorted(order[count // 2 :])]
    chosen, other = (([confidences[i] for i in h], [right[i] for i in h]) for h in halves)
    out["threshold"] = threshold = threshold_for(*chosen, target)
    if threshold is None:
        return out
    out["chosen_on"] = _answered(*chosen, threshold)
    out["measured_on"] = found = _answered(*other, threshold)
    if found["answered"]:
        low, high = found["error_interval_95"]
        out["holds"] = False if low > target else True if high <= target else None
    return out


def _answered(
    confidences: Sequence[float], right: Sequence[bool], threshold: float
) -> dict[str, Any]:
    kept = [r for c, r in zip(confidences, right, strict=True) if c >= threshold]
    wrong = len(kept) - sum(kept)
    return {
        "rows": len(right),
        "answered": len(kept),
        "share_answered": len(kept) / len(right),
        "share_answered_interval_95": list(wilson(len(kept), len(right))),
        "wrong": wrong,
        "error": wrong / len(kept) if kept else None,
        "error_interval_95": list(wilson(wrong, len(kept))),
    }


def curve(confidences: Sequence[float], right: Sequence[bool]) -> list[list[float]]:
    """[share answered, error among those] where the surest rows answer first, at most
    `CURVE_POINTS` points; rows of equal confidence answer together."""
    ordered = sorted(zip(confidences, right, strict=True), reverse=True)
    points, wrong = [], 0
    for i, (confidence, is_right) in enumerate(ordered):
        wrong += not is_right
        if i + 1 == len(ordered) or ordered[i + 1][0] < confidence:
            points.append([(i + 1) / len(ordered), wrong / (i + 1)])
    step = max(1, math.ceil(len(points) / CURVE_POINTS))
    return points[::-1][::step][::-1]
