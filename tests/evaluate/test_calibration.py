"""Calibration, abstention and the figures of classes, against scikit-learn and slow references."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from tunewright.core.types import Conversation, Message, Origin, Sample
from tunewright.evaluate import calibration
from tunewright.evaluate import options as choices

NAMES = ["a", "b", "c", "never"]


def decisions(
    count: int = 300, seed: int = 1
) -> tuple[list[choices.Question], list[choices.Decision]]:
    """Decisions between four options, of which one is never right."""
    rng = random.Random(seed)
    questions, found = [], []
    for i in range(count):
        right = rng.randrange(3)
        scores = [rng.gauss(-3, 1.5) + (1.2 if j == right else 0) for j in range(4)]
        row = Conversation(
            [Message("user", "q"), Message("assistant", NAMES[right])], Origin("f", i + 1, i + 1)
        )
        questions.append(choices.Question(row, right, Sample([], i)))
        found.append(choices.Decision(scores, scores))
    return questions, found


def test_figures_of_classes_are_scikit_learns() -> None:
    questions, found = decisions()
    report = choices.report(NAMES, questions, found, True)
    right, chosen = [q.right for q in questions], [d.chosen for d in found]
    assert report["macro_f1"] == pytest.approx(
        sk.f1_score(right, chosen, average="macro"), abs=1e-6
    )
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(right, chosen), abs=1e-6)
    matrix = sk.confusion_matrix(right, chosen, labels=range(4))
    assert [[report["confusion"][a][b] for b in NAMES] for a in NAMES] == matrix.tolist()
    parts = sk.precision_recall_fscore_support(right, chosen, labels=range(4), zero_division=0)
    for i, entry in enumerate(report["classes"]):
        for key, values in zip(("precision", "recall", "f1"), parts, strict=False):
            assert (entry[key] or 0) == pytest.approx(values[i], abs=1e-6), (entry["answer"], key)
    low, high = report["macro_f1_interval_95"]
    assert low < report["macro_f1"] < high < low + 0.2


def test_confidence_is_the_share_among_the_options() -> None:
    _, found = decisions(5)
    for one in found:
        raised = np.exp(np.array(one.scores))
        assert one.confidence == pytest.approx(float((raised / raised.sum()).max()), rel=1e-12)
    far = choices.Decision([-2000.0, -2001.0], [0.0, 0.0])
    assert far.confidence == pytest.approx(1 / (1 + math.exp(-1)))


def slow_ece(confidences: list[float], right: list[bool], bins: int) -> float:
    """Guo et al. 2017, equation 5: bins (m-1/M, m/M], weighted by rows."""
    total = 0.0
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        here = [
            (c, r)
            for c, r in zip(confidences, right, strict=True)
            if (low < c <= high) or (m == 0 and c == 0)
        ]
        if here:
            accuracy = sum(r for _, r in here) / len(here)
            confidence = sum(c for c, _ in here) / len(here)
            total += len(here) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [10, 15])
def test_the_calibration_error_and_its_bins_are_those_of_the_paper_and_of_scikit_learn(
    bins: int,
) -> None:
    rng = random.Random(2)
    confidences = [rng.random() for _ in range(400)] + [0.0, 1.0, 0.2, 0.6]
    right = [rng.random() < c**1.5 for c in confidences]
    found = calibration.report(confidences, right, bins=bins)
    assert found["ece"] == pytest.approx(slow_ece(confidences, right, bins), abs=1e-6)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(right, confidences), abs=1e-6)
    inside = [(c, r) for c, r in zip(confidences, right, strict=True) if c not in (0.2, 0.6)]
    theirs, means = calibration_curve([r for _, r in inside], [c for c, _ in inside], n_bins=bins)
    ours = calibration.report([c for c, _ in inside], [r for _, r in inside], bins=bins)["bins"]
    assert [one["accuracy"] for one in ours] == pytest.approx(list(theirs), abs=1e-6)
    assert [one["confidence"] for one in ours] == pytest.approx(list(means), abs=1e-6)


def test_chance_alone_is_told_from_a_model_that_is_too_sure() -> None:
    within = 0
    for seed in range(40):
        rng = random.Random(seed)
        sure = [rng.uniform(0.5, 1) for _ in range(150)]
        found = calibration.report(sure, [rng.random() < c for c in sure], seed=seed)
        within += found["ece"] <= found["by_chance_95"]
    assert within >= 34  # 95 % of 40 is 38 +- 1.4
    rng = random.Random(1)
    too_sure = calibration.report([0.95] * 150, [rng.random() < 0.6 for _ in range(150)])
    assert too_sure["ece"] > 2 * too_sure["by_chance_95"]
    low, high = too_sure["ece_interval_95"]
    assert 0.2 < low < 0.35 < high < 0.5


def slow_threshold(confidences: list[float], right: list[bool], target: float) -> float | None:
    fits = [
        t
        for t in sorted(set(confidences))
        if (kept := [r for c, r in zip(confidences, right, strict=True) if c >= t])
        and kept.count(False) / len(kept) <= target
    ]
    return min(fits) if fits else None


@pytest.mark.parametrize("target", [0.0, 0.05, 0.2, 0.9])
def test_the_threshold_is_the_lowest_that_keeps_the_target(target: float) -> None:
    rng = random.Random(3)
    sure = [round(rng.random(), 2) for _ in range(120)]  # with equal confidences
    right = [rng.random() < c for c in sure]
    assert calibration.threshold_for(sure, right, target) == slow_threshold(sure, right, target)
    assert calibration.threshold_for([0.5, 0.6], [False, False], 0.4) is None


def test_a_threshold_is_judged_by_rows_that_did_not_choose_it() -> None:
    rng = random.Random(4)
    # Confidence says nothing: what looks good on one half is luck.
    sure, right = [rng.random() for _ in range(400)], [rng.random() < 0.5 for _ in range(400)]
    found = calibration.abstention(sure, right, 0.1)
    if found["threshold"] is not None:
        assert found["chosen_on"]["error"] <= 0.1
        assert found["holds"] is not True
    # Confidence is honest: the target holds within its interval, and more than a tenth is answered.
    right = [rng.random() < c for c in sure]
    found = calibration.abstention(sure, right, 0.1)
    there = found["measured_on"]
    kept = [r for c, r in zip(sure, right, strict=True) if c >= found["threshold"]]
    assert there["rows"] + found["chosen_on"]["rows"] == 400
    assert there["answered"] + found["chosen_on"]["answered"] == len(kept)
    assert there["error_interval_95"][0] <= 0.1 and there["share_answered"] > 0.1
    assert found["curve"][-1] == [1.0, pytest.approx(right.count(False) / 400)]


def test_a_target_that_is_missed_is_said() -> None:
    # One half is all right, the other all wrong, at the same confidence.
    from tunewright.core.seeds import permutation

    chosen = set(permutation(0, "abstention", 40)[:20])
    found = calibration.abstention([0.9] * 40, [i in chosen for i in range(40)], 0.05)
    assert found["threshold"] == 0.9 and found["measured_on"]["error"] == 1.0
    assert found["holds"] is False
    none = calibration.abstention([0.9] * 40, [False] * 40, 0.05)
    assert none["threshold"] is None and none["holds"] is None
    few = calibration.abstention([0.9] * 5, [True] * 5, 0.05)
    assert few["threshold"] is None and few["too_few"] == calibration.FEWEST_ROWS


def test_a_faultless_model_is_not_sure_of_its_f1() -> None:
    questions, found = decisions(12)
    for question, one in zip(questions, found, strict=True):
        one.scores[question.right] = 5.0
    report = choices.report(NAMES, questions, found, True)
    assert report["macro_f1"] == 1 and 0.7 < report["macro_f1_interval_95"][0] < 0.8
