"""Which samples of a step each rank takes: what shares a beginning stays together, and the rows are
balanced.

Pure integers in, pure integers out; all ranks compute the same without asking another. Samples
that begin alike lie side by side (as in `tree.cut_passes`), and the sorted line is cut into pieces
so that the fullest has as few rows as possible. Each cut computes a shared beginning once more:
what that loses counts like time, so where samples are mostly beginning fewer pieces are made than
there are ranks. A rank that gets none has nothing to do in this step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tunewright.core.types import Sample
from tunewright.engine.tree import in_order, rows_needed

MOST_UNEVEN = 1.5
"""How much longer than at the most even cut the fullest rank may take, so that sharing is kept."""
LOST = 3.0
"""What a row that is computed once more counts, in rows of the fullest rank. With 2, steps of four
short rows under a common system prompt kept less than nine tenths of their sharing (docs/LOG.md).
"""
PASS_ROWS = 256
"""What a pass costs in rows, however few it has."""
NEAR_END = 0.5
"""A piece is cut where least is shared, in this last part of what would fit into it."""


@dataclass(frozen=True)
class Portions:
    """The samples of a step by rank, as places in its list, with the rows that each computes."""

    places: list[list[int]]
    rows: list[int]
    alone_rows: int
    """Rows that one process would compute."""
    plain_rows: int
    """Rows without any sharing."""

    @property
    def imbalance(self) -> float:
        """Rows of the fullest rank, as a multiple of the mean."""
        total = sum(self.rows)
        return max(self.rows) * len(self.rows) / total if total else 1.0

    @property
    def kept_share(self) -> float:
        """Share of the rows saved by one process that the ranks still save."""
        saved = self.plain_rows - self.alone_rows
        return (self.plain_rows - sum(self.rows)) / saved if saved else 1.0


def portions(samples: Sequence[Sample], world: int, *, padded: bool = False) -> Portions:
    """Share out the samples of a step among `world` ranks. With `padded` rows nothing is shared and
    samples go where least was given."""
    if not samples:
        return Portions([[] for _ in range(world)], [0] * world, 0, 0)
    if padded:
        return _by_size(samples, world)
    order, own, shared = in_order(samples)
    plain = sum(rows_needed(branch) for sample in samples for branch in sample.branches)
    line = _Line(own, shared)
    alone = line.rows([0])
    tries = [line.even(count, near) for count in range(1, world + 1) for near in (1.0, NEAR_END)]
    chosen = _choose(line, tries)
    bounds = [*chosen, len(order)]
    places = [sorted(order[a:b]) for a, b in pairwise(bounds)]
    rows = line.fills(chosen)
    rest = world - len(places)
    return Portions(places + [[] for _ in range(rest)], rows + [0] * rest, alone, plain)


def _choose(line: _Line, tries: list[list[int]]) -> list[int]:
    """The cut with the fewest rows on its fullest rank and, `LOST` times, lost to sharing, among
    those whose fullest rank takes at most `MOST_UNEVEN` times as long as at the most even cut."""
    alone = line.rows([0])
    costs = [(max(line.fills(cut)), line.rows(cut) - alone) for cut in tries]
    best = min(fullest for fullest, _ in costs) + PASS_ROWS
    even = [i for i, (fullest, _) in enumerate(costs) if fullest + PASS_ROWS <= MOST_UNEVEN * best]
    return tries[min(even, key=lambda i: (costs[i][0] + LOST * costs[i][1], costs[i][0]))]


@dataclass(frozen=True)
class _Line:
    """Samples in their order: `own[i]` rows of sample i, of which `shared[i]` also stand in the one
    before it."""

    own: list[int]
    shared: list[int]

    def fills(self, starts: list[int]) -> list[int]:
        """Rows of the pieces that begin at `starts`."""
        found = []
        for a, b in zip(starts, [*starts[1:], len(self.own)], strict=True):
            found.append(self.own[a] + sum(self.own[i] - self.shared[i] for i in range(a + 1, b)))
        return found

    def rows(self, starts: list[int]) -> int:
        """Rows of all pieces."""
        return sum(self.own) - sum(self.shared) + sum(self.shared[i] for i in starts if i)

    def cut(self, limit: int, near: float) -> list[int]:
        """Where pieces begin that have at most `limit` rows each. `near`: a piece may end earlier
        than it must, down to this part of its samples, where least is shared."""
        starts, used, i = [0], self.own[0], 1
        while i < len(self.own):
            extra = self.own[i] - self.shared[i]
            if used + extra > limit:
                first = max(starts[-1] + 1, i - int((i - starts[-1]) * (1 - near)))
                i = min(range(first, i + 1), key=lambda place: (self.shared[place], -place))
                starts.append(i)
                used = self.own[i]
            else:
                used += extra
            i += 1
        return starts

    def even(self, count: int, near: float) -> list[int]:
        """At most `count` pieces of the smallest fullest one."""
        low, high = max(self.own), max(max(self.own), self.rows([0]))
        while low < high:
            middle = (low + high) // 2
            if len(self.cut(middle, near)) > count:
                low = middle + 1
            else:
                high = middle
        return self.cut(high, near)


def _by_size(samples: Sequence[Sample], world: int) -> Portions:
    sizes = [sum(map(rows_needed, sample.branches)) for sample in samples]
    places: list[list[int]] = [[] for _ in range(world)]
    rows = [0] * world
    for i in sorted(range(len(samples)), key=lambda i: -sizes[i]):
        rank = rows.index(min(rows))
        places[rank].append(i)
        rows[rank] += sizes[i]
    return Portions([sorted(mine) for mine in places], rows, sum(sizes), sum(sizes))
