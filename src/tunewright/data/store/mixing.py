"""How much of an epoch each source makes up: shares, caps, repeats and a temperature, all by
drawing row numbers.

`weight` of an entry is another thing: it scales the loss of its rows and changes no count. What is
drawn depends on the seed and the counts alone.

An entry of `data.train` may say one of
- `repeat: 2.5`  every row twice in an epoch, and half of them a third time; under 1 a part of the
  rows;
- `share: 0.3`   three tenths of the rows of an epoch, whatever the file holds: a part of it, or its
  rows several times;
and besides `cap: 1000`, at most so many different rows. `data.mixing: {temperature: 2}` sets the
share of every entry that says neither to its number
of rows to the power 1 / temperature (then made to add up): 1 changes nothing, more makes small
sources weigh more. The number of rows of an epoch stays
the same under a temperature and under shares that add up to 1; with other shares the entries
without one keep all their rows.
Source of the temperature: Arivazhagan et al. 2019 (massively multilingual translation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.seeds import permutation

if TYPE_CHECKING:
    import numpy as np

KEYS = ("repeat", "share", "cap")


def require_sensible(entry: dict[str, Any], where: str) -> None:
    """Raise DataError for a repeat, share or cap that is no usable number, or a repeat beside a
    share."""
    for key in KEYS:
        value = entry.get(key)
        if value is None:
            continue
        number = (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and value > 0
        )
        if (
            not number
            or (key == "cap" and not isinstance(value, int))
            or (key == "share" and value > 1)
        ):
            raise DataError.of("E-DATA-62", where, key=key, value=value)
    if entry.get("repeat") is not None and entry.get("share") is not None:
        raise DataError.of("E-DATA-63", where)


def counts_of(
    available: Sequence[int], entries: Sequence[dict[str, Any]], temperature: float
) -> list[int]:
    """Rows of each entry in an epoch, of which `available` are different. Raises DataError for
    shares that leave nothing for the others."""
    wanted: list[float] = [
        float(n) * entry.get("repeat", 1.0) for n, entry in zip(available, entries, strict=True)
    ]
    free = [
        i
        for i, entry in enumerate(entries)
        if entry.get("repeat") is None and entry.get("share") is None and available[i]
    ]
    if temperature != 1 and free:
        powers = [available[i] ** (1 / temperature) for i in free]
        total = sum(wanted[i] for i in free)
        for i, power in zip(free, powers, strict=True):
            wanted[i] = total * power / sum(powers)
    shared = {
        i: float(entry["share"])
        for i, entry in enumerate(entries)
        if entry.get("share") is not None and available[i]
    }
    if shared:
        taken, rest = (
            sum(shared.values()),
            sum(wanted[i] for i in range(len(entries)) if i not in shared),
        )
        if (taken > 1 + 1e-9) or (rest and taken > 1 - 1e-9):
            raise DataError.of("E-DATA-64", "data.train", total=f"{taken:g}")
        total = rest / (1 - taken) if rest else sum(wanted[i] for i in shared) / taken
        for i, share in shared.items():
            wanted[i] = total * share
    return [max(1, round(n)) if has else 0 for n, has in zip(wanted, available, strict=True)]


def mixed(
    rows: np.ndarray,
    sources: np.ndarray,
    entries: Sequence[dict[str, Any]],
    config: DataConfig,
    seed: int,
) -> tuple[np.ndarray, list[dict[str, int]]]:
    """The rows of an epoch, ascending, some more than once, and for each entry how many different
    ones it has and how many rows it gives.

    `rows` are numbers of rows that may be trained on, `sources[row]` the entry each belongs to. The
    second list is empty where nothing is mixed.
    """
    import numpy as np

    temperature = config.mixing.temperature
    if temperature == 1 and not any(
        entry.get(key) is not None for entry in entries for key in KEYS
    ):
        return rows, []
    owner = sources[rows]
    pools = []
    for number, entry in enumerate(entries):
        pool = rows[owner == number]
        cap = entry.get("cap")
        pools.append(
            _drawn(pool, cap, seed, f"cap:{number}")
            if cap is not None and cap < len(pool)
            else pool
        )
    counts = counts_of([len(pool) for pool in pools], entries, temperature)
    parts = []
    for number, (pool, count) in enumerate(zip(pools, counts, strict=True)):
        if count:
            whole, rest = divmod(count, len(pool))
            parts += [pool] * whole + (
                [_drawn(pool, rest, seed, f"mixing:{number}")] if rest else []
            )
    said = [{"rows": len(pool), "used": count} for pool, count in zip(pools, counts, strict=True)]
    return np.sort(np.concatenate(parts)) if parts else rows[:0], said


def _drawn(pool: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """`count` different ones of `pool`."""
    import numpy as np

    return pool[np.array(sorted(permutation(seed, name, len(pool))[:count]), dtype="<i8")]
