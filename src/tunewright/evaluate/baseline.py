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
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from tunewright.core.comparing import folded
from tunewright.core.types import Conversation, Prompt
from tunewright.rewards.numeric import numbers_with_words

FOLDS = 5
MOST_TEXTS = 20_000
"""Rows that a predictor learns from: more would take minutes and change little."""
MOST_COMPARED = 2_000
"""Rows that each fold learns from where predictors are compared."""
MOST_COLUMNS = 40
SHARED = 0.8
"""A column exists where this share of the texts has its number."""
EXACT = 0.95
"""A formula that gives this share of the rows to the last digit explains them: some rows of any
data are wrong."""
EXPLAINED = 0.9
"""A regressor that explains this share of the variance (R squared) on unseen rows will do."""
WORD = r"(?u)\b\w+\b|[^\w\s]"
DECIMALS = 6
LARGEST = 10**30
"""Larger numbers are no quantities, and trees compute in float32."""
SIMPLICITY = 1.02
"""A formula is taken instead of trees or words where its error is within 2 % of theirs."""


def question_text(row: Conversation | Prompt) -> str:
    """What a predictor reads of a dialogue: everything the person said before the answer."""
    return "\n".join(m.content for m in row.question() if m.role == "user")


# ---- constants

Kind = Literal["auto", "median", "mean", "most"]


def constant(
    values: Sequence[Any], *, by: Literal["auto", "median", "mean", "most"] = "auto"
) -> Any:
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

    with _quiet():
        # Rows of TF-IDF have length 1, so weak regularisation is what small sets need.
        model = make_pipeline(_words(), LogisticRegression(C=10.0, max_iter=2000))
        model.fit(list(train_texts), list(train_labels))
        return [str(label) for label in model.predict(list(texts))] if texts else []


