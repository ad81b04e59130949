"""How sure a figure is: Wilson's interval for k right out of n, else a bootstrap over the rows.

The usual p +- 1.96 sqrt(p(1-p)/n) says "100 % +- 0" after three right answers; Wilson's stays
inside [0, 1] and covers close to 95 % for small n and for shares near 0 and 1. Source: Wilson 1927;
Brown, Cai and DasGupta 2001 compare the choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054
"""The standard normal's 97.5 % point."""


def wilson(right: int, count: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) of the share `right / count`; (0, 1) for no rows, about which nothing is known.
    Raises ValueError unless 0 <= right <= count."""
    if not 0 <= right <= count:
        raise ValueError(f"{right} of {count}")
    if not count:
        return 0.0, 1.0
    return _wilson_of(right / count, count, z)


def _wilson_of(share: float, count: int, z: float) -> tuple[float, float]:
    z2 = z * z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # At the ends the formula gives exactly 0 and 1; rounding must not leave them.
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)


def bootstrap(
    values: Sequence[float], *, seed: int = 0, draws: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean of `values`, one a row: rows drawn again with replacement.

    Where all values are equal both ends are that value: `of_scores` gives scores with known ends
    an honest width then. Raises ValueError for no values.
    """
    return bootstrap_of(
        [[value] for value in values],
        lambda sums: sums[0] / len(values),
        seed=seed,
        draws=draws,
        confidence=confidence,
    )


def bootstrap_of(
    rows: Sequence[Sequence[float]],
    statistic: Callable[[Any], float],
    *,
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """(low, high) of a figure of the whole set, made from sums over its rows, as corpus BLEU is
    from the n-grams that each row got right: `statistic` of the summed `rows` (N rows of K
    numbers) of every draw. Raises ValueError for no rows."""
    return bootstraps_of(
        rows, lambda sums: [statistic(sums)], seed=seed, draws=draws, confidence=confidence
    )[0]


def bootstraps_of(
    rows: Sequence[Sequence[float]],
    statistics: Callable[[Any], Sequence[float]],
    *,
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
) -> list[tuple[float, float]]:
    """`bootstrap_of` for several figures from the same draws. A figure that is NaN in some draws,
    as the F1 of a class that none of their rows has, is judged by the others; (0, 1) if by none.

    The percentile method, its percentiles widened for few rows as Student's t widens z (Hesterberg
    2015, "What teachers should know about the bootstrap", 5.3).
    """
    import numpy as np

    table_NK = np.asarray(rows, dtype=np.float64)
    count = len(table_NK)
    if not count:
        raise ValueError("no rows")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        times_N = np.bincount(rng.integers(0, count, count), minlength=count)
        found.append(statistics(times_N @ table_NK))
    found_DF = np.asarray(found, dtype=np.float64)
    tail = _tail(count, confidence)
    out = []
    for value_D in found_DF.T:
        known = value_D[~np.isnan(value_D)]
        low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (0.0, 1.0)
        out.append((float(low), float(high)))
    return out


def _tail(count: int, confidence: float) -> float:
    """The share of draws beyond each end, for `count` rows."""
    tail = (1 - confidence) / 2
    if count < 2:
        return tail
    from scipy.special import ndtr, stdtrit  # scipy.stats takes a second to import

    return float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, tail)))


def of_scores(
    values: Sequence[float], scale: float = 1.0, *, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """(low, high) of the mean of scores between 0 and `scale`: `wilson` for those that are only
    right or wrong, else `bootstrap`. Raises ValueError for no values.

    Where all rows have one score a bootstrap says "+- 0" even of a single row; Wilson's interval at
    that mean holds there, because no score in [0, 1] varies more than a share with the same mean.
    """
    if not values:
        raise ValueError("no rows")
    if set(values) <= {0.0, scale} or len(set(values)) == 1:
        mean = min(1.0, max(0.0, sum(values) / len(values) / scale))
        low, high = _wilson_of(mean, len(values), Z95)
        return low * scale, high * scale
    return bootstrap(values, seed=seed, draws=draws)


@dataclass(frozen=True)
class Paired:
    """`b - a` on the same rows: the mean difference with its interval, and on how many rows b was
    better, worse and equal."""

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int


def paired(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Paired:
    """How much better b is than a, row by row. What makes a row hard is the same for both and drops
    out, so the interval is far narrower than that of two separate means. Raises ValueError for
    lists that are empty or differ in length."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} rows against {len(b)}")
    differences = [y - x for x, y in zip(a, b, strict=True)]
    low, high = bootstrap(differences, seed=seed, draws=draws, confidence=confidence)
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    mean = math.fsum(differences) / len(differences)
    return Paired(mean, low, high, wins, losses, len(differences) - wins - losses)
