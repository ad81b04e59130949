"""Repeated rows: word for word, nearly, on both sides of the split, or with another answer."""

from __future__ import annotations

from array import array
from typing import Any

from tunewright.core.types import (
    Judged,
    Origin,
    PlainText,
    Preference,
    Prompt,
    Row,
    Sample,
    turns_of,
)
from tunewright.data.checks import shingles
from tunewright.data.checks.base import (
    HELD_OUT,
    SHOWN_PLACES,
    Finding,
    Places,
    Severity,
    by_share,
    view_of,
)
from tunewright.data.store.splitting import key_of, question_key

SHORT_ANSWER = 40
"""Characters up to which an answer is a label rather than a text."""
CONSTANT_WARN, CONSTANT_LABELS, CONSTANT_STOP = 0.5, 0.9, 0.98
FEWEST_ROWS = 10
FEW_LABELS = 50
SHORT, HAS_SUBJECT, ANSWERED, HELD, SIGNED = 1, 2, 4, 8, 16
"""Flags of a row: a short answer; what its answer depends on is known; a dialogue with an answer;
held out; long enough for a signature."""
THRESHOLD = f"{shingles.THRESHOLD:.0%}"


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


class Repeats:
    """Exact and near duplicates, held-out rows that are also trained on, the same question with
    other answers, one answer for most rows."""

    name = "repeats"

    def __init__(self) -> None:
        # For a row: 8 bytes each for the whole, question, subject and answer, 128 for the
        # signature, 10 for the place, 1 for the rest.
        self._whole, self._question, self._subject, self._answer = (array("Q") for _ in range(4))
        self._flags = bytearray()
        self._signatures = bytearray()
        self._places = Places()

    def feature(self, row: Row, sample: Sample | None) -> tuple[int, int, int, int, int, bytes]:
        """Hashes of the whole row, its question, what its answer depends on, and its answer; flags;
        the signature."""
        view = view_of(row)
        answer = _plain(view.last)
        question = question_key(row)
        whole, subject, said = _turns(row), "", answer
        if isinstance(row, PlainText):
            whole, said = row.text, ""
        elif isinstance(row, Preference):
            pair = sorted((row.chosen[-1].content, row.rejected[-1].content))
            subject, said = "\x1e".join([question, *pair]), row.chosen[-1].content
        elif isinstance(row, Judged):
            subject, said = whole, str(row.good)
            whole += f"\x1e{row.good}{getattr(row, 'steps', '')}"
        elif not isinstance(row, Prompt):
            subject = _plain(question)
        is_answered = view.kind == "dialogue" and bool(answer)
        flags = SHORT if len(said) <= SHORT_ANSWER else 0
        flags |= (HAS_SUBJECT if subject else 0) | (ANSWERED if is_answered else 0)
        asked = key_of(subject) if subject else 0
        hashes = (key_of(whole), key_of(question), asked, key_of(_plain(said)))
        text = "\n".join((*view.users, *view.answers))
        return (*hashes, flags, shingles.signature(text))

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Keep the hashes of the next row."""
        *hashes, flags, signature = feature
        columns = (self._whole, self._question, self._subject, self._answer)
        for column, value in zip(columns, hashes, strict=True):
            column.append(value)
        flags |= (HELD if side == HELD_OUT else 0) | (SIGNED if signature else 0)
        self._flags.append(flags)
        self._signatures += signature or shingles.EMPTY
        self._places.add(origin)

    def findings(self) -> list[Finding]:
        """All of this subject."""
        import numpy

        if not self._whole:
            return []
        flags = numpy.frombuffer(bytes(self._flags), numpy.uint8)
        held = (flags & HELD) > 0
        whole, question = (
            numpy.frombuffer(column, numpy.uint64) for column in (self._whole, self._question)
        )
        first = numpy.zeros(len(whole), dtype=bool)
        first[numpy.unique(whole, return_index=True)[1]] = True
        near = shingles.near_pairs(self._signatures, first & ((flags & SIGNED) > 0))
        near = {
            right: left for right, left in near.items() if not self._relabels(flags, right, left)
        }
        found = self._repeated(held, first, near)
        found += self._leaked(held, whole, question, near)
        found += self._contradictions(flags)
        return found + self._constant(flags)

    def _relabels(self, flags: Any, right: int, left: int) -> bool:
        """Whether two rows are one question with other labels, which is a finding of its own."""
        subject = self._subject[right]
        return bool(flags[right] & SHORT) and bool(subject) and subject == self._subject[left]

    def _finding(
        self, key: str, severity: Severity, found: Any, total: int, **fields: Any
    ) -> Finding:
        return Finding(key, severity, len(found), total, self._places.first(found), fields)

    def _repeated(self, held: Any, first: Any, near: dict[int, int]) -> list[Finding]:
        """Rows that repeat an earlier one of the rows that are trained on."""
        import numpy

        train = int((~held).sum())
        exact = numpy.flatnonzero(~first & ~held)
        found = [self._finding("duplicates", "warn", exact, train)] if len(exact) else []
        close = sorted(right for right, left in near.items() if not held[right] and not held[left])
        if close:
            pairs = [f"{self._places[near[i]]} = {self._places[i]}" for i in close[:SHOWN_PLACES]]
            told = {"threshold": THRESHOLD, "first_pair": pairs[0], "pairs": pairs}
            severity = by_share(len(close), train, 0.02)
            found.append(self._finding("near_duplicates", severity, close, train, **told))
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
        across = [pair for pair in near.items() if held[pair[0]] != held[pair[1]]]
        sides = {right if held[right] else left for right, left in across}
        close = sorted(row for row in sides if not exact[row])
        if close:
            found.append(self._finding("held_out_near", "warn", close, total, threshold=THRESHOLD))
        return found

    def _contradictions(self, flags: Any) -> list[Finding]:
        """Questions with more than one answer: labels that contradict each other, or simply several
        texts."""
        import numpy

        subject, answer = (
            numpy.frombuffer(column, numpy.uint64) for column in (self._subject, self._answer)
        )
        rows = numpy.flatnonzero((flags & HAS_SUBJECT) > 0)
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
                short = bool((flags[group] & SHORT).all())
                counted["labels" if short else "texts"] += len(group)
                (labels if short else texts).append(int(group[1]))
        found = []
        total = len(rows)
        if labels:
            count = counted["labels"]
            found.append(self._finding("contradictory_labels", "warn", labels, total, rows=count))
        if texts:
            severity, count = by_share(len(texts), len(bounds), 0.2), counted["texts"]
            found.append(self._finding("several_answers", severity, texts, total, rows=count))
        return found

    def _constant(self, flags: Any) -> list[Finding]:
        """One answer for most rows."""
        import numpy

        rows = numpy.flatnonzero(((flags & ANSWERED) > 0) & ((flags & HELD) == 0))
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
        constant = rows[answers == values[int(counts.argmax())]]
        return [self._finding("constant_answers", severity, constant, len(rows))]


def _turns(row: Row) -> str:
    return "\x1e".join(f"{m.role}\x1f{m.content}\x1f{m.tool_calls or ''}" for m in turns_of(row))
