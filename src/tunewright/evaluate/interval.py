"""How sure a share is: Wilson's interval for k right out of n.

The usual p +- 1.96 sqrt(p(1-p)/n) says "100 % +- 0" after three right answers; Wilson's stays
inside [0, 1] and covers close to 95 % for small n and for shares near 0 and 1. Source: Wilson 1927;
Brown, Cai and DasGupta 2001 compare the choices.
"""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""The standard normal's 97.5 % point."""


def wilson(right: int, count: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) of the share `right / count`; (0, 1) for no rows, about which nothing is known.
    Raises ValueError unless 0 <= right <= count."""
    if not 0 <= right <= count:
        raise ValueError(f"{right} of {count}")
    if not count:
        return 0.0, 1.0
    share, z2 = right / count, z * z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    # At the ends the formula gives exactly 0 and 1; rounding must not leave them.
    return (0.0 if right == 0 else middle - half), (1.0 if right == count else middle + half)
