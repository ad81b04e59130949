"""Long sequences that are never held in memory: put one after the other, picked from, and taken in
blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, TypeVar

T = TypeVar("T")
BLOCK = 512
"""Samples that are cut into passes together where nobody says which belong together."""


def blocks(items: Iterable[T], size: int = BLOCK) -> Iterator[list[T]]:
    """`items` in lists of at most `size`, in order."""
    left = iter(items)
    while block := list(islice(left, size)):
        yield block


class Picked(Sequence[T]):
    """Some items of a sequence, read when they are asked for. A slice is a list."""

    def __init__(self, items: Sequence[T], which: Sequence[int]):
        self.items, self.which = items, which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, place: Any) -> Any:
        return (
            [self.items[i] for i in self.which[place]]
            if isinstance(place, slice)
            else self.items[self.which[place]]
        )


class Joined(Sequence[T]):
    """Sequences one after the other, read when they are asked for. A slice is a list."""

    def __init__(self, *parts: Sequence[T]):
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        at = place + len(self) if place < 0 else place
        if not 0 <= at < len(self):
            raise IndexError(place)
        part = bisect_right(self.ends, at)
        return self.parts[part][at - (self.ends[part - 1] if part else 0)]
