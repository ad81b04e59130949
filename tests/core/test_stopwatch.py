"""Every second counts for one part, and the parts are the whole."""

from __future__ import annotations

import pytest

from tunewright.core import stopwatch
from tunewright.core.stopwatch import OTHER, PARTS, Stopwatch


class Clock:
    """Shows what it is told."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def test_time_counts_for_the_innermost_part(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 1
    with watch.of("load"):
        clock.now += 2
        with watch.of("data"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    told = watch.parts()
    assert {part: told[part] for part in ("load", "data", OTHER)} == {
        "load": 10.0,
        "data": 4.0,
        OTHER: 17.0,
    }
    assert set(told) == {*PARTS, OTHER}
    assert sum(told.values()) == watch.wall == 31.0


def test_a_part_that_is_running_counts_so_far(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.of("report"):
        clock.now += 3
        assert watch.parts()["report"] == 3.0
        clock.now += 1
    assert watch.parts()["report"] == 4.0


def test_a_part_ends_with_what_is_raised_in_it(clock: Clock) -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.of("train"), watch.of("evaluate"):
        clock.now += 5
        raise KeyError
    clock.now += 1
    told = watch.parts()
    assert (told["evaluate"], told["train"], told[OTHER]) == (5.0, 0.0, 1.0)
