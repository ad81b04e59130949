"""How many threads the next unit of work uses, and how long idle ones spin: on made-up seconds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest

from tunewright.core import pace
from tunewright.core.pace import Chooser, Pace, counts_up_to, sleep_when_idle

QUIET = {1: 0.080, 2: 0.056}
BUSY = {1: 0.066, 2: 0.112}
"""Seconds of a decoding step of a 135M model with 1 and 2 threads, as measured."""


def counts_used(
    chooser: Chooser, units: int, seconds: Callable[[int, int], float]
) -> list[tuple[int, float]]:
    """(count, seconds) of each unit, where unit `i` with `count` threads takes `seconds(i, count)`
    seconds."""
    done = []
    for i in range(units):
        count = chooser.count
        took = seconds(i, count)
        chooser.took(took)
        done.append((count, took))
    return done


def test_a_quiet_machine_gets_both_threads_and_a_busy_one_one() -> None:
    for machine, best in ((QUIET, 2), (BUSY, 1)):
        chooser = Chooser((1, 2))
        counts_used(chooser, 7, lambda i, count, m=machine: m[count])
        assert chooser.best == chooser.count == best


def test_trying_again_takes_at_most_its_share_of_the_time() -> None:
    for machine in (QUIET, BUSY, {1: 0.005, 2: 0.2}):
        done = counts_used(Chooser((1, 2)), 3000, lambda i, count, m=machine: m[count])
        best = min(machine, key=lambda count: machine[count])
        after_the_start = done[7:]
        trying = sum(seconds for count, seconds in after_the_start if count != best)
        assert 0 < trying <= 1.01 * pace.SHARE * sum(seconds for _, seconds in after_the_start)


def test_a_busy_process_that_comes_is_met_within_a_few_units_and_its_end_is_noticed() -> None:
    def seconds(i: int, count: int) -> float:
        return (BUSY if 500 <= i < 1000 else QUIET)[count]

    used = [count for count, _ in counts_used(Chooser((1, 2)), 2000, seconds)]
    assert used[490:500] == [2] * 10
    assert used[510:520] == [1] * 10
    assert used[1200:1210] == [2] * 10


def test_single_spikes_start_no_trial() -> None:
    chooser = Chooser((1, 2))
    done = counts_used(chooser, 100, lambda i, count: QUIET[count] * (10 if i % 7 == 6 else 1))
    spiky = {i for i, (_, seconds) in enumerate(done) if seconds > 0.5}
    assert len(spiky) == 14
    # What is due after 92 units by time alone: each spike counts for ten of them.
    quiet = counts_used(Chooser((1, 2)), 250, lambda i, count: QUIET[count])
    assert sum(c == 1 for c, _ in done) <= sum(c == 1 for c, _ in quiet)
    assert chooser.best == 2


def test_noise_does_not_make_it_flap() -> None:
    draws = random.Random(3)
    alike = {1: 0.050, 2: 0.048}
    chooser = Chooser((1, 2))
    bests = []
    for _ in range(4000):
        chooser.took(alike[chooser.count] * draws.uniform(0.8, 1.2))
        bests.append(chooser.best)
    assert sum(a != b for a, b in pairwise(bests)) <= 10  # of 80 trials


def test_a_load_that_comes_and_goes_costs_ever_fewer_trials() -> None:
    # Both counts suffer alike, so that no trial changes anything.
    done = counts_used(
        Chooser((1, 2)), 4000, lambda i, count: QUIET[count] * (3 if i % 40 >= 20 else 1)
    )
    assert 0 < sum(count == 1 for count, _ in done[2000:]) <= 75  # 150 without the doubling


def test_a_long_first_unit_is_held_against_no_count() -> None:
    chooser = Chooser((1, 2))
    counts_used(chooser, 7, lambda i, count: 20.0 if i == 0 else QUIET[count])
    assert chooser.best == 2
    assert chooser.usual == QUIET


def test_a_hopeless_count_is_tried_once() -> None:
    used = [c for c, _ in counts_used(Chooser((1, 2, 4, 8)), 20, lambda i, count: 0.1 / count)]
    assert used[:10] == [8, 8, 4, 2, 1, 8, 4, 8, 4, 8]


def test_more_threads_have_to_be_worth_it() -> None:
    chooser = Chooser((1, 2))
    counts_used(chooser, 7, lambda i, count: {1: 0.050, 2: 0.047}[count])
    assert chooser.best == 1


def test_one_core_leaves_nothing_to_choose() -> None:
    chooser = Chooser(counts_up_to(1))
    assert {c for c, _ in counts_used(chooser, 50, lambda i, count: 0.1 * (1 + i % 9))} == {1}
    with pytest.raises(ValueError, match="no counts"):
        Chooser(())


def test_the_counts_worth_trying() -> None:
    assert [counts_up_to(n) for n in (1, 2, 3, 6, 8)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 6),
        (1, 2, 4, 8),
    ]


class Machine:
    """A clock and a thread count that a test looks at."""

    def __init__(self, threads: int = 7):
        self.now, self.threads = 0.0, threads
        self.told: list[int] = []

    def use(self, count: int) -> None:
        self.threads = count
        self.told.append(count)

    def pace(self, counts: tuple[int, ...]) -> Pace:
        return Pace(counts, clock=lambda: self.now, use=self.use, in_use=lambda: self.threads)


def test_threads_are_set_when_the_count_changes_and_put_back_at_the_end() -> None:
    machine = Machine()
    with machine.pace((1, 2)) as steps:
        for _ in range(10):
            with steps.unit(size=2.0):
                machine.now += 2 * QUIET[machine.threads]
    assert machine.told == [2, 1, 2, 1, 2, 1, 2, 7]
    assert steps.units == {2: 7, 1: 3}
    assert steps.chooser is not None
    assert steps.chooser.usual == pytest.approx(QUIET)


def test_a_unit_that_raises_counts_for_nothing_and_the_threads_are_put_back() -> None:
    machine = Machine()
    with pytest.raises(KeyError), machine.pace((1, 2)) as steps, steps.unit():
        raise KeyError
    assert steps.units == {}
    assert machine.threads == 7


def test_one_count_is_set_and_none_leaves_the_threads_alone() -> None:
    for counts, told in (((3,), [3, 7]), ((), [])):
        machine = Machine()
        with machine.pace(counts) as steps:
            for _ in range(5):
                with steps.unit():
                    pass
        assert machine.told == told


def test_torch_is_told() -> None:
    import torch

    before = torch.get_num_threads()
    with Pace((before + 1,)) as steps, steps.unit():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("said", pace.SAID)
def test_idle_threads_sleep_unless_the_user_said_otherwise(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in pace.SAID:
        monkeypatch.setenv(name, "")
        del os.environ[name]
    assert sleep_when_idle() is False  # torch is loaded here, and has read it
    assert pace.SAID[0] not in os.environ
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert sleep_when_idle() is True
    assert os.environ[pace.SAID[0]] == str(pace.SPINS)
    del os.environ[pace.SAID[0]]
    monkeypatch.setenv(said, "ACTIVE")
    assert sleep_when_idle() is False
    assert os.environ[said] == "ACTIVE"


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp")
@pytest.mark.parametrize(
    "start",
    [
        "from tunewright import cli; cli.app = lambda: None; cli.main()",
        "import tunewright\ntry: tunewright.train('x', method='none')\nexcept Exception: pass",
    ],
)
def test_the_library_of_the_threads_has_heard_it(start: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", f"{start}\nimport torch"],
        env={k: v for k, v in os.environ.items() if k not in pace.SAID}
        | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{pace.SPINS}'" in told.stderr
