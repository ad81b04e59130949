"""Tests of differences against scipy's and against brute force, and their error rates in
simulation."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from scipy import stats

from tunewright.evaluate.significance import (
    falls,
    few,
    flips_at_most,
    holds,
    holm,
    many,
    ranks_at_most,
)


@pytest.mark.parametrize("seed", range(6))
def test_signs_are_counted_as_by_trying_them_all(seed: int) -> None:
    draw = random.Random(seed)
    values = [round(draw.uniform(-1, 0.8), 2) for _ in range(9)]
    sums = [sum(s * abs(v) for s, v in zip(signs, values, strict=True))
            for signs in itertools.product((-1, 1), repeat=9)]  # fmt: skip
    wanted = sum(one <= sum(values) + 1e-9 for one in sums) / len(sums)
    assert flips_at_most(values) == pytest.approx(wanted)


@pytest.mark.parametrize(("losses", "wins"), [(8, 1), (5, 0), (3, 3), (0, 4), (1, 0)])
def test_right_and_wrong_answers_give_mcnemars_exact_test(losses: int, wins: int) -> None:
    differences = [-1.0] * losses + [1.0] * wins + [0.0] * 20
    exact = stats.binomtest(losses, losses + wins, alternative="greater").pvalue
    assert falls(differences, 0.0) == pytest.approx(exact)


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_wilcoxons(seed: int) -> None:
    draw = random.Random(seed)
    values = [draw.gauss(-0.3, 1) for _ in range(14)]
    exact = stats.wilcoxon(values, alternative="less", method="exact").pvalue
    assert ranks_at_most(values) == pytest.approx(exact)


def test_ties_share_their_rank() -> None:
    # |values| 1, 1, 2: ranks 1.5, 1.5, 3; the sum -6 needs every sign to be minus.
    assert ranks_at_most([-1, -1, -2, 0]) == pytest.approx(1 / 8)
    assert ranks_at_most([]) == 1.0


def test_many_values_go_over_to_the_normal_without_a_step() -> None:
    draw = random.Random(1)
    values = [draw.gauss(-0.05, 1) for _ in range(301)]
    assert flips_at_most(values) == pytest.approx(flips_at_most(values[:300]), rel=0.35)


def test_shares_are_binomial_tails() -> None:
    assert few(7, 10, 0.9) == pytest.approx(stats.binom.cdf(7, 10, 0.9))
    assert many(3, 10, 0.1) == pytest.approx(stats.binom.sf(2, 10, 0.1))
    assert few(9, 10, 1.0) == 0 and few(10, 10, 1.0) == 1
    assert many(1, 50, 0.0) == 0 and many(0, 50, 0.0) == 1
    assert few(7, 10, 0.9) < few(7.5, 10, 0.9) < few(8, 10, 0.9)


def test_holm_rejects_from_the_smallest_on_until_one_stays() -> None:
    # From the paper's rule by hand: 0.01 <= .05/4, 0.02 > .05/3: the others stay, 0.03 too.
    assert holm([0.02, 0.01, 0.03, 0.9], 0.05) == [False, True, False, False]
    assert holm([0.001, 0.01, 0.02, 0.04], 0.05) == [True, True, True, True]
    assert holm([], 0.05) == []


def drawn(draw: random.Random, count: int, lost: float, won: float) -> list[float]:
    """Differences of right and wrong answers: -1 with chance `lost`, 1 with chance `won`."""
    found = []
    for _ in range(count):
        luck = draw.random()
        found.append(-1.0 if luck < lost else 1.0 if luck < lost + won else 0.0)
    return found


@functools.cache
def chance(test: Callable[..., float], losses: int, wins: int, equal: int, margin: float) -> float:
    """What a test says of so many differences of -1, 1 and 0. Of 2,000 draws of right and wrong
    answers most have the counts of another one."""
    return test([-1.0] * losses + [1.0] * wins + [0.0] * equal, margin)


def called(test: Callable[..., float], draw: random.Random, differences: Any, margin: float) -> int:
    """How often of 2,000 draws the test speaks at 0.05."""
    found = 0
    for _ in range(2000):
        values = drawn(draw, *differences)
        found += chance(test, *map(values.count, (-1.0, 1.0, 0.0)), margin) <= 0.05
    return found


@pytest.mark.parametrize("test", [falls, holds])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_the_order_of_the_differences_decides_nothing(
    test: Callable[..., float], margin: float
) -> None:
    draw = random.Random(5)
    for count in (20, 60):
        values = drawn(draw, count, 0.2, 0.1)
        assert test(values, margin) == test(sorted(values), margin) == test(values[::-1], margin)


@pytest.mark.parametrize("count", [20, 40, 60])
@pytest.mark.parametrize(
    ("lost", "won", "margin"),
    [(0.1, 0.1, 0.0), (0.3, 0.3, 0.0), (0.05, 0.0, 0.05), (0.15, 0.1, 0.05), (0.1, 0.0, 0.1)],
)
def test_a_fall_within_the_margin_is_called_one_rarely(
    count: int, lost: float, won: float, margin: float
) -> None:
    """At the worst the mean has fallen by exactly the margin. 0.075 is five standard errors above
    0.05 for 2,000 draws."""
    draw = random.Random(f"{count} {lost} {won}")
    assert called(falls, draw, (count, lost, won), margin) / 2000 <= 0.075


@pytest.mark.parametrize("count", [20, 40, 60])
@pytest.mark.parametrize(
    ("lost", "won", "margin"),
    [(0.05, 0.0, 0.05), (0.15, 0.1, 0.05), (0.1, 0.0, 0.1), (0.2, 0.1, 0.1), (0.4, 0.2, 0.2)],
)
def test_what_has_fallen_is_rarely_called_shown_to_hold(
    count: int, lost: float, won: float, margin: float
) -> None:
    draw = random.Random(f"{count} {lost} {won}")
    assert called(holds, draw, (count, lost, won), margin) / 2000 <= 0.075


def test_equal_answers_show_something_only_when_there_are_enough() -> None:
    assert holds([0.0] * 10, 0.05) > 0.05
    assert holds([0.0] * 59, 0.05) < 0.05  # 0.95 to the power 59 is 0.0485
    assert holds([0.0] * 500, 0.0) == 1.0  # that nothing at all was lost cannot be shown


def test_a_plain_fall_is_seen() -> None:
    draw = random.Random(3)
    seen = sum(falls(drawn(draw, 40, 0.4, 0.02), 0.05) <= 0.01 for _ in range(200))
    assert seen >= 190
