"""Counts of a server, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds up to which requests are counted together."""
PREFIX = "tunewright_"


@dataclass
class Histogram:
    """How many took how long."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.total += seconds
        for i, bound in enumerate(BOUNDS):
            if seconds <= bound:
                self.counts[i] += 1
                return
        self.counts[-1] += 1

    def lines(self, name: str) -> list[str]:
        """As Prometheus has it: counts of all up to each bound."""
        found, so_far = [], 0
        for bound, count in zip((*BOUNDS, "+Inf"), self.counts, strict=True):
            so_far += count
            found.append(f'{PREFIX}{name}_bucket{{le="{bound}"}} {so_far}')
        return [*found, f"{PREFIX}{name}_sum {self.total:.6f}", f"{PREFIX}{name}_count {so_far}"]


class Metrics:
    """Counters since the start. Labels come from a fixed set, so that no client makes them grow."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = defaultdict(int)
        """(route, status) -> requests."""
        self.tokens: dict[str, int] = {"prompt": 0, "generation": 0}
        self.cancelled = 0
        self.first_token, self.whole = Histogram(), Histogram()
        self._lock = threading.Lock()

    def request(self, route: str, status: int) -> None:
        """A request was answered."""
        with self._lock:
            self.requests[route, status] += 1

    def text(self, **gauges: float) -> str:
        """The whole page; `gauges` are what is so now."""
        lines = [f"# TYPE {PREFIX}requests_total counter"]
        with self._lock:
            for (route, status), count in sorted(self.requests.items()):
                labels = f'route="{route}",status="{status}"'
                lines.append(f"{PREFIX}requests_total{{{labels}}} {count}")
        for name, count in self.tokens.items():
            lines.append(f"# TYPE {PREFIX}{name}_tokens_total counter")
            lines.append(f"{PREFIX}{name}_tokens_total {count}")
        lines.append(f"# TYPE {PREFIX}requests_cancelled_total counter")
        lines.append(f"{PREFIX}requests_cancelled_total {self.cancelled}")
        for name, value in gauges.items():
            lines += [f"# TYPE {PREFIX}{name} gauge", f"{PREFIX}{name} {value:g}"]
        for name, kept in (
            ("time_to_first_token_seconds", self.first_token),
            ("request_seconds", self.whole),
        ):
            lines += [f"# TYPE {PREFIX}{name} histogram", *kept.lines(name)]
        return "\n".join(lines) + "\n"
