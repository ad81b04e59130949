"""Intervals against known distributions, scipy's bootstrap, and their own promise of coverage."""

from __future__ import annotations

import numpy as np
import pytest

from tunewright.evaluate.interval import bootstrap, bootstrap_of, of_scores, paired, wilson


def test_a_bootstrap_is_scipys() -> None:
    from scipy.stats import bootstrap as peer

    values = np.random.default_rng(1).beta(2, 5, 400)
    wanted = peer(
        (values,), np.mean, method="percentile", n_resamples=8000, rng=2
    ).confidence_interval
    # Ends of two random bootstraps; the widening for 400 rows is 0.3 % of a width.
    width = wanted.high - wanted.low
    assert bootstrap(list(values), draws=8000) == pytest.approx(tuple(wanted), abs=0.05 * width)


def test_an_interval_covers_as_often_as_it_says_even_with_few_rows() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for i in range(400):
        low, high = bootstrap(list(rng.normal(1.0, 2.0, 8)), draws=400, seed=i)
        covered += low <= 1.0 <= high
    # 95 % of 400 is 380 +- 8.7 at two sigma.
    assert covered / 400 > 0.92


def test_the_same_seed_gives_the_same_and_another_does_not() -> None:
    values = [i * i / 100 for i in range(30)]
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4) != bootstrap(values, seed=5)


def test_a_statistic_of_sums_is_drawn_whole() -> None:
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 50.0]]
    low, high = bootstrap_of(rows, lambda sums: sums[0] / sums[1])
    assert low == pytest.approx(0.1) and high == pytest.approx(0.75)


def test_scores_that_are_right_or_wrong_have_wilsons_interval() -> None:
    assert of_scores([1.0, 0.0, 1.0, 1.0]) == wilson(3, 4)
    low, high = of_scores([100.0, 100.0], 100)
    assert (low, high) == (pytest.approx(100 * wilson(2, 2)[0]), 100)
    low, high = of_scores([0.5, 0.5])
    assert low < 0.5 < high


def test_a_pair_of_columns_counts_rows_and_measures_their_difference() -> None:
    a, b = [0.0, 0.5, 1.0, 0.2], [1.0, 0.5, 0.0, 0.6]
    found = paired(a, b)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.difference == pytest.approx(0.1) and found.low < 0.1 < found.high
    same = paired(a, a)
    assert (same.difference, same.low, same.high, same.ties) == (0, 0, 0, 4)


def test_a_paired_interval_is_narrower_than_two_means() -> None:
    rng = np.random.default_rng(6)
    hard = rng.uniform(0, 1, 200)
    a, b = list(hard), list(np.clip(hard + 0.05 + rng.normal(0, 0.02, 200), 0, 1))
    found = paired(a, b)
    assert found.low > 0.04 and found.high - found.low < 0.2 * (bootstrap(a)[1] - bootstrap(a)[0])


def test_no_rows_and_unequal_lists_are_refused() -> None:
    for call in (lambda: bootstrap([]), lambda: of_scores([]), lambda: paired([1.0], [])):
        with pytest.raises(ValueError):
            call()
