"""Short ways through the data room for tests: a file's rows in a list, rows in memory encoded and
checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tunewright.core.types import Row, Sample
from tunewright.data.checks import HELD_OUT, TRAIN, Finding, all_checks, conclude
from tunewright.data.files.reading import find_parts, stream
from tunewright.data.files.source import RawRow
from tunewright.data.formats.shaping import Dropped
from tunewright.data.labels import encode_rows
from tunewright.data.store import counting
from tunewright.data.store.splitting import group_key, hash64, split_groups
from tunewright.text.renderer import Renderer


def data_files(place: str, folder: str | None = None) -> list[Path]:
    """The files that `place` names and that are trained on."""
    return find_parts(place, folder).train


@dataclass
class RawFile:
    """All rows of one file, and what `stream` says of it."""

    kind: str
    encoding: str
    rows: list[RawRow]
    notes: Counter[str]


def read(path: Path, *, whole: bool = False) -> RawFile:
    """A file gone through to its end."""
    opened = stream(path, whole=whole)
    return RawFile(opened.kind, opened.encoding, list(opened.rows), opened.notes)


@dataclass
class Encoded:
    """Samples in the order of their rows (`sample.index` is the row's index), what was dropped, and
    what happened on the way, counted."""

    samples: list[Sample] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def encode(
    rows: Sequence[Row],
    renderer: Renderer,
    *,
    max_tokens: int | None,
    oversize: Literal["drop", "truncate"] = "drop",
) -> Encoded:
    """Every row encoded as a set is."""
    out = Encoded()
    made = encode_rows(rows, renderer, max_tokens=max_tokens, oversize=oversize)
    for index, one in enumerate(made):
        if isinstance(one, Dropped):
            out.dropped.append(one)
        else:
            out.samples.append(one.sample(index, rows[index].origin))
            out.notes.update(one.notes)
            out.notes.update({"thought_tokens": one.thought_tokens} if one.thought_tokens else ())
    return out


def check_rows(
    train_rows: Sequence[Row],
    train: Sequence[Sample],
    held_rows: Sequence[Row],
    held: Sequence[Sample],
    report: dict[str, Any],
    control: Iterable[str] = (),
) -> list[Finding]:
    """Every check over rows in memory; the sample lists are empty where nothing was encoded.
    `report` gives the counts of dropped rows."""
    checks = all_checks(control)
    for side, rows, samples in ((TRAIN, train_rows, train), (HELD_OUT, held_rows, held)):
        for index, row in enumerate(rows):
            sample = samples[index] if len(samples) else None
            for one in checks:
                one.add(side, index, row.origin, one.feature(row, sample))
    return conclude((found for one in checks for found in one.findings()), report)


def split(rows: Sequence[Row], held_out: float | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, each in their own order."""
    groups = np.frombuffer(b"".join(hash64(group_key(row)) for row in rows), "<u8")
    chosen = set(split_groups(groups, held_out, seed).tolist())
    kept = [row for i, row in enumerate(rows) if i not in chosen]
    return kept, [row for i, row in enumerate(rows) if i in chosen]


def shared_prefix(sequences: Sequence[Sequence[int]]) -> dict[str, float | int]:
    """`counting.shared_prefix` of lists of tokens."""
    lengths = np.array([len(s) for s in sequences], "<i8")
    tokens = np.array([t for s in sequences for t in s], "<i4")
    return counting.shared_prefix(tokens, np.cumsum(lengths) - lengths, lengths)
