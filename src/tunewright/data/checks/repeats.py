"""Repeated rows: word for word, nearly, on both sides of the split, or with another answer."""

from __future__ import annotations

from array import array
from typing import Any

from tunewright.core.types import Judged, Origin, PlainText, Preference, Prompt, Row, Sample
from tunewright.data.checks import shingles
from tunewright.data.checks.base import (
    HELD_OUT,
    SHOWN_PLACES,
    Finding,
    Places,
    Severity,
    hash64,
    turns_of,
    view_of,
)
from tunewright.data.store.splitting import question_key

SHORT_ANSWER = 40
"""Characters up to which an answer is a label rather than a text."""
CONSTANT_WARN, CONSTANT_LABELS, CONSTANT_STOP = 0.5, 0.9, 0.98
FEWEST_ROWS = 10
FEW_LABELS = 50


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


class Repeats:
    """Exact and near duplicates, held-out rows that are also trained on, the same question with
    other answers, one answer for most rows."""

    name = "repeats"

    def __init__(self) -> None:
        # For a row: 8 bytes each for the whole, question, subject and answer, 128 for the
        # signature, 10 for the place, 1 for the rest.
        self._whole, self._question, self._subject, self._answer = (
            array("Q"),
            array("Q"),
            array("Q"),
            array("Q"),
        )
        self._flags = bytearray()
        self._signatures = bytearray()
        self._places = Places()

    def feature(self, row: Row, sample: Sample | None) -> tuple[int, int, int, int, int, bytes]:
        """Hashes of the whole row, its question, what its answer depends on, and its answer; flags;
        the signature."""
        view = view_of(row)
        answer = _plain(view.last)
        question = question_key(row)
        if isinstance(row, PlainText):
            whole, subject, said = row.text, "", ""
        elif isinstance(row, Preference):
            pair = sorted((row.chosen[-1].content, row.rejected[-1].content))
            whole, subject, said = (
                _turns(row),
                "\x1e".join([question, *pair]),
                row.chosen[-1].content,
            )
        elif isinstance(row, Judged):
            whole, subject, said = (
                f"{_turns(row)}\x1e{row.good}{getattr(row, 'steps', '')}",
                _turns(row),
                str(row.good),
            )
        else:
            whole, subject, said = (
                _turns(row),
                "" if isinstance(row, Prompt) else _plain(question),
                answer,
            )
        flags = (
            (len(said) <= SHORT_ANSWER)
            | (bool(subject) << 1)
            | ((view.kind == "dialogue" and bool(answer)) << 2)
        )
        text = "\n".join((*view.users, *view.answers))
        hashes = (
            hash64(whole),
            hash64(question),
            hash64(subject) if subject else 0,
            hash64(_plain(said)),
        )
        return (*hashes, flags, shingles.signature(text))

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Keep the hashes of the next row."""
        whole, question, subject, answer, flags, signature = feature
        for column, value in (
            (self._whole, whole),
            (self._question, question),
            (self._subject, subject),
            (self._answer, answer),
        ):
            column.append(value)
        self._flags.append(flags | ((side == HELD_OUT) << 3) | (bool(signature) << 4))
        self._signatures += signature or shingles.EMPTY
        self._places.add(origin)

    def findings(self) -> list[Finding]:
        """All of this subject."""
        import numpy

        if not self._whole:
            return []
        flags = numpy.frombuffer(bytes(self._flags), numpy.uint8)
        held = (flags & 8) > 0
        whole, question = (
            numpy.frombuffer(column, numpy.uint64) for column in (self._whole, self._question)
        )
        first = numpy.zeros(len(whole), dtype=bool)
        first[numpy.unique(whole, return_index=True)[1]] = True
        near = shingles.near_pairs(self._signatures, first & ((flags & 16) > 0))
        # The same question with another label is a finding of its own.
        near = {
            right: left
            for right, left in near.items()
            if not (
                flags[right] & 1
                and self._subject[right]
                and self._subject[right] == self._subject[left]
            )
        }
        found = self._repeated(held, first, near)
        found += self._leaked(held, whole, question, near)
        found += self._contradictions(flags)
        return found + self._constant(flags)

    def _finding(
        self, key: str, severity: Severity, found: Any, total: int, **fields: Any
    ) -> Finding:
        places = [self._places[int(i)] for i in found[:SHOWN_PLACES]]
        return Finding(key, severity, len(found), total, places, fields)

    def _repeated(self, held: Any, first: Any, near: dict[int, int]) -> list[Finding]:
        """Rows that repeat an earlier one of the rows that are trained on."""
        import numpy

        train = int((~held).sum())
        exact = numpy.flatnonzero(~first & ~held)
        found = [self._finding("duplicates", "warn", exact, train)] if len(exact) else []
        close = sorted(right for right, left in near.items() if not held[right] and not held[left])
        if close:
            examples = [
                f"{self._places[near[i]]} = {self._places[i]}" for i in close[:SHOWN_PLACES]
            ]
            severity: Severity = "warn" if len(close) >= 0.02 * train else "info"
            found.append(
                self._finding(
                    "near_duplicates",
                    severity,
                    close,
                    train,
                    threshold=f"{shingles.THRESHOLD:.0%}",
                    first_pair=examples[0],
                    pairs=examples,
                )
            )
        return found

    def _leaked(self, held: Any, whole: Any, question: Any, near: dict[int, int]) -> list[Finding]:
        """Held-out rows that are trained on as well."""
        import numpy

        total = int(held.sum())
        if not total:
            return []
        exact = held & (numpy.isin(question, question[~held]) | numpy.isin(whole, whole[~held]))
        rows = numpy.flatnonzero(exact)
        found = [self._finding("held_out_repeated", "warn", rows, total)] if len(rows) else []
        close = {
            (right if held[right] else left)
            for right, left in near.items()
            if held[right] != held[left]
        }
        close = {row for row in close if not exact[row]}
        if close:
            found.append(
                self._finding(
                    "held_out_near",
                    "warn",
                    sorted(close),
                    total,
                    threshold=f"{shingles.THRESHOLD:.0%}",
                )
            )
        return found

    def _contradictions(self, flags: Any) -> list[Finding]:
        """Questions with more than one answer: labels that contradict each other, or simply several
        texts."""
        import numpy

        subject, answer = (
            numpy.frombuffer(column, numpy.uint64) for column in (self._subject, self._answer)
        )
        rows = numpy.flatnonzero((flags & 2) > 0)
        order = rows[numpy.lexsort((rows, subject[rows]))]
        bounds = numpy.flatnonzero(numpy.diff(subject[order])) + 1
        labels: list[int] = []
        texts: list[int] = []
        counted = {"labels": 0, "texts": 0}
        starts, stops = numpy.append(0, bounds), numpy.append(bounds, len(order))
        # Only groups of several rows are looked at: an array for each of two million single rows
        # took 300 MB.
        for which in numpy.flatnonzero(stops - starts > 1):
            group = order[starts[which] : stops[which]]
            if len(set(answer[group].tolist())) > 1:
                short = bool((flags[group] & 1).all())
                counted["labels" if short else "texts"] += len(group)
                (labels if short else texts).append(int(group[1]))
        found = []
        if labels:
            found.append(
                self._finding(
                    "contradictory_labels", "warn", labels, len(rows), rows=counted["labels"]
                )
            )
        if texts:
            severity: Severity = "warn" if len(texts) >= 0.2 * len(bounds) else "info"
            found.append(
                self._finding("several_answers", severity, texts, len(rows), rows=counted["texts"])
            )
        return found

    def _constant(self, flags: Any) -> list[Finding]:
        """One answer for most rows."""
        import numpy

        rows = numpy.flatnonzero(((flags & 4) > 0) & ((flags & 8) == 0))
        if len(rows) < FEWEST_ROWS:
            return []
        answers = numpy.frombuffer(self._answer, numpy.uint64)[rows]
        values, counts = numpy.unique(answers, return_counts=True)
        top = int(counts.max())
        share = top / len(rows)
        # Few different answers are labels; their balance is another finding.
        needed = CONSTANT_LABELS if len(values) <= FEW_LABELS else CONSTANT_WARN
        if share < needed:
            return []
        severity: Severity = "stop" if share >= CONSTANT_STOP else "warn"
        return [
            self._finding(
                "constant_answers",
                severity,
                rows[answers == values[int(counts.argmax())]],
                len(rows),
            )
        ]


def _turns(row: Row) -> str:
    return "\x1e".join(f"{m.role}\x1f{m.content}\x1f{m.tool_calls or ''}" for m in turns_of(row))
