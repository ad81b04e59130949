"""Ticks are round and cover the values; the smoothed line keeps constants and straight lines."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tunewright.report.chart import MOST_POINTS, bar, smooth, thin, ticks

values = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)


@given(values, values)
def test_ticks_cover_the_values_in_few_round_steps(a, b):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6:
        high = low + 1
    found = ticks(low, high)
    step = found[1] - found[0]
    assert (
        found[0] <= low + 1e-6 * step and found[-1] >= high - 1e-6 * step and 2 <= len(found) <= 12
    )


def test_ticks_of_one_value_and_of_nothing_finite():
    assert len(ticks(2.0, 2.0)) >= 2
    assert len(ticks(0.0, math.nan)) >= 2


@given(st.integers(1, 300), values)
def test_a_constant_stays_a_constant(count, value):
    assert all(math.isclose(v, value, rel_tol=1e-6, abs_tol=1e-6) for v in smooth([value] * count))


def test_a_straight_line_does_not_lag():
    line = [float(i) for i in range(100)]
    assert all(abs(a - b) < 1e-9 for a, b in zip(smooth(line), line, strict=True))


def test_thin_keeps_the_mean_of_neighbours():
    points = [(float(i), 2.0 * i) for i in range(1000)]
    few = thin(points)
    assert len(few) <= MOST_POINTS and all(abs(y - 2 * x) < 1e-9 for x, y in few)


def test_a_bar_of_nothing_is_nothing():
    assert bar([("a", 0.0)], "x") == "" and bar([("a", 1.0), ("b", 3.0)], "x").count("<rect") == 2
