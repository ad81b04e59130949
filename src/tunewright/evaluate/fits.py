"""Small predictors: what each learns from the numbers and words of texts, and how a formula is
written.

A number is a column by the word before it, so `power 12, price 3` and `price 3, power 12` are the
same row. Each fit is a function `(texts, values, seed) -> Fitted`; one that the rows do not allow
raises `DoesNotFit`. scikit-learn does the fitting.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tunewright.rewards.numeric import numbers_with_words

FOLDS_OF_RIDGE = 5
MOST_COLUMNS = 40
SHARED = 0.8
"""A column exists where this share of the texts has its number."""
EXACT = 0.95
"""A formula that gives this share of the rows to the last digit explains them: some rows of any
data are wrong."""
WORD = r"(?u)\b\w+\b|[^\w\s]"
DECIMALS = 6
LARGEST = 10**30
"""Larger numbers are no quantities, and trees compute in float32."""


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


def words() -> Any:
    """Counts of words and pairs of words, and of 1 to 4 characters, weighted by rarity. A word is
    one character or more: in Chinese and in maths single ones mean something."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    shape = {"sublinear_tf": True, "max_features": 100_000}
    return make_union(
        TfidfVectorizer(**shape, **{"ngram_range": (1, 2), "token_pattern": WORD}),
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), **shape),
    )


def last_digit(values: Sequence[float]) -> float:
    """The power of ten that all values are whole multiples of; 0 where that is below a
    millionth."""
    for decimals in range(DECIMALS + 1):
        if all(math.isclose(v, round(v, decimals), rel_tol=1e-12, abs_tol=1e-12) for v in values):
            return 10.0**-decimals
    return 0.0


class DoesNotFit(Exception):
    """A predictor that these rows do not allow."""


def _numeric(texts: Sequence[str], least: int) -> tuple[Columns, Any, Any]:
    """(columns, numbers with gaps filled, what fills a gap). Raises DoesNotFit where there are no
    columns, or too few rows for them."""
    import numpy

    columns = Columns.of(texts)
    if not columns.names or len(texts) < least * (len(columns.names) + 1):
        raise DoesNotFit
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
        raise DoesNotFit
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
        raise DoesNotFit
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

    if len(texts) < 2 * FOLDS_OF_RIDGE or not any(text.strip() for text in texts):
        raise DoesNotFit
    counts = words()
    table = counts.fit_transform(list(texts))
    columns = Columns.of(texts)
    scaler = StandardScaler()
    fill = 0.0
    if columns.names:
        _, numbers, fill = _numeric(texts, 0)
        table = hstack([table, csr_matrix(scaler.fit_transform(numbers))])
    model = RidgeCV(alphas=(0.1, 1.0, 10.0), cv=min(FOLDS_OF_RIDGE, len(texts)))
    model.fit(table, numpy.asarray(values, dtype=float))

    def predict(asked: Sequence[str]) -> list[float]:
        if not asked:
            return []
        rows = counts.transform(list(asked))
        if columns.names:
            rows = hstack([rows, csr_matrix(scaler.transform(_filled(columns, fill, asked)))])
        return [float(v) for v in model.predict(rows)]

    return Fitted("words", predict)


FITTERS: dict[str, Callable[[Sequence[str], Sequence[float], int], Fitted]] = {
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

    unit = last_digit(values) or 1e-6 * (max(values) - min(values))
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


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' warnings: a fit that did not converge still counts by its figures on
    unseen rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
