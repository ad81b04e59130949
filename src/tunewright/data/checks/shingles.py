"""Near-duplicates without keeping texts: MinHash signatures of word triples, candidates by bands,
verified by the estimated overlap.

A text becomes the set of its runs of three words (Chinese: three characters), lower case, without
punctuation. 64 hash functions keep their smallest
value each, 16 bits of it: 128 bytes a text. The share of equal values estimates the Jaccard overlap
of two sets, with a standard deviation of 0.05 at
0.8. Rows that agree in one of 16 bands of four values are compared; at an overlap of 0.8 a pair is
missed with a chance of 0.02 %.
What stands in more than a tenth of all rows (an instruction before every text) is left out of the
comparison.
Sources: Broder 1997 (resemblance), Li and König 2010 (b-bit MinHash).
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

SLOTS, BANDS = 64, 16
WIDTH = SLOTS // BANDS
THRESHOLD = 0.7
"""From this estimated overlap on, two rows are near-duplicates: about one changed word in
seventeen."""
FEWEST = 8
"""Shorter texts have too few triples to compare; they count only as exact duplicates."""
MOST_CHARACTERS = 30_000
"""About 5,000 English words: what follows in longer texts is not compared."""
BOILERPLATE_SHARE, BOILERPLATE_ROWS = 0.1, 50
FEWEST_SLOTS = 16
EMPTY = b"\0" * (2 * SLOTS)

_words = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


@cache
def _functions() -> tuple[Any, Any]:
    """Odd factors and addends of the hash functions, shape (64, 1)."""
    import numpy

    draw = random.Random(20260)
    factors = numpy.array([draw.getrandbits(64) | 1 for _ in range(SLOTS)], dtype=numpy.uint64)[
        :, None
    ]
    addends = numpy.array([draw.getrandbits(64) for _ in range(SLOTS)], dtype=numpy.uint64)[:, None]
    return factors, addends


def signature(text: str) -> bytes:
    """128 bytes that stand for a text; empty where it is too short to be compared."""
    import numpy

    words = _words.findall(text[:MOST_CHARACTERS].lower())
    if len(words) < FEWEST + 2:
        return b""
    one = numpy.fromiter(
        (zlib.crc32(w.encode("utf-8", "surrogatepass")) for w in words),
        dtype=numpy.uint64,
        count=len(words),
    )
    triples = (
        (one[:-2] * numpy.uint64(0x9E3779B97F4A7C15))
        ^ (one[1:-1] * numpy.uint64(0xC2B2AE3D27D4EB4F))
        ^ (one[2:] * numpy.uint64(0x165667B19E3779F9))
    )
    factors, addends = _functions()
    smallest = (triples[None, :] * factors + addends).min(axis=1)
    # The lowest bits of a product depend on few bits of its factors; the middle ones on all.
    return bytes(((smallest >> numpy.uint64(20)) & numpy.uint64(0xFFFF)).astype("<u2").tobytes())


def near_pairs(signatures: bytearray, usable: Any) -> dict[int, int]:
    """For every row that nearly repeats an earlier one, that earlier row. `usable[i]` says that row
    i has a signature and is no exact repetition."""
    import numpy

    table = numpy.frombuffer(signatures, "<u2").reshape(-1, SLOTS)
    rows = numpy.flatnonzero(usable).astype(numpy.int32)
    if len(rows) < 2:
        return {}
    common = _boilerplate(table, rows)
    found: dict[int, int] = {}
    for band in range(BANDS):
        # One column at a time: a table of two million rows is not copied.
        key = numpy.zeros(len(rows), dtype=numpy.uint64)
        live = numpy.zeros(len(rows), dtype=numpy.uint8)
        for slot in range(band * WIDTH, (band + 1) * WIDTH):
            values = table[rows, slot]
            hidden = common[slot][values]
            live += ~hidden
            key = (key << numpy.uint64(16)) | numpy.where(hidden, numpy.uint16(0), values)
        # A band of boilerplate alone would pair every row with every other.
        kept = numpy.flatnonzero(live >= 2).astype(numpy.int32)
        order = kept[numpy.argsort(key[kept], kind="stable")]
        same = key[order[1:]] == key[order[:-1]]
        for left, right in _candidates(order, same):
            one, two = int(rows[left]), int(rows[right])
            if two not in found and _alike(table[one], table[two], common):
                found[two] = one
    return found


def _boilerplate(table: Any, rows: Any) -> Any:
    """For each slot, which of its 65,536 values are shared by so many rows that they belong to a
    form and not to the row."""
    import numpy

    common = numpy.zeros((SLOTS, 1 << 16), dtype=bool)
    least = max(BOILERPLATE_ROWS, int(BOILERPLATE_SHARE * len(rows)))
    for slot in range(SLOTS):
        common[slot] = numpy.bincount(table[rows, slot], minlength=1 << 16) > least
    return common


def _candidates(order: Any, same: Any) -> Iterator[tuple[int, int]]:
    """Pairs to compare: each row of a run of equal keys with the row before it and with the run's
    first. Earlier rows stand first."""
    import numpy

    first, last = 0, -2
    for k in numpy.flatnonzero(same).tolist():
        first = first if k == last + 1 else k
        last = k
        yield int(order[k]), int(order[k + 1])
        if first != k:
            yield int(order[first]), int(order[k + 1])


def _alike(left: Any, right: Any, common: Any) -> bool:
    """Whether the overlap outside boilerplate reaches the threshold."""
    import numpy

    equal = left == right
    form = equal & common[numpy.arange(SLOTS), left]
    counted = SLOTS - int(form.sum())
    return counted >= FEWEST_SLOTS and float((equal & ~form).sum()) / counted >= THRESHOLD
