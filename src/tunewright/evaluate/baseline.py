"""What needs no language model: the most frequent answer, a bag of words, a formula.

A fine-tuned model is worth its weights where it beats these, so they are measured on the same rows.
Labels: TF-IDF of words and of characters (for languages without spaces) with logistic regression.
Figures: the numbers in the text as columns, and on them a linear formula, a product of powers, a
polynomial of degree 2, trees, and ridge regression over the words; the one with the smallest error
in cross-validation is taken. Whether a formula reproduces the values EXACTLY (to the last digit
that they are written with) is a question of its own: then nothing needs to be trained at all.

Every figure comes from rows that the predictor did not see, and rows with the same text are never
on both sides. scikit-learn does the fitting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.core.comparing import folded
from tunewright.core.types import Conversation, Prompt
from tunewright.evaluate.fits import EXACT, FITTERS, DoesNotFit, Fitted, last_digit, quiet, words

FOLDS = 5
MOST_TEXTS = 20_000
"""Rows that a predictor learns from: more would take minutes and change little."""
MOST_COMPARED = 2_000
"""Rows that each fold learns from where predictors are compared."""
EXPLAINED = 0.9
"""A regressor that explains this share of the variance (R squared) on unseen rows will do."""
SIMPLICITY = 1.02
"""A formula is taken instead of trees or words where its error is within 2 % of theirs."""


def question_text(row: Conversation | Prompt) -> str:
    """What a predictor reads of a dialogue: everything the person said before the answer."""
    return "\n".join(m.content for m in row.question() if m.role == "user")


# ---- constants

Kind = Literal["auto", "median", "mean", "most"]


def constant(values: Sequence[Any], *, by: Kind = "auto") -> Any:
    """The one answer that is best for all: the most frequent label (the first of equals), for
    numbers the median, which has the smallest absolute error. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    if by == "most" or (by == "auto" and not all(isinstance(v, int | float) for v in values)):
        return Counter(values).most_common(1)[0][0]
    ordered = sorted(values)
    if by == "mean":
        return math.fsum(ordered) / len(ordered)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


# ---- labels


def classes(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str], *, seed: int = 0
) -> list[str]:
    """The label of each of `texts` by TF-IDF and logistic regression learnt from the training
    rows; the only label where there is one, the most frequent where no text has a word. Raises
    ValueError without training rows."""
    train_texts, train_labels = _some(train_texts, train_labels, seed)
    if len(set(train_labels)) < 2 or not any(text.strip() for text in train_texts):
        return [constant(train_labels, by="most")] * len(texts)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    with quiet():
        # Rows of TF-IDF have length 1, so weak regularisation is what small sets need.
        model = make_pipeline(words(), LogisticRegression(C=10.0, max_iter=2000))
        model.fit(list(train_texts), list(train_labels))
        return [str(label) for label in model.predict(list(texts))] if texts else []


# ---- figures


def figures(
    train_texts: Sequence[str],
    train_values: Sequence[float],
    texts: Sequence[str],
    *,
    seed: int = 0,
) -> list[float]:
    """The value of each of `texts` by the predictor that does best on the training rows in
    cross-validation. Raises ValueError without training rows."""
    return best(train_texts, train_values, seed=seed).predict(texts)


def best(texts: Sequence[str], values: Sequence[float], *, seed: int = 0) -> Fitted:
    """The predictor of figures that does best in cross-validation, learnt from all rows."""
    texts, values = _some(texts, values, seed)
    report = compared(texts, values, seed=seed)
    return _fit(report.best, texts, values, seed)


FITS = ("constant", "linear", "powers", "quadratic", "trees", "words")
"""Predictors of figures, the simplest first."""
FORMULAS = ("linear", "powers", "quadratic")


@dataclass
class Compared:
    """Predictors of figures on rows that they did not see. `predictions` holds one value a row for
    each kind that could be fitted."""

    values: list[float]
    predictions: dict[str, list[float]]
    unit: float
    """The last digit that the values are written with: 0.1 for 3.5; 0 where there is none."""
    formula: str | None = None
    """Of the simplest exact formula."""
    exact: str | None = None
    """Its kind."""
    errors: dict[str, float] = field(default_factory=dict)
    """Mean absolute error."""

    @property
    def best(self) -> str:
        """The exact formula; else the simplest of those whose error is the smallest, or nearly."""
        if self.exact:
            return self.exact
        least = min(self.errors.values())
        return next(kind for kind in FITS if self.errors.get(kind, math.inf) <= SIMPLICITY * least)

    @property
    def explained(self) -> float:
        """Share of the variance that the best one explains (R squared); at most 1, negative where
        it does worse than the mean."""
        return explained(self.values, self.predictions[self.best])

    @property
    def suffices(self) -> Literal["formula", "regressor"] | None:
        """What does without a language model: a formula that gives the values to their last digit,
        or a small regressor that explains nine tenths of their variance on unseen rows."""
        if self.exact:
            return "formula"
        good = self.best != "constant" and self.explained >= EXPLAINED
        return "regressor" if good else None


