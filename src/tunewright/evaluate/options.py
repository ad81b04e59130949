"""A small set of answers, scored by the log-probability that the model gives to each.

The score of an option is the sum of the log-probabilities of its tokens AND of the token that ends
the answer, given the prompt: the probability, in nats, that the model answers exactly this. Without
the stop token "no" could never lose against "not at all", because it is its beginning. Nothing is
divided by length: the options are alternatives, and the probability of a whole answer is what
decides between them in greedy use. All options of a row are branches of one sample, so the prompt
is computed once, and only rows from which an option's token is predicted reach the output head.
Pure Python: tokens in, counts out; `scoring.py` owns the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import DataError, UsageError, problem
from tunewright.core.types import Branch, Conversation, Message, Row, Sample
from tunewright.evaluate import calibration
from tunewright.evaluate.interval import bootstrap, bootstraps_of, of_scores, wilson
from tunewright.text.rendered import CannotRender

if TYPE_CHECKING:
    from tunewright.text.renderer import Renderer

MOST_DETECTED, MOST_GIVEN = 10, 100
LONGEST = 40
"""Characters of the longest answer that is taken for a label."""
LEAST_SEEN = 2
LIKELY = 0.5
"""Below this mean probability of all options together the model would more often write something
else than one of them."""


def detect(rows: Sequence[Row]) -> list[str] | None:
    """The options that the rows themselves show, in the order of their first row; None where the
    answers are free text.

    Every row is a dialogue; its last answer, stripped, is one line of 1 to 40 characters; there are
    2 to 10 different ones, each in at least 2 rows.
    """
    if not rows or not all(isinstance(row, Conversation) for row in rows):
        return None
    counts = Counter(row.answer().strip() for row in rows if isinstance(row, Conversation))
    short = all(answer and len(answer) <= LONGEST and "\n" not in answer for answer in counts)
    return (
        list(counts)
        if short and 2 <= len(counts) <= MOST_DETECTED and min(counts.values()) >= LEAST_SEEN
        else None
    )


def checked(options: Sequence[str]) -> list[str]:
    """Options a person gave, stripped. Raises UsageError unless there are 2 to 100 different ones,
    none empty."""
    found = [option.strip() for option in options]
    if not 2 <= len(found) <= MOST_GIVEN or len(set(found)) != len(found) or not all(found):
        raise UsageError(
            problem(
                "E-EVAL-01",
                "--options",
                options=", ".join(map(repr, found)) or "-",
                most=MOST_GIVEN,
            )
        )
    return found


@dataclass
class Question:
    """One row with its options as branches. `right` is the index of its answer among the options;
    `stop` says that each branch ends in a stop token."""

    row: Conversation
    right: int
    sample: Sample


@dataclass
class Dropped:
    """A row without a score, and why: a key of `evaluate.reason.*`."""

    origin: str
    reason: str


def build(
    rows: Sequence[Row],
    samples: Sequence[Sample],
    options: Sequence[str],
    renderer: Renderer,
    context: int | None = None,
) -> tuple[list[Question], list[Dropped]]:
    """A question for every row whose answer is one of the options. Branch 0 of each sample is the
    row itself, whose learnt tokens give the loss; branches 1 to k are the options. Raises DataError
    where no row can be asked, or two options are the same tokens."""
    place = {option: index for index, option in enumerate(options)}
    questions: list[Question] = []
    dropped: list[Dropped] = []
    for row, sample in zip(rows, samples, strict=True):
        if not isinstance(row, Conversation) or row.answer().strip() not in place:
            dropped.append(Dropped(str(row.origin), "not_an_option"))
            continue
        try:
            branches = [_branch(row, option, renderer) for option in options]
        except CannotRender:
            dropped.append(Dropped(str(row.origin), "option_cannot_render"))
            continue
        if len({tuple(branch.tokens) for branch in branches}) < len(options):
            raise DataError(problem("E-EVAL-03", str(row.origin), options=", ".join(options)))
        if context is not None and max(len(branch.tokens) for branch in branches) > context:
            dropped.append(Dropped(str(row.origin), "option_too_long"))
            continue
        own = sample.branches[0]
        questions.append(
            Question(
                row,
                place[row.answer().strip()],
                Sample([own, *branches], len(questions), row.origin),
            )
        )
    if not questions:
        first = rows[0].answer() if rows and isinstance(rows[0], Conversation) else "-"
        raise DataError(
            problem(
                "E-EVAL-02",
                str(rows[0].origin) if rows else "",
                options=", ".join(options),
                first=first[:60],
            )
        )
    return questions, dropped


def _branch(row: Conversation, option: str, renderer: Renderer) -> Branch:
    """The row's dialogue up to its last answer, with `option` as that answer, stop token included:
    exactly as training would render it."""
    rendered = renderer.render([*row.question(), Message("assistant", option)], row.tools)
    first, after = rendered.spans[-1]
    return Branch(rendered.ids[:after], list(range(first, after)), [1.0] * (after - first))


@dataclass
class Decision:
    """Scores of a question's options in nats, with and without the stop token, in the order of the
    options."""

    scores: list[float]
    bare: list[float]

    @property
    def probability(self) -> float:
        """Of all options together: how likely the model answers with one of them at all."""
        return min(1.0, sum(math.exp(min(score, 0.0)) for score in self.scores))

    @property
    def confidence(self) -> float:
        """Probability of the chosen option among the options."""
        return max(calibration.shares(self.scores))

    @property
    def chosen(self) -> int:
        """Index of the highest score; the first of equals."""
        return max(range(len(self.scores)), key=lambda i: (self.scores[i], -i))

    @property
    def chosen_bare(self) -> int:
        """The same without the stop token."""
        return max(range(len(self.bare)), key=lambda i: (self.bare[i], -i))


def report(
    options: Sequence[str],
    questions: Sequence[Question],
    decisions: Sequence[Decision],
    detected: bool,
    seed: int = 0,
    target_error: float | None = None,
) -> dict[str, Any]:
    """Accuracy with its interval, the majority's share, every class, the confusion counts, and how
    far the confidence can be believed (keys in docs/evaluate.md)."""
    right = [question.right for question in questions]
    chosen = [decision.chosen for decision in decisions]
    hits, count = sum(a == b for a, b in zip(right, chosen, strict=True)), len(right)
    low, high = wilson(hits, count)
    seen = Counter(right)
    most = max(range(len(options)), key=lambda i: (seen[i], -i))
    pairs = Counter(zip(right, chosen, strict=True))
    classes = [_class_report(option, i, pairs, len(options)) for i, option in enumerate(options)]
    scored = [entry["f1"] for entry in classes if entry["f1"] is not None]
    macro, *ones = _f1_intervals(right, chosen, len(options), seed)
    for entry, (least, greatest) in zip(classes, ones, strict=True):
        entry["f1_interval_95"] = None if entry["f1"] is None else [least, greatest]
    verdicts = [a == b for a, b in zip(right, chosen, strict=True)]
    confidences = [decision.confidence for decision in decisions]
    likely, margins = [d.probability for d in decisions], list(map(_margin, questions, decisions))
    found = {
        "options": list(options),
        "detected": detected,
        "n": count,
        "right": hits,
        "accuracy": hits / count,
        "interval_95": [low, high],
        "majority": {"answer": options[most], "share": seen[most] / count},
        "beats_majority": low > seen[most] / count,
        "classes": classes,
        "macro_f1": sum(scored) / len(scored) if scored else None,
        "macro_f1_interval_95": list(macro),
        "confusion": {
            a: {b: pairs[i, j] for j, b in enumerate(options)} for i, a in enumerate(options)
        },
        "probability": {
            "mean": sum(likely) / count,
            "interval_95": list(of_scores(likely, seed=seed)),
            "least": min(likely),
        },
        "mean_margin": sum(margins) / count,
        "mean_margin_interval_95": list(bootstrap(margins, seed=seed)) if count > 1 else None,
        "calibration": calibration.report(confidences, verdicts, seed=seed),
        "ties": sum(sorted(d.scores)[-1] == sorted(d.scores)[-2] for d in decisions),
        "stop_token_decides": sum(d.chosen != d.chosen_bare for d in decisions),
        "mistakes": _mistakes(options, questions, decisions),
    }
    if target_error is not None:
        found["abstention"] = calibration.abstention(confidences, verdicts, target_error, seed=seed)
    return found


def _f1_intervals(
    right: Sequence[int], chosen: Sequence[int], count: int, seed: int
) -> list[tuple[float, float]]:
    """Of macro F1, and of the F1 of each option: rows drawn again. A row adds to how often an
    option is right, chosen and both."""
    rows = []
    for a, b in zip(right, chosen, strict=True):
        row = [0.0] * (2 * count)
        row[a] += 1
        row[b] += 1
        row[count + a] += a == b
        rows.append(row)

    def ones(sums: Any) -> list[float]:
        return [2 * sums[count + i] / sums[i] if sums[i] else math.nan for i in range(count)]

    def all_(sums: Any) -> list[float]:
        found = ones(sums)
        there = [value for value in found if not math.isnan(value)]
        return [sum(there) / len(there), *found]

    whole = all_([sum(column) for column in zip(*rows, strict=True)])
    return [
        # Where nothing varies, as after faultless rows, see interval.of_scores.
        of_scores([value] * len(rows)) if low == high and not math.isnan(value) else (low, high)
        for value, (low, high) in zip(whole, bootstraps_of(rows, all_, seed=seed), strict=True)
    ]


def table(
    options: Sequence[str], questions: Sequence[Question], decisions: Sequence[Decision]
) -> list[dict[str, Any]]:
    """Every row's decision, with the scores in nats and the confidence."""
    return [
        {
            "origin": str(q.row.origin),
            "answer": options[q.right],
            "chosen": options[d.chosen],
            "scores": d.scores,
            "confidence": d.confidence,
            "probability": d.probability,
        }
        for q, d in zip(questions, decisions, strict=True)
    ]


