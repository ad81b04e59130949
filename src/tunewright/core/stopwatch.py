"""Where the seconds of a command went: each counts for one part, the innermost that is running; and
what it got of the processors meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tunewright.core.machine import all_processor_seconds, own_processor_seconds

PARTS = ("load", "data", "ask", "train", "evaluate", "checkpoint", "report")
"""What a run spends time on. `load`: libraries, tokenizer and weights, also those of the reload."""
OTHER = "other"
LEAST_OWN = 0.8
"""Processors that a program which only computes uses at least, as long as nobody stops it."""
MOST_TAKEN = 0.1
"""Share of the processors of a program that others may take without it being slower by more than a
run differs from the next."""


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and processor seconds meanwhile: of this program with all that it
    started, and of all others; None where the system does not say."""

    wall: float = 0.0
    own: float = 0.0
    others: float | None = 0.0

    def __add__(self, more: Spent) -> Spent:
        unknown = self.others is None or more.others is None
        others = None if unknown else (self.others or 0.0) + (more.others or 0.0)
        return Spent(self.wall + more.wall, self.own + more.own, others)

    @property
    def used(self) -> float:
        """Processors that this program used in the mean."""
        return self.own / self.wall if self.wall else 0.0

    @property
    def used_by_others(self) -> float | None:
        """Processors that all other programs used in the mean."""
        return None if self.others is None else self.others / self.wall if self.wall else 0.0

    def disturbed(self, threads: int, *, computes: bool = True) -> bool:
        """Whether `threads` threads did not get their processors: others used more than the machine
        has besides, or this program was stopped. Where it does not compute all the time
        (`computes` False: it reads files, or waits for a GPU) only others are looked at."""
        free = (os.cpu_count() or 1) - threads
        others = self.used_by_others
        taken = 0.0 if others is None else max(0.0, others - max(0, free))
        return taken > MOST_TAKEN * threads or (computes and self.used < LEAST_OWN)


class Laps:
    """Counts from the moment it is made, or from the last lap."""

    def __init__(self) -> None:
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float | None]:
        return time.perf_counter(), own_processor_seconds(), all_processor_seconds()

    def lap(self) -> Spent:
        """What was spent since the last lap; a new one begins."""
        (wall, own, everything), now = self._last, self._now()
        self._last, mine = now, max(0.0, now[1] - own)
        others = None
        if everything is not None and now[2] is not None:
            others = max(0.0, now[2] - everything - mine)
        return Spent(now[0] - wall, mine, others)


class Stopwatch:
    """Runs from the moment it is made. `with watch.of("load"):` marks a part, which may hold
    others."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._laps = Laps()
        self._spent = dict.fromkeys((*PARTS, OTHER), Spent())
        self._running = [OTHER]

    @property
    def wall(self) -> float:
        """Seconds in all so far."""
        return time.perf_counter() - self.started

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Inside, time counts for `part`, one of PARTS."""
        self._count()
        self._running.append(part)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def parts(self) -> dict[str, float]:
        """Seconds of each part so far and of everything else; together they are `wall`."""
        return {part: spent.wall for part, spent in self.spent().items()}

    def spent(self) -> dict[str, Spent]:
        """What each part took so far, with the processors that it got."""
        self._count()
        return dict(self._spent)

    def _count(self) -> None:
        self._spent[self._running[-1]] += self._laps.lap()
