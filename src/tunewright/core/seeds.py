"""Named random streams: one seed in the run file, one independent stream for each purpose.

Two parts that draw numbers never share a stream, so adding a draw in one place cannot change
another. A stream is a pure function of (seed, name, counters), so nothing needs to be stored to
resume it.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any


def stream_seed(seed: int, name: str, *counters: int) -> int:
    """A 63-bit seed for the stream `name` at `counters` (epoch, step ...), the same on every
    machine and Python version."""
    text = ":".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str, *counters: int) -> random.Random:
    """A Python generator for the stream."""
    return random.Random(stream_seed(seed, name, *counters))


def permutation(seed: int, name: str, size: int, *counters: int) -> list[int]:
    """A shuffled `range(size)`, a pure function of its arguments."""
    order: list[Any] = list(range(size))
    stream(seed, name, *counters).shuffle(order)
    return order