def _class_report(
    option: str, i: int, pairs: Counter[tuple[int, int]], count: int
) -> dict[str, Any]:
    """Precision is None for an option that was never chosen, recall for one that no row has: 0
    would claim a measurement."""
    hit = pairs[i, i]
    support, chosen = sum(pairs[i, j] for j in range(count)), sum(pairs[j, i] for j in range(count))
    return {
        "answer": option,
        "rows": support,
        "chosen": chosen,
        "precision": hit / chosen if chosen else None,
        "precision_interval_95": list(wilson(hit, chosen)) if chosen else None,
        "recall": hit / support if support else None,
        "recall_interval_95": list(wilson(hit, support)) if support else None,
        "f1": 2 * hit / (support + chosen) if support + chosen else None,
    }


def _margin(question: Question, decision: Decision) -> float:
    """Score of the right option minus the best of the others, in nats: negative where the model
    decides wrongly."""
    return decision.scores[question.right] - max(
        s for i, s in enumerate(decision.scores) if i != question.right
    )


def _mistakes(
    options: Sequence[str],
    questions: Sequence[Question],
    decisions: Sequence[Decision],
    most: int = 5,
) -> list[dict[str, Any]]:
    """The wrong decisions the model was surest of."""
    wrong = [(q, d) for q, d in zip(questions, decisions, strict=True) if d.chosen != q.right]
    wrong.sort(key=lambda pair: _margin(*pair))
    return [
        {
            "origin": str(q.row.origin),
            "answer": options[q.right],
            "chosen": options[d.chosen],
            "margin": _margin(q, d),
        }
        for q, d in wrong[:most]
    ]
