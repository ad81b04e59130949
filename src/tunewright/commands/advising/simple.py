"""What needs no language model, measured on the same rows: one answer for all, a formula or a small
regressor for numbers, words with logistic regression for labels."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tunewright.commands.advising.measuring import Judge, Measured
from tunewright.commands.advising.rows import Rows, asked
from tunewright.evaluate import baseline
from tunewright.rewards.numeric import final_number

MOST_FOR_FIGURES = 2_000
"""Rows that formulas are searched in: more would change nothing."""


@dataclass
class Simple:
    """What was found."""

    measured: list[Measured] = field(default_factory=list)
    suffices: Any = None
    """`formula` or `regressor`, where that explains the numbers."""
    formula: str | None = None
    explained: float = 0.0


def measure(rows: Rows, judge: Judge, seed: int) -> Simple:
    """All of them. Takes seconds, and no model."""
    found = Simple()
    answers = [row.answer().strip() for row in rows.train]
    most = Counter(answers).most_common(1)[0][0]
    found.measured.append(_scored("constant", [most] * len(rows.held_out), judge, 0.0, 0.0))
    # Grades from 1 to 5 are labels and numbers.
    numbers = bool(rows.labels) and all(_is_number(label) for label in rows.labels)
    if judge.metric == "number" or numbers:
        _figures(rows, judge, seed, found)
    if rows.labels:
        start = time.perf_counter()
        texts = [asked(row) for row in rows.train]
        guesses = baseline.classes(texts, answers, rows.questions, seed=seed)
        seconds = time.perf_counter() - start
        found.measured.append(_scored("classes", guesses, judge, 0.0, seconds))
    return found


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _figures(rows: Rows, judge: Judge, seed: int, found: Simple) -> None:
    every = [*rows.held_out, *rows.train][:MOST_FOR_FIGURES]
    values = [final_number(row.answer()) for row in every]
    pairs = [(asked(row), float(v)) for row, v in zip(every, values, strict=True) if v is not None]
    if len({value for _, value in pairs}) < 3:
        return
    start = time.perf_counter()
    texts, numbers = [text for text, _ in pairs], [value for _, value in pairs]
    compared = baseline.compared(texts, numbers, seed=seed)
    found.explained = compared.explained
    found.suffices = compared.suffices
    found.formula = compared.formula
    guesses = predict(rows, rows.questions, seed)
    seconds = time.perf_counter() - start
    name = found.suffices or "regressor"
    found.measured.append(_scored(name, guesses, judge, 0.0, seconds))


def predict(rows: Rows, questions: list[str], seed: int) -> list[str]:
    """Numbers for questions, learnt from the training rows, with as many decimals as those have."""
    known = [
        (asked(row), float(value))
        for row in rows.train[:MOST_FOR_FIGURES]
        if (value := final_number(row.answer())) is not None
    ]
    values = [value for _, value in known]
    decimals = next(
        (d for d in range(7) if all(abs(round(v, d) - v) <= 1e-9 * max(1, abs(v)) for v in values)),
        6,
    )
    guesses = baseline.figures([text for text, _ in known], values, questions, seed=seed)
    return [f"{guess:.{decimals}f}" for guess in guesses]


def _scored(
    way: str, answers: list[str], judge: Judge, seconds: float, setup_seconds: float
) -> Measured:
    return Measured(
        way,
        answers,
        judge.scores(answers),
        judge.forms(answers),
        seconds,
        setup_seconds=setup_seconds,
    )
