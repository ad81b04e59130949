"""Figures of a store: kinds of rows, lengths, learnt tokens, and how many tokens begin alike."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunewright.data.store.columns import KINDS, Store, Writer

if TYPE_CHECKING:
    import numpy as np

SHOWN_FILES = 5
"""Files that are named for each kind of rows."""
BLOCK = 16
"""Tokens of every sequence that are looked at together when common beginnings are counted."""
BLOCK_TOKENS = 1 << 22
"""Tokens that are looked at together at most."""
COUNTED = "token_end span span_end branch_end answers stops tokens kind".split()
TOKEN_KEYS = (
    "tokens_total",
    "learnt_tokens",
    "learnt_share",
    "answers",
    "stop_learnt_share",
    "length_percentiles",
    "shared_prefix",
    "example",
    "template",
)


def kinds_of(writer: Writer, used: np.ndarray, files: Sequence[str]) -> dict[str, Any]:
    """Kind of rows -> how many of the rows `used` are of it, and in which files: for each the
    number of its first such row."""
    import numpy as np

    kind, file, number = (writer.column(name) for name in ("kind", "file", "number"))
    found: dict[str, Any] = {}
    for code in np.unique(kind[used]):
        mine = used[kind[used] == code]
        _, first, counts = np.unique(file[mine], return_index=True, return_counts=True)
        places = [
            {"file": files[file[mine[at]]], "rows": int(n), "first_row": int(number[mine[at]])}
            for at, n in zip(first, counts, strict=True)
        ]
        found[KINDS[code]] = {
            "rows": len(mine),
            "files": sorted(places, key=lambda place: -place["rows"])[:SHOWN_FILES],
        }
    return dict(sorted(found.items()))


def token_facts(writer: Writer, train: np.ndarray, template: str) -> dict[str, Any]:
    """The keys of TOKEN_KEYS, over the rows `train`, whose tokens stand in the columns."""
    import numpy as np

    store = Store({name: writer.column(name) for name in COUNTED}, {})
    c = store.columns
    which = store.branches_of(train)
    starts = np.concatenate([[0], c["token_end"][:-1]])[which] if len(which) else np.empty(0, "<i8")
    lengths = c["token_end"][which] - starts if len(which) else starts
    learnt = _learnt(c["span"], c["span_end"], which) if len(which) else 0
    total = int(lengths.sum())
    answers, stops = (int(c[name][train].sum()) for name in ("answers", "stops"))
    return {
        "tokens_total": total,
        "learnt_tokens": learnt,
        "learnt_share": learnt / total if total else 0.0,
        "answers": answers,
        "stop_learnt_share": stops / answers if answers else 0.0,
        "length_percentiles": percentiles(lengths),
        "shared_prefix": _shared(c["tokens"], starts, lengths),
        "example": None,
        "template": template,
    }


def _learnt(span: np.ndarray, span_end: np.ndarray, which: np.ndarray) -> int:
    """Learnt tokens of the chosen branches."""
    import numpy as np

    sizes = np.diff(span.reshape(-1, 2), axis=1)[:, 0]
    summed = np.concatenate([[0], np.cumsum(sizes, dtype="<i8")])
    begins = np.concatenate([[0], span_end[:-1]])
    return int((summed[span_end[which]] - summed[begins[which]]).sum())


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Nearest-rank percentiles of lengths in tokens."""
    import numpy as np

    ordered = np.sort(lengths) if len(lengths) else np.zeros(1, "<i8")
    ranks = {
        name: int(ordered[max(0, -int(-share * len(ordered) // 1) - 1)])
        for name, share in (("50", 0.5), ("90", 0.9), ("99", 0.99))
    }
    return {"min": int(ordered[0]), **ranks, "max": int(ordered[-1])}


def shared_prefix(sequences: Sequence[Sequence[int]]) -> dict[str, float | int]:
    """Token rows of all sequences, and how many are left when every common beginning is computed
    once (the size of their trie)."""
    import numpy as np

    lengths = np.array([len(s) for s in sequences], "<i8")
    tokens = np.array([t for s in sequences for t in s], "<i4")
    return _shared(tokens, np.cumsum(lengths) - lengths, lengths)


def _shared(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> dict[str, float | int]:
    """`shared_prefix` of sequences in one column, level by level: sequences with the same beginning
    have one class, and one alone needs no more looks."""
    import numpy as np

    logical = int(lengths.sum())
    here = np.flatnonzero(lengths > 0)
    group = np.zeros(len(here), "<i8")
    nodes = depth = 0
    while len(here):
        # Few levels at a time of many sequences: a block of two million rows and 16 levels, and its
        # copies, took 400 MB.
        width = min(BLOCK, max(1, BLOCK_TOKENS // len(here)), int((lengths[here] - depth).max()))
        sizes = np.minimum(lengths[here] - depth, width)
        block = _block(tokens, starts[here] + depth, sizes, width)
        for column in range(width):
            token = block[:, column]
            # Most levels of a shared beginning agree everywhere; only the others need sorting.
            first = np.zeros(int(group.max()) + 1, "<i8")
            first[group[::-1]] = np.arange(len(group))[::-1]
            if not (token == token[first[group]]).all():
                group = np.unique(group << 32 | token.astype("<i8"), return_inverse=True)[1]
            members = np.bincount(group)
            nodes += int((members > 0).sum())
            depth += 1
            alone = members[group] == 1
            nodes += int((lengths[here[alone]] - depth).sum())
            stays = ~alone & (lengths[here] > depth)
            if not stays.all():
                here, block = here[stays], block[stays]
                group = np.unique(group[stays], return_inverse=True)[1]
            if not len(here):
                break
        _forget(tokens)
    return {
        "rows_logical": logical,
        "rows_physical_estimate": nodes,
        "share": (logical - nodes) / logical if logical else 0.0,
    }


def _block(
    tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray, width: int, rows: int = 1 << 16
) -> np.ndarray:
    """`width` tokens from each start on, -1 behind a sequence's end; a mapped column's pages are
    let go on the way."""
    import numpy as np

    out = np.full((len(starts), width), -1, "<i4")
    steps = np.arange(width)
    for at in range(0, len(starts), rows):
        begin, size = starts[at : at + rows], sizes[at : at + rows]
        inside = steps[None, :] < size[:, None]
        place = np.where(inside, begin[:, None] + steps[None, :], 0)
        out[at : at + rows] = np.where(inside, tokens[place], -1)
        _forget(tokens)
    return out


def _forget(column: np.ndarray) -> None:
    """Tell the system that the pages of a mapped column are not needed now: they would count as
    this program's memory."""
    mapped = getattr(column, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED)
