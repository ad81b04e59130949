"""Every second counts for one part, and the parts are the whole."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tunewright.core import stopwatch
from tunewright.core.stopwatch import OTHER, PARTS, Laps, Spent, Stopwatch


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


@pytest.mark.parametrize(
    ("spent", "threads", "disturbed"),
    [
        (Spent(10, 19, 0.5), 2, False),  # alone on two processors
        (Spent(10, 11, 8), 2, True),  # another program held most of one
        (Spent(10, 10, 9), 1, False),  # one thread, and the other processor was free for others
        (Spent(10, 7, 17), 1, True),
        (Spent(10, 4, 0), 2, True),  # stopped, or waiting
        (Spent(10, 19, None), 2, False),  # the system does not say
        (Spent(10, 4, None), 2, True),
    ],
)
def test_a_program_is_disturbed_by_what_others_take_of_its_processors(
    monkeypatch: pytest.MonkeyPatch, spent: Spent, threads: int, disturbed: bool
) -> None:
    monkeypatch.setattr(stopwatch.os, "cpu_count", lambda: 2)
    assert spent.disturbed(threads) is disturbed


def test_who_waits_for_files_or_a_gpu_is_not_disturbed_by_waiting() -> None:
    assert not Spent(10, 0.5, 0).disturbed(2, computes=False)
    assert Spent(10, 0.5, 0).disturbed(2)


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_a_program_and_its_children_use_is_its_own() -> None:
    """Running children count as well as those that ended."""
    code = "import time\nwhile time.process_time() < {}: pass\nprint(1, flush=True)\ninput()"
    laps = Laps()
    subprocess.run([sys.executable, "-c", code.format(0.4)], input=b"\n", check=True)
    with subprocess.Popen(
        [sys.executable, "-c", code.format(0.4)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdout.readline()
        compute(0.2)
        if sys.platform.startswith("linux"):
            assert laps.lap().own >= 0.9
        running.stdin.write(b"\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/stat")
def test_what_strangers_use_is_theirs() -> None:
    """A process that nobody here started: the parent of this child ends at once."""
    busy = "import time\nwhile time.process_time() < 0.6: pass"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}])"
    laps = Laps()
    subprocess.run([sys.executable, "-c", start], check=True)
    end, found = time.perf_counter() + 20, Spent()
    while (found.others or 0.0) < 0.5 and time.perf_counter() < end:
        time.sleep(0.1)
        found += laps.lap()
    assert found.others is not None and found.others >= 0.5


def test_parts_tell_the_processors_that_they_got() -> None:
    watch = Stopwatch()
    with watch.of("train"):
        compute(0.2)
    with watch.of("load"):
        time.sleep(0.05)
    spent = watch.spent()
    assert spent["train"].own >= 0.19 and spent["load"].own < 0.05
    assert spent["train"].wall >= spent["train"].own * 0.5
