"""Which rows are held out: by a hash of the question, so that the same question never stands on both sides.

The order in which questions are chosen depends on the seed and the question alone, not on the other rows. Questions are taken in that order as
long as they fit, so the count is met exactly unless repeated questions make that impossible. Rows for training always remain.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.core.errors import DataError, problem
from tunewright.core.seeds import stream_seed
from tunewright.core.types import PlainText, Row

DEFAULT_SHARE = 0.1
FEWEST_ROWS = 20


def question_key(row: Row) -> str:
    """What makes two rows ask the same: the turns before the last answer, or a text itself. Weights do not count."""
    if isinstance(row, PlainText):
        return row.text
    return "\x1e".join(f"{m.role}\x1f{m.content}" for m in row.question())


def wanted_rows(held_out: float | None, num_rows: int) -> int:
    """How many rows a share, a count or None (0.1, and 0 under 20 rows) asks for. Raises DataError for what cannot be done."""
    if held_out is None:
        return round(DEFAULT_SHARE * num_rows) if num_rows >= FEWEST_ROWS else 0
    # 1 is one row; 1.0 would be a share of everything.
    whole = float(held_out).is_integer() and not (isinstance(held_out, float) and held_out == 1)
    if held_out < 0 or (held_out >= 1 and (not whole or held_out >= num_rows)):
        raise DataError(problem("E-DATA-15", "data.held_out", value=held_out, rows=num_rows))
    if held_out >= 1 or held_out == 0:
        return int(held_out)
    return min(max(1, round(held_out * num_rows)), num_rows - 1)


def split_indices(keys: Sequence[str], held_out: float | None, seed: int) -> list[int]:
    """Indices of the held-out rows, ascending. `keys[i]` is the question of row i."""
    wanted = wanted_rows(held_out, len(keys))
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    chosen: list[int] = []
    if wanted:
        for key in sorted(groups, key=lambda k: (stream_seed(seed, "held_out:" + k), k)):
            if len(chosen) + len(groups[key]) <= wanted:
                chosen += groups[key]
            if len(chosen) == wanted:
                break
    return sorted(chosen)


def split(rows: Sequence[Row], held_out: float | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, each in their own order. `held_out` is a share under 1, a count, or None for the default."""
    chosen = set(split_indices([question_key(row) for row in rows], held_out, seed))
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]
