"""Short ways through the data room for tests: a file's rows in a list, rows in memory encoded and
checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunewright.core.types import Row, Sample
from tunewright.data.checks import HELD_OUT, TRAIN, Finding, all_checks, conclude
from tunewright.data.files.reading import find_parts, stream
from tunewright.data.files.source import RawRow
from tunewright.data.formats.shaping import Dropped
from tunewright.data.labels import encode_rows
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