def _words() -> Any:
    """Counts of words and pairs of words, and of 1 to 4 characters, weighted by rarity. A word is
    one character or more: in Chinese and in maths single ones mean something."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    shape = {"sublinear_tf": True, "max_features": 100_000}
    return make_union(
        TfidfVectorizer(**shape, **{"ngram_range": (1, 2), "token_pattern": WORD}),
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), **shape),
    )


# ---- figures


@dataclass(frozen=True)
class Columns:
    """The numbers of a text as columns: by the word before each, where the texts agree on words,
    else by place."""

    names: list[str]
    by_word: bool

    @classmethod
    def of(cls, texts: Sequence[str]) -> Columns:
        """The columns that at least four fifths of `texts` share."""
        read = [_named(text) for text in texts]
        seen = Counter(name for row in read for name in row)
        order = {name: place for row in reversed(read) for place, name in enumerate(row)}
        least = SHARED * len(texts)
        words = sorted((n for n, k in seen.items() if k >= least), key=lambda n: (order[n], n))
        lengths = Counter(len(row) for row in read)
        usual = max(lengths, key=lambda n: (lengths[n], n)) if lengths else 0
        if len(words) >= usual:
            return cls(words[:MOST_COLUMNS], True)
        count = max(
            (k for k in range(MOST_COLUMNS + 1) if sum(len(r) >= k for r in read) >= least),
            default=0,
        )
        # A place is named by the word that most often stands before it.
        names = []
        for place in range(count):
            before = Counter(list(row)[place].split("#")[0] for row in read if len(row) > place)
            word, often = before.most_common(1)[0]
            names.append(word if often >= least and word not in names else f"x{place + 1}")
        return cls(names, False)

    def read(self, texts: Sequence[str]) -> Any:
        """The numbers as an array (texts, columns), not-a-number where a text lacks one."""
        import numpy

        out = numpy.full((len(texts), len(self.names)), math.nan)
        for i, text in enumerate(texts):
            found = _named(text)
            ordered = list(found.values())
            for j, name in enumerate(self.names):
                if self.by_word:
                    out[i, j] = found.get(name, math.nan)
                elif j < len(ordered):
                    out[i, j] = ordered[j]
        return out


def _named(text: str) -> dict[str, float]:
    """Word before a number -> the number, in order; a word that repeats is counted on: `size`,
    `size#2`."""
    found: dict[str, float] = {}
    for value, before in numbers_with_words(text):
        words = re.findall(r"[^\W\d_]+(?:[ _-][^\W\d_]+)?", before)
        word = words[-1].casefold() if words else f"x{len(found) + 1}"
        name, count = word, 1
        while name in found:
            count += 1
            name = f"{word}#{count}"
        limited = min(max(value, Fraction(-LARGEST)), Fraction(LARGEST))
        found[name] = float(limited)
    return found


@dataclass
class Fitted:
    """A predictor that has learnt."""

    kind: str
    predict: Callable[[Sequence[str]], list[float]]
    formula: str | None = None
    """In words, where it is one."""


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
    found = Compared(list(values), {}, _unit(values))
    folds = [(_few(train, seed), test) for train, test in _folds(texts, seed)]
    for kind in FITS:
        guesses = [0.0] * len(texts)
        try:
            for train, test in folds:
                fitted = _fit(kind, [texts[i] for i in train], [values[i] for i in train], seed)
                for i, guess in zip(test, fitted.predict([texts[i] for i in test]), strict=True):
                    guesses[i] = guess
        except _DoesNotFit:
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


def _unit(values: Sequence[float]) -> float:
    """The power of ten that all values are whole multiples of; 0 where that is below a
    millionth."""
    for decimals in range(DECIMALS + 1):
        if all(math.isclose(v, round(v, decimals), rel_tol=1e-12, abs_tol=1e-12) for v in values):
            return 10.0**-decimals
    return 0.0


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


class _DoesNotFit(Exception):
    """A predictor that these rows do not allow."""


def _fit(kind: str, texts: Sequence[str], values: Sequence[float], seed: int) -> Fitted:
    """One predictor, learnt. Raises _DoesNotFit."""
    if kind == "constant":
        middle = float(constant([float(v) for v in values], by="median"))
        return Fitted(kind, lambda asked: [middle] * len(asked), f"{middle:g}")
    with _quiet():
        return _FITTERS[kind](texts, values, seed)


def _numeric(texts: Sequence[str], least: int) -> tuple[Columns, Any, Any]:
    """(columns, numbers with gaps filled, what fills a gap). Raises _DoesNotFit where there are no
    columns, or too few rows for them."""
    import numpy

    columns = Columns.of(texts)
    if not columns.names or len(texts) < least * (len(columns.names) + 1):
        raise _DoesNotFit
    numbers = columns.read(texts)
    fill = numpy.nanmedian(numbers, axis=0)
    return columns, numpy.where(numpy.isnan(numbers), fill, numbers), fill


def _filled(columns: Columns, fill: Any, texts: Sequence[str]) -> Any:
    import numpy

    numbers = columns.read(texts)
    return numpy.where(numpy.isnan(numbers), fill, numbers)


def _linear(texts: Sequence[str], values: Sequence[float], seed: int) -> Fitted:
    """y = a + b1 x1 + b2 x2 ..., robust against a few wrong rows."""
    columns, numbers, fill = _numeric(texts, 2)
    weights = _least_squares(numbers, values)
    return Fitted(
        "linear",
        lambda asked: _times(_filled(columns, fill, asked), weights),
        _sum_text(columns.names, weights, numbers, values),
    )


def _quadratic(texts: Sequence[str], values: Sequence[float], seed: int) -> Fitted:
    """The same with squares and products of two."""
    columns, numbers, fill = _numeric(texts, 2)
    count = len(columns.names)
    if count > 8 or len(texts) < (count + 1) * (count + 2):
        raise _DoesNotFit
    pairs = [(i, j) for i in range(count) for j in range(i, count)]

    def wide(table: Any) -> Any:
        import numpy

        return numpy.column_stack([table, *(table[:, i] * table[:, j] for i, j in pairs)])

    names = [
        *columns.names,
        *(f"{_name(columns.names, i)}·{_name(columns.names, j)}" for i, j in pairs),
    ]
    weights = _least_squares(wide(numbers), values)
    return Fitted(
        "quadratic",
        lambda asked: _times(wide(_filled(columns, fill, asked)), weights),
        _sum_text(names, weights, wide(numbers), values),
    )


def _powers(texts: Sequence[str], values: Sequence[float], seed: int) -> Fitted:
    """y = c x1^p1 x2^p2 ...: products, quotients and roots, where everything is positive."""
    import numpy

    columns, numbers, fill = _numeric(texts, 2)
    positive = numpy.asarray(values) > 0
    if (numbers <= 0).any() or min(values) < 0 or positive.sum() < 2 * len(columns.names) + 2:
        raise _DoesNotFit
    given = numpy.asarray(values, dtype=float)[positive]
    # A digit of a small value is a large step of its logarithm, so it counts for less.
    weights = _least_squares(numpy.log(numbers[positive]), numpy.log(given), given)

    def predict(asked: Sequence[str]) -> list[float]:
        table = _filled(columns, fill, asked)
        # A number that is not positive has no power; the smallest that was seen stands for it.
        logs = numpy.log(numpy.maximum(table, numbers.min(axis=0)))
        return [math.exp(min(700.0, one)) for one in _times(logs, weights)]

    factors = [
        _name(columns.names, i) + ("" if abs(p - 1) < 1e-3 else f"^{_short(p)}")
        for i, p in enumerate(weights[1:])
        if abs(p) > 1e-3
    ]
    return Fitted("powers", predict, " · ".join([_short(math.exp(weights[0])), *factors]))


def _trees(texts: Sequence[str], values: Sequence[float], seed: int) -> Fitted:
    """Many trees over the numbers: thresholds and anything else without a formula."""
    from sklearn.ensemble import ExtraTreesRegressor

    columns, numbers, fill = _numeric(texts, 3)
    model = ExtraTreesRegressor(100, random_state=seed, min_samples_leaf=2)
    model.fit(numbers, list(values))
    return Fitted(
        "trees",
        lambda asked: (
            [float(v) for v in model.predict(_filled(columns, fill, asked))] if asked else []
        ),
    )


def _ridge(texts: Sequence[str], values: Sequence[float], seed: int) -> Fitted:
    """Ridge regression over the words and, where there are columns, the numbers."""
    import numpy
    from scipy.sparse import csr_matrix, hstack
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    if len(texts) < 2 * FOLDS or not any(text.strip() for text in texts):
        raise _DoesNotFit
    words = _words()
    table = words.fit_transform(list(texts))
    columns = Columns.of(texts)
    scaler = StandardScaler()
    fill = 0.0
    if columns.names:
        _, numbers, fill = _numeric(texts, 0)
        table = hstack([table, csr_matrix(scaler.fit_transform(numbers))])
    model = RidgeCV(alphas=(0.1, 1.0, 10.0), cv=min(FOLDS, len(texts)))
    model.fit(table, numpy.asarray(values, dtype=float))

    def predict(asked: Sequence[str]) -> list[float]:
        if not asked:
            return []
        rows = words.transform(list(asked))
        if columns.names:
            rows = hstack([rows, csr_matrix(scaler.transform(_filled(columns, fill, asked)))])
        return [float(v) for v in model.predict(rows)]

    return Fitted("words", predict)


_FITTERS: dict[str, Callable[[Sequence[str], Sequence[float], int], Fitted]] = {
    "linear": _linear,
    "powers": _powers,
    "quadratic": _quadratic,
    "trees": _trees,
    "words": _ridge,
}


def _least_squares(table: Any, values: Any, importance: Any = None) -> Any:
    """Weights (constant first) of the smallest squared error; errors count times `importance`. Rows
    that are clearly wrong (5 % at most, by the median of the errors) are left out of a second fit,
    so that a typing error in the data does not hide a formula."""
    import numpy

    target = numpy.asarray(values, dtype=float)
    # Columns of one size: a price in millions beside a share would cost digits.
    scale = numpy.abs(table).max(axis=0)
    scale[scale == 0] = 1.0
    wide = numpy.column_stack([numpy.ones(len(table)), table / scale])
    if importance is not None:
        wide, target = wide * importance[:, None], target * importance
    weights = numpy.linalg.lstsq(wide, target, rcond=None)[0]
    for _ in range(3):
        errors = numpy.abs(wide @ weights - target)
        keep = errors <= max(numpy.quantile(errors, EXACT), 6 * numpy.median(errors))
        if keep.all() or keep.sum() < wide.shape[1] + 2:
            break
        weights = numpy.linalg.lstsq(wide[keep], target[keep], rcond=None)[0]
    return numpy.concatenate([weights[:1], weights[1:] / scale])


def _times(table: Any, weights: Any) -> list[float]:
    return [float(v) for v in weights[0] + table @ weights[1:]]


def _name(names: Sequence[str], i: int) -> str:
    return names[i].replace(" ", "_")


def _short(value: float) -> str:
    """The fewest digits that are within a thousandth."""
    for digits in range(1, 7):
        if math.isclose(float(f"{value:.{digits}g}"), value, rel_tol=1e-3, abs_tol=1e-9):
            break
    return f"{value:.{digits}g}"


def _sum_text(names: Sequence[str], weights: Any, table: Any, values: Sequence[float]) -> str:
    """A sum in words, with the fewest digits that change no value's last digit; terms that never
    matter are left out."""
    import numpy

    unit = _unit(values) or 1e-6 * (max(values) - min(values))
    largest = numpy.concatenate([[1.0], numpy.abs(table).max(axis=0)])
    target = numpy.asarray(values, dtype=float)
    whole = numpy.abs(weights[0] + table @ weights[1:] - target)
    rounded = weights
    for digits in range(1, 8):
        rounded = numpy.array([float(f"{w:.{digits}g}") for w in weights])
        rounded[numpy.abs(weights) * largest < 0.5 * unit] = 0.0
        errors = numpy.abs(rounded[0] + table @ rounded[1:] - target)
        as_many = (errors <= 0.55 * unit).sum() >= (whole <= 0.55 * unit).sum()
        if as_many and errors.mean() <= 1.05 * whole.mean() + 1e-3 * unit:
            break
    terms = [f"{w:g}·{names[i].replace(' ', '_')}" for i, w in enumerate(rounded[1:]) if w]
    terms += [f"{rounded[0]:g}"] if rounded[0] or not terms else []
    return " + ".join(terms).replace("+ -", "- ")


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


def cross_classes(texts: Sequence[str], labels: Sequence[str], *, seed: int = 0) -> list[str]:
    """`classes` for every row, learnt from the other folds."""
    out = [""] * len(texts)
    for train, test in _folds(texts, seed):
        found = classes(
            [texts[i] for i in train],
            [labels[i] for i in train],
            [texts[i] for i in test],
            seed=seed,
        )
        for i, label in zip(test, found, strict=True):
            out[i] = label
    return out


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings: a fit that did not converge still counts by its figures on
    unseen rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
