"""Threads that fit the work and the load: how long an idle thread spins, how many do the next unit.

A small model's decoding step is hundreds of short parallel products. Where another program holds a
core, the thread that is done first waits in each of them for one that is not scheduled. Two things
help. A thread that waits goes to sleep early (`sleep_when_idle`); no number depends on that, so it
holds for all work. And the count of threads follows what was measured (`Pace`); sums are then cut
differently and round differently, so this is for answers to people only: what a run learns from or
is chosen by is computed with the run's own count. docs/LOG.md has the figures.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

SPINS = 3000
"""Turns of the loop in which an idle thread of libgomp waits before it sleeps, some 200
microseconds here; its own 300,000 are 20 ms, longer than the system lets anyone run on a busy core.
With 1,000, which libgomp takes by itself once it has more threads than processors, threads fall
asleep between the products of a decoding step, which then takes a quarter longer."""
SAID = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables with which a person has decided this already."""

TRIES = 3
"""Units of work by which a count is judged; their median, so that one spike decides nothing."""
SHARE = 0.03
"""Most of the time that may go into trying other counts again."""
GAIN = 0.9
"""A count replaces another where it takes at most this part of its time."""
HOPELESS = 2.0
"""A count that takes this many times as long as the best is tried once and not `TRIES` times."""
SLOW = 1.6
"""A unit is slow that takes this many times as long as usual; two in a row are a new load."""
SETTLED, MOST_SETTLED = 8, 512
"""Units after a trial in which slow ones start no other; doubles with each that changed nothing."""
MEMORY = 0.1
"""Weight of the newest unit in what is usual."""


def sleep_when_idle() -> bool:
    """Let idle threads of this process sleep after `SPINS` turns. Returns whether that will hold:
    not where a person has decided it, nor once torch is loaded, for libgomp reads it then."""
    if "torch" in sys.modules or any(name in os.environ for name in SAID):
        return False
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return True


def counts_up_to(most: int) -> tuple[int, ...]:
    """Counts of threads worth trying: 1, 2, 4 ... and `most`."""
    return tuple(sorted({2**i for i in range(most.bit_length())} | {most}))


class Chooser:
    """Which of `counts` the next unit of work uses, from the seconds that units took: `count` says
    it, `took` is told. No clock and no threads in here.

    Raises ValueError for no counts.
    """

    def __init__(self, counts: Sequence[int]):
        if not counts:
            raise ValueError("no counts of threads to choose from")
        self.counts = tuple(sorted(set(counts)))
        self.best = self.counts[0]
        """The count in use between trials. Fewest first: more have to be worth it."""
        self.usual: dict[int, float] = {}
        """Seconds of a unit, per count."""
        self._untried: list[int] = list(self.counts[::-1]) if len(self.counts) > 1 else []
        self._tried: dict[int, list[float]] = {}
        self._slow: list[float] = []
        self._seconds = 0.0
        self._units = 0
        self._settled = SETTLED
        self._warm = False

    @property
    def count(self) -> int:
        """Threads for the next unit."""
        return self._untried[0] if self._untried else self.best

    def took(self, seconds: float) -> None:
        """Be told what the unit with `count` threads took, divided by its size."""
        if not self._warm:
            # Kernels are compiled in the first unit, and it may be the reading of the prompts.
            self._warm = True
        elif self._untried:
            self._judge(seconds)
        elif len(self.counts) > 1:
            self._watch(seconds)

    def _judge(self, seconds: float) -> None:
        # They take turns, so that a count which is hopeless now costs one unit and not `TRIES`.
        count = self._untried.pop(0)
        self._tried.setdefault(count, []).append(seconds)
        if len(self._tried[count]) < TRIES:
            self._untried.append(count)
        fastest = {c: min(tried) for c, tried in self._tried.items()}
        limit = HOPELESS * min(self.usual.get(self.best, math.inf), *fastest.values())
        self._untried = [c for c in self._untried if fastest.get(c, 0.0) <= limit]
        if self._untried:
            return
        self.usual |= {c: sorted(tried)[len(tried) // 2] for c, tried in self._tried.items()}
        self._decide()

    def _decide(self) -> None:
        """Take the fastest count, where it is worth the change."""
        before = self.best
        fastest = min(self.counts, key=lambda count: self.usual[count])
        if self.usual[fastest] <= GAIN * self.usual[before]:
            self.best = fastest
        changed = self.best != before
        self._settled = SETTLED if changed else min(MOST_SETTLED, 2 * self._settled)
        self._tried, self._slow, self._seconds, self._units = {}, [], 0.0, 0

    def _watch(self, seconds: float) -> None:
        """A unit between trials: is it time for another?"""
        self._seconds += seconds
        self._units += 1
        usual = self.usual[self.best]
        if seconds > SLOW * usual:
            self._slow.append(seconds)
        else:
            self._slow = []
            self.usual[self.best] = usual + MEMORY * (seconds - usual)
        if len(self._slow) >= 2 and self._units >= self._settled:
            self.usual[self.best] = min(self._slow[-2:])
            self._try_others()
        elif self._seconds * SHARE >= self._price():
            self._try_others()

    def _price(self) -> float:
        """Seconds that trying the other counts again would take, as far as they are known."""
        limit = HOPELESS * self.usual[self.best]
        return sum(
            seconds * (TRIES if seconds <= limit else 1)
            for count, seconds in self.usual.items()
            if count != self.best
        )

    def _try_others(self) -> None:
        """The next units try the counts that are not in use."""
        self._untried = [count for count in self.counts[::-1] if count != self.best]


def _use(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _in_use() -> int:
    import torch

    return torch.get_num_threads()


class Pace:
    """Gives each unit of work the threads that fit, and the process its own count back at the end.

        with Pace(counts_up_to(world.threads)) as pace:
            while ...:
                with pace.unit():
                    step()

    Every count is tried at the start, and again when two units in a row take much longer than
    usual or at most `SHARE` of the time has gone into it. One count: it is set and stays. None: the
    threads are left alone, as for work on a GPU. May be entered again and remembers what it
    measured. Takes a few microseconds a unit. Not for what must give the same bytes again (see
    above).
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        clock: Callable[[], float] = time.perf_counter,
        use: Callable[[int], None] = _use,
        in_use: Callable[[], int] = _in_use,
    ):
        self.chooser = Chooser(counts) if counts else None
        self.units: dict[int, int] = {}
        """Units of work done, per count of threads."""
        self._clock, self._use, self._in_use = clock, use, in_use
        self._before: int | None = None
        self._now: int | None = None

    def __enter__(self) -> Pace:
        if self.chooser is not None:
            self._before = self._now = self._in_use()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None and self._now != self._before:
            self._use(self._before)
        self._before = self._now = None

    @contextlib.contextmanager
    def unit(self, size: float = 1.0) -> Iterator[None]:
        """One unit of work. `size` is what its seconds are divided by (rows of a pass), so that
        units of different sizes compare. A unit that raises counts for nothing."""
        if self.chooser is None:
            yield
            return
        count = self.chooser.count
        if count != self._now:
            self._use(count)
            self._now = count
        start = self._clock()
        yield
        self.chooser.took((self._clock() - start) / size)
        self.units[count] = self.units.get(count, 0) + 1
