"""Where the seconds of a command went: each counts for one part, the innermost that is running."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PARTS = ("load", "data", "ask", "train", "evaluate", "checkpoint", "report")
"""What a run spends time on. `load`: libraries, tokenizer and weights, also those of the reload."""
OTHER = "other"


class Stopwatch:
    """Runs from the moment it is made. `with watch.of("load"):` marks a part, which may hold
    others."""

    def __init__(self) -> None:
        self.started = self._since = time.perf_counter()
        self._seconds = dict.fromkeys((*PARTS, OTHER), 0.0)
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
        self._count()
        return dict(self._seconds)

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._running[-1]] += now - self._since
        self._since = now