def compared(texts: Sequence[str], values: Sequence[float], *, seed: int = 0) -> Compared:
    """Every predictor of figures in cross-validation: each row is predicted by one that learnt from
    the other folds. Raises ValueError without rows."""
    if not texts or len(texts) != len(values):
        raise ValueError(f"{len(texts)} texts, {len(values)} values")
    found = Compared(list(values), {}, last_digit(values))
    folds = [(_few(train, seed), test) for train, test in _folds(texts, seed)]
    for kind in FITS:
        guesses = [0.0] * len(texts)
        try:
            for train, test in folds:
                fitted = _fit(kind, [texts[i] for i in train], [values[i] for i in train], seed)
                for i, guess in zip(test, fitted.predict([texts[i] for i in test]), strict=True):
                    guesses[i] = guess
        except DoesNotFit:
            continue
        if not all(map(math.isfinite, guesses)):
            continue
        found.predictions[kind] = guesses
        found.errors[kind] = _mean_error(values, guesses)
        if kind in FORMULAS and _is_exact(values, guesses, found.unit):
            found.exact, found.formula = kind, _fit(kind, texts, values, seed).formula
            break  # nothing can do better
    return found


def explained(values: Sequence[float], guesses: Sequence[float]) -> float:
    """R squared: 1 minus the squared errors over those of the mean; 0 where all values are the
    same."""
    mean = math.fsum(values) / len(values)
    whole = math.fsum((v - mean) ** 2 for v in values)
    rest = math.fsum((v - g) ** 2 for v, g in zip(values, guesses, strict=True))
    return 1 - rest / whole if whole else 0.0


def _mean_error(values: Sequence[float], guesses: Sequence[float]) -> float:
    return math.fsum(abs(v - g) for v, g in zip(values, guesses, strict=True)) / len(values)


def _is_exact(values: Sequence[float], guesses: Sequence[float], unit: float) -> bool:
    """Whether the guesses give the values to their last digit, in at least 95 % of the rows, and
    better than one value for all would."""
    if len(set(values)) < 3:
        return False
    spread = max(values) - min(values)
    # Half a unit is where rounding goes the other way; coefficients from rounded values are
    # themselves a little off.
    near = 0.55 * unit if unit else 1e-6 * spread
    hits = sum(abs(v - g) <= near for v, g in zip(values, guesses, strict=True))
    most = Counter(values).most_common(1)[0][1]
    return hits >= EXACT * len(values) and hits > 1.5 * most


def _fit(kind: str, texts: Sequence[str], values: Sequence[float], seed: int) -> Fitted:
    """One predictor, learnt. Raises DoesNotFit."""
    if kind == "constant":
        middle = float(constant([float(v) for v in values], by="median"))
        return Fitted(kind, lambda asked: [middle] * len(asked), f"{middle:g}")
    with quiet():
        return FITTERS[kind](texts, values, seed)


# ---- honest rows


def _folds(texts: Sequence[str], seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """(train, test) row numbers. Rows with the same text, folded, are in one fold; with one text
    only there is nothing to learn from, and each fold is predicted from all rows."""
    import random

    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(folded(text), []).append(i)
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    count = min(FOLDS, len(names))
    if count < 2:
        yield list(range(len(texts))), list(range(len(texts)))
        return
    for k in range(count):
        test = sorted(i for name in names[k::count] for i in groups[name])
        inside = set(test)
        yield [i for i in range(len(texts)) if i not in inside], test


def _few(rows: list[int], seed: int) -> list[int]:
    """At most `MOST_COMPARED` of the rows, drawn evenly."""
    import random

    if len(rows) <= MOST_COMPARED:
        return rows
    return sorted(random.Random(seed).sample(rows, MOST_COMPARED))


def _some(texts: Sequence[str], values: Sequence[Any], seed: int) -> tuple[list[str], list[Any]]:
    """The training rows, at most `MOST_TEXTS` of them, drawn evenly. Raises ValueError for none, or
    where texts and values are not as many."""
    import random

    if not texts or len(texts) != len(values):
        raise ValueError(f"{len(texts)} texts, {len(values)} values")
    chosen = list(range(len(texts)))
    if len(chosen) > MOST_TEXTS:
        chosen = sorted(random.Random(seed).sample(chosen, MOST_TEXTS))
    return [texts[i] for i in chosen], [values[i] for i in chosen]
