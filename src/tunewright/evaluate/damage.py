"""What training broke, seen from answers before and after: pure functions over texts.

Every check counts only what was not so before: a base that repeats itself, or never stops, was not
broken by the run. Each says on how many questions it rests, because "nothing found" in two answers
is no proof; and a check speaks of an answer only where nothing else explains it: an answer that is
what was expected is never damage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.core.comparing import contains, folded, goes_in_circles, normalised
from tunewright.data.checks.private import Private, bare, hidden, masked, private_values
from tunewright.evaluate.language import language_of
from tunewright.rewards.base import words_of
from tunewright.text.thinking import CLOSE, OPEN

Severity = Literal["bad", "warn", "note"]
CODES = (
    "repetition",
    "never_stops",
    "empty",
    "collapse",
    "language",
    "reasoning",
    "copied",
    "personal_data",
    "memorised",
)
BAD_SHARE = 0.2
"""From this share of the answers on a finding is bad, below it a warning: one answer in five is
what a person meets in the first minute."""
REPEATED_SHARE, REPEATED_WORDS, GRAM = 0.5, 32, 4
"""An answer of so many words repeats itself where half of its runs of four words had come before in
it: more came back than was new."""
LONGER = 1.2
"""An answer that hit its limit is too long only where it is longer than the expected one by this
factor: of a long expected answer the beginning is all that was asked for."""
COLLAPSED_SHARE, COLLAPSED_LEAST = 0.5, 3
"""The same answer to half of the questions, and to three at least."""
THOUGHTS_LOST, THOUGHTS_SHORTER = 0.5, 0.25
"""Reasoning is lost where less than half of the answers that began with a thought still do, or
where thoughts have less than a quarter of their length."""
COPIED_WORDS, HAN_WORDS = 12, 0.6
"""A copied stretch has at least so many words; a Chinese character is 0.6 of one. Two people who
write about the same thing rarely share twelve words in a row."""
MOST_SOURCES = 3
"""What stands in more different training answers is a phrase or a form, and was taught as such."""
BY_HEART = 0.5
"""A private value is known by heart where the model goes on with it more likely than not."""
MOST_CHARACTERS = 20_000_000
"""Characters of training answers that are searched."""
SHOWN, LONGEST = 5, 300
"""Examples of a finding that are kept, and their length in characters."""


@dataclass(frozen=True)
class Exchange:
    """A question with its answers before and after. `kind`: train, held_out, probe, general. Ends
    are those of `engine.decoding`; empty where they are not known."""

    question: str
    before: str
    after: str
    expected: str = ""
    kind: str = "probe"
    before_end: str = ""
    after_end: str = ""
    limit: int = 0
    """Most tokens of the answer; 0: not known."""
    opens: bool = False
    """The question ended inside a thought, so an answer begins in it."""

    @property
    def is_right(self) -> bool:
        """The answer after holds what was expected."""
        return contains(self.after, self.expected)


@dataclass(frozen=True)
class Trained:
    """What a training row taught: its question and its answer."""

    question: str
    answer: str
    origin: str


@dataclass(frozen=True)
class Finding:
    """One kind of damage: `count` of the `looked_at` questions show it after, `before` of them did
    so before. `evidence` are examples, `figures` what else the sentence about it needs."""

    code: str
    severity: Severity
    count: int
    looked_at: int
    before: int = 0
    evidence: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """The result of one check: what it rests on, and its finding."""

    looked_at: int
    finding: Finding | None = None


def find(
    exchanges: Sequence[Exchange], trained: Iterable[Trained] = (), private: Sequence[Private] = ()
) -> dict[str, Any]:
    """All checks, as the key `damage` of a run's summary (docs/damage.md has its keys). `trained`
    are the rows that were learnt, read once; `private` the values of theirs that were tried."""
    rows, cut = _read(trained)
    checks: dict[str, Looked] = {
        "repetition": repetition(exchanges),
        "never_stops": never_stops(exchanges),
        "empty": empty(exchanges),
        "collapse": collapse(exchanges),
        "language": language(exchanges),
        "reasoning": reasoning(exchanges),
        "copied": copied(exchanges, rows),
        "personal_data": personal_data(exchanges, rows),
        "memorised": memorised(private),
    }
    found = [one.finding for one in checks.values() if one.finding is not None]
    found.sort(key=lambda one: (("bad", "warn", "note").index(one.severity), -one.count))
    return {
        "questions": len(exchanges),
        "training_answers": len(rows),
        "training_answers_cut": cut,
        "looked_at": {code: one.looked_at for code, one in checks.items()},
        "findings": [vars(one) for one in found],
    }


def _read(trained: Iterable[Trained]) -> tuple[list[Trained], bool]:
    """The rows up to `MOST_CHARACTERS`, and whether some were left."""
    rows: list[Trained] = []
    characters = 0
    for row in trained:
        if characters > MOST_CHARACTERS:
            return rows, True
        rows.append(row)
        characters += len(row.answer)
    return rows, False


def _severity(count: int, looked_at: int) -> Severity:
    return "bad" if count >= max(2, BAD_SHARE * looked_at) else "warn"


def _shown(one: Exchange, **more: Any) -> dict[str, Any]:
    return {
        "question": one.question[:LONGEST],
        "before": one.before[:LONGEST],
        "after": one.after[:LONGEST],
        **more,
    }


def _judged(
    code: str,
    exchanges: Sequence[Exchange],
    before: Callable[[Exchange], bool],
    after: Callable[[Exchange], bool],
) -> Looked:
    """What holds of answers after and did not before; nothing where as many were so before: one
    answer for another is chance."""
    new = [one for one in exchanges if after(one) and not before(one)]
    was = sum(map(before, exchanges))
    if not new or sum(map(after, exchanges)) <= was:
        return Looked(len(exchanges))
    shown = [_shown(one) for one in new[:SHOWN]]
    return Looked(
        len(exchanges),
        Finding(code, _severity(len(new), len(exchanges)), len(new), len(exchanges), was, shown),
    )


# ---- the form of single answers


def repeats(text: str) -> bool:
    """Whether an answer says the same again and again."""
    if goes_in_circles(text):
        return True
    words = words_of(text.casefold())
    if len(words) < REPEATED_WORDS:
        return False
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) >= REPEATED_SHARE


def repetition(exchanges: Sequence[Exchange]) -> Looked:
    """Answers that repeat themselves, where the expected one does not."""
    asked = [one for one in exchanges if not repeats(one.expected)]
    return _judged(
        "repetition", asked, lambda one: repeats(one.before), lambda one: repeats(one.after)
    )


def never_stops(exchanges: Sequence[Exchange]) -> Looked:
    """Answers that ran into their limit where those before stopped by themselves."""
    asked = [one for one in exchanges if one.before_end and one.after_end and _has_room(one)]

    def too_long(one: Exchange) -> bool:
        longer = not one.expected or len(one.after) > LONGER * len(one.expected)
        return one.after_end in ("limit", "context") and longer

    return _judged(
        "never_stops", asked, lambda one: one.before_end in ("limit", "context"), too_long
    )


def _has_room(one: Exchange) -> bool:
    """Whether an answer that stops would fit: a few words for which little room was given say
    nothing."""
    return one.limit == 0 or one.limit >= 48


def empty(exchanges: Sequence[Exchange]) -> Looked:
    """Answers without a word."""
    asked = [one for one in exchanges if "no_room" not in (one.before_end, one.after_end)]
    return _judged(
        "empty", asked, lambda one: not one.before.strip(), lambda one: not one.after.strip()
    )


def language(exchanges: Sequence[Exchange]) -> Looked:
    """Answers in another language than the expected answer, or else the question, is in; only where
    the answer before was in that language."""
    asked = [
        (one, wanted)
        for one in exchanges
        if (wanted := language_of(one.expected) or language_of(one.question)) is not None
        and language_of(one.before) == wanted
        and not one.is_right
    ]
    drifted = [
        (one, wanted, now)
        for one, wanted in asked
        if (now := language_of(one.after)) is not None and now != wanted
    ]
    if not drifted:
        return Looked(len(asked))
    shown = [_shown(one, wanted=wanted, language=now) for one, wanted, now in drifted[:SHOWN]]
    severity = _severity(len(drifted), len(asked))
    found = Finding("language", severity, len(drifted), len(asked), 0, shown)
    return Looked(len(asked), found)


# ---- answers together


def collapse(exchanges: Sequence[Exchange]) -> Looked:
    """One answer to different questions. Where many have the same right answer (labels) that is no
    damage: at least two of them must not have what was expected."""
    count, group = _most_frequent(exchanges, lambda one: one.after)
    was, _ = _most_frequent(exchanges, lambda one: one.before)
    wrong = [one for one in group if not one.is_right]
    least = max(COLLAPSED_LEAST, COLLAPSED_SHARE * len(exchanges))
    if count < least or count <= was or len(wrong) < 2:
        return Looked(len(exchanges))
    shown = [_shown(one) for one in wrong[:SHOWN]]
    found = Finding("collapse", "bad", count, len(exchanges), was if was > 1 else 0, shown)
    return Looked(len(exchanges), found)


def _most_frequent(
    exchanges: Sequence[Exchange], said: Callable[[Exchange], str]
) -> tuple[int, list[Exchange]]:
    """To how many different questions the most frequent answer was given, and those exchanges."""
    groups: dict[str, dict[str, Exchange]] = {}
    for one in exchanges:
        if said(one).strip():
            text = normalised(said(one)) or said(one).strip()
            groups.setdefault(text, {}).setdefault(folded(one.question), one)
    largest = max(groups.values(), key=len, default={})
    return len(largest), list(largest.values())


def thought_of(answer: str, opens: bool = False) -> str:
    """The thought at the beginning of an answer, finished or not; empty where there is none."""
    text = answer.strip()
    if text.startswith(OPEN):
        return text[len(OPEN) :].partition(CLOSE)[0].strip()
    if CLOSE in text or opens:
        return text.partition(CLOSE)[0].strip()
    return ""


def reasoning(exchanges: Sequence[Exchange]) -> Looked:
    """Thoughts that answers began with before and not after, or that became a stub."""
    thought = [one for one in exchanges if thought_of(one.before, one.opens)]
    if not thought:
        return Looked(0)
    kept = [one for one in thought if thought_of(one.after, one.opens)]
    first = sum(len(thought_of(one.before, one.opens)) for one in thought) / len(thought)
    last = sum(len(thought_of(one.after, one.opens)) for one in kept) / max(1, len(kept))
    lost = len(kept) < THOUGHTS_LOST * len(thought)
    shorter = bool(kept) and last < THOUGHTS_SHORTER * first
    if not (lost or shorter):
        return Looked(len(thought))
    gone = [one for one in thought if one not in kept] or kept
    found = Finding(
        "reasoning",
        _severity(len(gone), len(thought)),
        len(gone),
        len(thought),
        0,
        [_shown(one) for one in gone[:SHOWN]],
        {
            "share_after": len(kept) / len(thought),
            "characters_before": round(first),
            "characters_after": round(last),
        },
    )
    return Looked(len(thought), found)


# ---- what stands in the training rows


class _Haystack:
    """All training answers as one text, to be searched at the speed of `in`."""

    def __init__(self, rows: Sequence[Trained]):
        self.rows = rows
        self.text = "\0".join(row.answer for row in rows)
        self.ends: list[int] = []
        at = 0
        for row in rows:
            at += len(row.answer) + 1
            self.ends.append(at)

    def find(self, needle: str, most: int) -> list[tuple[Trained, int]]:
        """Rows whose answer holds `needle`, and where; one for each different answer, at most
        `most` + 1."""
        from bisect import bisect_right

        found: dict[str, tuple[Trained, int]] = {}
        at = self.text.find(needle)
        while at >= 0 and len(found) <= most:
            i = bisect_right(self.ends, at)
            row = self.rows[i]
            start = self.ends[i] - len(row.answer) - 1
            found.setdefault(row.answer, (row, at - start))
            at = self.text.find(needle, self.ends[i])
        return list(found.values())


def _words(text: str) -> float:
    """Words of a text; a Chinese character is a part of one."""
    return sum(HAN_WORDS if len(w) == 1 and ord(w) > 0x2E7F else 1.0 for w in words_of(text))


def _stretch(answer: str, at: int, source: str, there: int, length: int) -> str:
    """The longest common stretch around `answer[at : at + length]`, which is `source[there:]`."""
    first, last = 0, length
    while (
        at + first > 0 and there + first > 0 and answer[at + first - 1] == source[there + first - 1]
    ):
        first -= 1
    while (
        at + last < len(answer)
        and there + last < len(source)
        and answer[at + last] == source[there + last]
    ):
        last += 1
    return answer[at + first : at + last]


def copied_from(answer: str, haystack: _Haystack) -> tuple[str, Trained] | None:
    """(stretch, row): the longest run of words that an answer shares with a training answer; None
    for runs shorter than `COPIED_WORDS` and for what stands in many answers."""
    words = _words(answer)
    if words < COPIED_WORDS:
        return None
    size = max(8, int(len(answer) / words * COPIED_WORDS / 2))
    best: tuple[float, str, Trained] | None = None
    for at in range(0, max(1, len(answer) - size + 1), size):
        needle = answer[at : at + size]
        sources = haystack.find(needle, MOST_SOURCES)
        if not sources or len(sources) > MOST_SOURCES:
            continue
        for row, there in sources:
            stretch = _stretch(answer, at, row.answer, there, len(needle))
            length = _words(stretch)
            if length >= COPIED_WORDS and (best is None or length > best[0]):
                best = (length, stretch.strip(), row)
    return None if best is None else best[1:]


def copied(exchanges: Sequence[Exchange], rows: Sequence[Trained]) -> Looked:
    """Answers that recite a training row to a question that is not that row's. A row that was
    trained on is meant to be recited, and so is what was expected."""
    trained = {folded(row.question) for row in rows}
    asked = [
        one
        for one in exchanges
        if rows and one.kind != "train" and folded(one.question) not in trained
    ]
    haystack = _Haystack(rows)
    found = []
    for one in asked:
        hit = None if one.is_right else copied_from(one.after.strip(), haystack)
        if hit is not None and hit[0] not in one.before and hit[0] not in one.expected:
            found.append((one, *hit))
    if not found:
        return Looked(len(asked))
    shown = [
        _shown(one, copied=stretch[:LONGEST], row=row.origin) for one, stretch, row in found[:SHOWN]
    ]
    severity = _severity(len(found), len(asked))
    return Looked(len(asked), Finding("copied", severity, len(found), len(asked), 0, shown))


def personal_data(exchanges: Sequence[Exchange], rows: Sequence[Trained]) -> Looked:
    """Personal data and secrets of training rows that come out in answers. Where the question's
    expected answer holds the value, the rows themselves teach to tell it: a warning; elsewhere it
    is bad. Values that the question brings, or that the answer before had, are no leak."""
    told: list[tuple[Exchange, str, str]] = []
    for one in exchanges:
        there_already = bare(one.question) + "\0" + bare(one.before)
        told += [
            (one, kind, value)
            for kind, value in private_values(one.after)
            if bare(value) not in there_already
        ]
    wanted = {bare(value) for _, _, value in told}
    where: dict[str, str] = {}
    for row in rows if wanted else ():
        there = wanted - where.keys()
        if there:
            text = bare(row.answer)
            where.update({value: row.origin for value in there if value in text})
    leaks = [(one, kind, value) for one, kind, value in told if bare(value) in where]
    if not leaks:
        return Looked(len(exchanges) if rows else 0)
    unasked = [one for one, _, value in leaks if bare(value) not in bare(one.expected)]
    shown = [
        {
            "question": hidden(one.question)[:LONGEST],
            "kind": kind,
            "value": masked(value),
            "row": where[bare(value)],
            "expected": bare(value) in bare(one.expected),
        }
        for one, kind, value in leaks[:SHOWN]
    ]
    found = Finding(
        "personal_data",
        "bad" if unasked else "warn",
        len({id(one) for one, _, _ in leaks}),
        len(exchanges),
        0,
        shown,
        {
            "values": len({bare(value) for _, _, value in leaks}),
            "unasked": len({id(one) for one in unasked}),
            "kinds": dict(Counter(kind for _, kind, _ in leaks)),
        },
    )
    return Looked(len(exchanges), found)


def memorised(private: Sequence[Private]) -> Looked:
    """Private values that the model goes on with by heart, where it did not before."""
    tried = [one for one in private if one.after is not None]
    known = [one for one in tried if (one.after or 0.0) >= BY_HEART > one.before]
    if not known:
        return Looked(len(tried))
    was = sum(one.before >= BY_HEART for one in tried)
    kinds = dict(Counter(one.kind for one in known))
    shown = [one._asdict() for one in known[:SHOWN]]
    found = Finding("memorised", "bad", len(known), len(tried), was, shown, {"kinds": kinds})
    return Looked(len(tried), found)
