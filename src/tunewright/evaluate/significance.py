"""Is a difference more than luck: tests that hold for a few dozen questions, and several at once.

All are one-sided and exact or on the safe side, because a contract has 20 to 60 questions, where a
normal approximation is worth little. Sources: Fisher 1935 (signs of differences; for right and
wrong answers this is McNemar's exact test), Wilcoxon 1945 (signed ranks), Hoeffding 1956 and
Bentkus 2004 (scores between 0 and 1 vary less than right and wrong answers with the same mean),
Holm 1979 (several tests at one error rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GRID = 1000
"""Differences are counted in steps of 1 / GRID; ranks in halves."""
MANY = 300
"""From so many values on the sum of random signs is taken as normal."""


def flips_at_most(values: Sequence[float], *, grid: int = GRID) -> float:
    """The chance that the sum of `values` is as small as it is, or smaller, where every value's
    sign is as likely + as -: exact up to `MANY` values. 1 for no values.

    Small: the values lie below 0 by more than luck.
    """
    import numpy as np

    sizes = [round(abs(value) * grid) for value in values]
    total = sum(round(value * grid) for value in values)
    sizes = [size for size in sizes if size]
    if not sizes:
        return 1.0
    if len(sizes) > MANY:
        spread = math.sqrt(sum(size * size for size in sizes))
        return 0.5 * math.erfc(-(total + 0.5) / spread / math.sqrt(2))
    # P(sum of those with a minus >= lost): a sum with signs is `all - 2 * minus`.
    whole = sum(sizes)
    chance = np.zeros(whole + 1)
    chance[0], reached = 1.0, 0
    for size in sizes:
        reached += size
        chance[size : reached + 1] = (chance[size : reached + 1] + chance[: reached + 1 - size]) / 2
        chance[:size] /= 2
    lost = math.ceil((whole - total) / 2)
    return float(min(1.0, chance[lost:].sum()))


def ranks_at_most(values: Sequence[float]) -> float:
    """Wilcoxon's signed-rank test: `flips_at_most` of the ranks of the sizes, so that one wild
    value (a timing beside which something else ran) weighs no more than its place. Values of 0 are
    left out."""
    kept = [value for value in values if value]
    ordered = sorted(abs(value) for value in kept)
    first = {size: i for i, size in reversed(list(enumerate(ordered)))}
    last = {size: i for i, size in enumerate(ordered)}
    ranks = [math.copysign((first[abs(v)] + last[abs(v)]) / 2 + 1, v) for v in kept]
    return flips_at_most(ranks, grid=2)


def few(total: float, count: int, share: float) -> float:
    """The chance that `count` scores between 0 and 1 sum up to `total` or less where their mean is
    truly `share` or more: the binomial tail, between whole numbers by interpolation of its
    logarithm. 0 where that cannot be at all."""
    return _tail(total, count, share)


def many(total: float, count: int, share: float) -> float:
    """The chance of `total` or more where the mean is truly `share` or less."""
    return _tail(count - total, count, 1 - share)


def _tail(total: float, count: int, share: float) -> float:
    from scipy.stats import binom

    if share >= 1:
        return 1.0 if total >= count else 0.0
    if share <= 0 or total >= count:
        return 1.0
    total = round(total, 9)
    low = math.floor(total)
    below = float(binom.cdf(low, count, share))
    if low == total:
        return below
    above = float(binom.cdf(low + 1, count, share))
    # Between two whole numbers the larger tail would be safe; its logarithm's line is close.
    return math.exp(math.log(max(below, 1e-300)) * (low + 1 - total)
                    + math.log(max(above, 1e-300)) * (total - low))  # fmt: skip


def holm(chances: Sequence[float], rate: float) -> list[bool]:
    """Which of several tests show something, so that the chance that ANY does by luck is at most
    `rate` (Holm 1979)."""
    shown = [False] * len(chances)
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    for place, i in enumerate(order):
        if chances[i] > rate / (len(chances) - place):
            break
        shown[i] = True
    return shown


def holm_adjusted(chances: Sequence[float]) -> list[float]:
    """The chances as Holm corrects them: each is compared with the error rate itself."""
    found, largest = [1.0] * len(chances), 0.0
    for place, i in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        largest = max(largest, min(1.0, chances[i] * (len(chances) - place)))
        found[i] = largest
    return found


def falls(differences: Sequence[float], margin: float) -> float:
    """The chance of differences (new minus old, between -1 and 1) this low where the mean has not
    fallen by more than `margin`."""
    return flips_at_most([d + margin for d in differences])


def holds(differences: Sequence[float], margin: float) -> float:
    """The chance of differences this high where the mean HAS fallen by more than `margin`: small
    means shown to hold.

    Signs alone would call a handful of equal answers a proof: a loss of everything on a share
    `margin` of all questions must have been seen as well (`few`).
    """
    if not differences or margin <= 0:
        return 1.0
    lost = max(0.0, -math.fsum(differences))
    return max(
        flips_at_most([-(d + margin) for d in differences]), few(lost, len(differences), margin)
    )
