"""`tunewright evaluate A --data F --judge TARGET|ADDRESS [--against B]`: which of two answers a
third model finds better.

Judges prefer the answer that stands first, and the longer one (Zheng et al. 2023, arXiv
2306.05685), so every pair is judged twice with the places swapped. An answer wins where both orders
say so; where they disagree it is a tie, and how often they do is reported: a judge that mostly
disagrees with itself measures nothing. How often it prefers the longer answer is reported as well.
Equal answers are ties without being asked. A verdict is read from `[[A]]`, `[[B]]` or `[[C]]`; a
reply without one is counted, never guessed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tunewright.core.comparing import folded
from tunewright.core.errors import DataError, UsageError, problem
from tunewright.core.machine import versions
from tunewright.core.telling import Tell, duration
from tunewright.core.types import Message
from tunewright.core.words import ASSETS, say
from tunewright.evaluate.address import Address, AddressError, is_address
from tunewright.evaluate.answer_table import about
from tunewright.evaluate.asked import Question, put, read_questions, room_for
from tunewright.evaluate.exam_files import is_chinese
from tunewright.evaluate.interval import of_scores, wilson
from tunewright.evaluate.kept import KEY, Kept, name_of
from tunewright.evaluate.subjects import Subject, open_subject

REFERENCE = "reference"
"""`--against reference`: the expected answers of the rows."""
TABLE = "judge.jsonl"
"""The table of answers and verdicts."""
DEFAULT_ROWS = 200
VERDICT_TOKENS = 512
"""Most tokens of a judge's reply; a thinking judge needs them."""
MOST_UNREADABLE, MOST_DISAGREED = 0.2, 0.5
"""Shares beyond which a judge is called unfit."""
Verdict = Literal["a", "b", "tie"]
Language = Literal["auto", "en", "zh"]
_MARKED = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
_BARE = re.compile(r"\W*(?:verdict|answer|回答|结论)?\W*([ABC])\W*", re.IGNORECASE)


def verdict_of(reply: str) -> Literal["A", "B", "C"] | None:
    """The verdict that a reply ends with: the last `[[A]]`, `[[B]]` or `[[C]]`, or a reply that is
    nothing but a letter; None where there is none."""
    marked = _MARKED.findall(reply)
    letter = marked[-1] if marked else None
    if letter is None:
        bare = _BARE.fullmatch(reply.strip())
        letter = bare[1] if bare else None
    return None if letter is None else letter.upper()  # type: ignore[return-value]


@cache
def _template(language: str, name: str = "") -> str:
    return (ASSETS / "judge" / f"{language}{name}.txt").read_text(encoding="utf-8")


def prompt(
    question: Question, first: str, second: str, language: str, *, expected: str = ""
) -> list[Message]:
    """What the judge is asked about two answers. `expected` stands beside them as the right
    answer."""
    said = [m for m in question.messages if m.role in ("user", "assistant")]
    text = (
        question.text
        if len(said) < 2
        else "\n\n".join(f"{say('judge.role.' + m.role, language)}: {m.content}" for m in said)
    )
    reference = ""
    if expected.strip():
        reference = _template(language, "_reference").format(expected=expected.strip())
    filled = _template(language).format(
        question=text.strip(), reference=reference, first=first.strip(), second=second.strip()
    )
    return [Message("user", filled)]


@dataclass
class Judged:
    """One row: both answers, and what the judge said of them in both orders."""

    question: Question
    a: str
    b: str
    replies: tuple[str, str] = ("", "")
    """With a first, and with b first."""
    is_equal: bool = False

    @property
    def verdicts(self) -> tuple[Verdict | None, Verdict | None]:
        """For whom each order decided; None where the reply has no verdict."""
        if self.is_equal:
            return "tie", "tie"
        first, second = (verdict_of(reply) for reply in self.replies)
        forward: dict[str | None, Verdict] = {"A": "a", "B": "b", "C": "tie"}
        swapped: dict[str | None, Verdict] = {"A": "b", "B": "a", "C": "tie"}
        return forward.get(first), swapped.get(second)

    @property
    def is_read(self) -> bool:
        return None not in self.verdicts

    @property
    def disagrees(self) -> bool:
        """Whether the orders decided otherwise."""
        return self.is_read and self.verdicts[0] != self.verdicts[1]

    @property
    def result(self) -> Verdict | None:
        """Both orders' verdict, a tie where they disagree; None where one cannot be read."""
        if not self.is_read:
            return None
        return "tie" if self.disagrees else self.verdicts[0]

    def as_row(self) -> dict[str, Any]:
        """For `--details`."""
        return {
            "origin": self.question.origin,
            "question": self.question.text,
            "a": self.a,
            "b": self.b,
            "result": self.result,
            "verdicts": list(self.verdicts),
            "replies": list(self.replies),
        }


# ---- asking


def judge(
    target: str,
    data: str,
    judge_target: str,
    *,
    against: str = REFERENCE,
    base: bool = False,
    language: Language = "auto",
    limit: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    think: bool | None = None,
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
    details: bool = False,
    out: str | Path | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Let `judge_target` (anything that can be asked: run, model, GGUF file, address) compare what
    `target` answers to the rows of `data` with what `against` answers, or with the expected answers
    (keys in docs/judge.md).

    All are opened one after another. `out` keeps every answer and verdict in a table in that
    folder and asks nothing again that stands there. Raises UsageError for wrong settings, DataError
    where there is nothing to compare with, and what opening and asking raise.
    """
    tell, started = tell or Tell(), time.perf_counter()
    _require_settings(language, limit, max_new_tokens)
    for name in (judge_target, target, against):
        _require_there(name, tell)
    read = read_questions(
        data,
        limit=limit or DEFAULT_ROWS,
        seed=seed,
        data_format=data_format,
        columns=columns,
        data_dir=data_dir,
    )
    questions = [q for q in read.questions if against != REFERENCE or q.expected.strip()]
    if not questions:
        raise DataError(problem("E-JUDGE-01", data))
    spoken = _language(questions) if language == "auto" else language
    room = max_new_tokens or room_for(questions)
    how = How(room, seed, dtype, think, tell, Kept(None if out is None else Path(out) / TABLE))
    try:
        a, b, rows = _both(target, against, questions, how, base)
        name = _let_judge(judge_target, rows, spoken, against != REFERENCE, how)
    finally:
        how.table.close()
    found = report(rows)
    found |= {"judge": name, "against": b.name, "language": spoken}
    found |= {"cut": {"a": a.cut, "b": b.cut}, "max_new_tokens": room}
    if name in (a.name, b.name):
        found["warnings"].append(say("judge.warning.own", judge=name))
    if len(questions) < read.rows:
        found["warnings"].append(say("judge.warning.some", count=len(questions), rows=read.rows))
    result: dict[str, Any] = {
        "target": a.name,
        "data": data,
        "warnings": found.pop("warnings"),
        "judge": found,
        "seconds": {"total": round(time.perf_counter() - started, 3)},
        "versions": versions(),
    }
    if details:
        result["rows"] = [one.as_row() for one in rows]
    return result


def _require_settings(language: str, limit: int | None, max_new_tokens: int | None) -> None:
    if language not in ("auto", "en", "zh"):
        raise UsageError(problem("E-EXAM-04", "--judge-language", value=language))
    if any(n is not None and n < 1 for n in (limit, max_new_tokens)):
        raise UsageError(problem("E-EVAL-05", "--limit --max-new-tokens"))


CHECK = "Hello"
"""What an address is asked first: a wrong key or model is said before the others have answered."""


def _require_there(name: str, tell: Tell) -> None:
    """Raise for a name that means nothing, or an address that does not answer, before any model is
    read."""
    from tunewright.engine import opening

    if is_address(name):
        try:
            Address.of(name).ask([Message("user", CHECK)], max_tokens=16)
        except AddressError as e:
            # A server that is busy, or wants more than a greeting, is asked again later.
            if e.problems[0].code not in ("E-ADDR-06", "E-ADDR-07"):
                raise
    elif name != REFERENCE:
        opening.find(name, tell)


@dataclass(frozen=True)
class How:
    """How everybody is asked. `room`: the most tokens of an answer."""

    room: int
    seed: int
    dtype: str | None
    think: bool | None
    tell: Tell
    table: Kept

    def put(
        self, subject: Subject, questions: Sequence[Question], room: int
    ) -> list[tuple[str, str]]:
        """(answer without its thoughts, how it ended) to each question: those of the table, and the
        others, which are kept."""
        names = [""] * len(questions)
        if self.table.path is not None:
            opened = getattr(subject, "opened", None)
            who = [subject.name, subject.kind, self.think, about(opened) if opened else None]
            names = [
                name_of(who, [[m.role, m.content] for m in q.messages], room, self.seed, q.expected)
                for q in questions
            ]
        known = [self.table.find(name) for name in names]
        open_ = [q for q, line in zip(questions, known, strict=True) if line is None]
        replies = iter(put(subject, open_, self.tell, max_new_tokens=room, seed=self.seed))
        found = []
        for line in known:
            if line is None:
                reply = next(replies)
                found.append((subject.bare(reply.text), reply.end))
            else:
                found.append((str(line["answer"]), str(line["end"])))
        self.table.add(
            {"asked": subject.name, "question": q.text, "answer": text, "end": end, KEY: name}
            for q, (text, end), name in zip(questions, found, names, strict=True)
        )
        return found


@dataclass(frozen=True)
class _Said:
    """What somebody answered, without thoughts; `cut` answers did not end by themselves."""

    name: str
    texts: list[str]
    cut: int = 0


def _answers(target: str, questions: Sequence[Question], how: How, *, base: bool = False) -> _Said:
    """The answers of `target` to every question, under its own system prompt."""
    subject = open_subject(target, how.tell, base=base, dtype=how.dtype, think=how.think)
    try:
        under = [question.under(subject.system) for question in questions]
        found = how.put(subject, under, how.room)
        cut = sum(end != "stop" for _, end in found)
        return _Said(subject.name, [text for text, _ in found], cut)
    finally:
        subject.close()


def _both(
    target: str, against: str, questions: Sequence[Question], how: How, base: bool
) -> tuple[_Said, _Said, list[Judged]]:
    """What both answered, and the pairs."""
    a = _answers(target, questions, how, base=base)
    b = _Said(REFERENCE, [question.expected for question in questions])
    if against != REFERENCE:
        b = _answers(against, questions, how)
    return a, b, [Judged(q, x, y) for q, x, y in zip(questions, a.texts, b.texts, strict=True)]


def _let_judge(
    target: str, rows: Sequence[Judged], language: str, with_reference: bool, how: How
) -> str:
    """Fill in what the judge says of every row in both orders; its name."""
    subject = open_subject(target, how.tell, dtype=how.dtype)
    try:
        asked: list[Question] = []
        for row in rows:
            row.is_equal = folded(row.a) == folded(row.b)
            if not row.is_equal:
                expected = row.question.expected if with_reference else ""
                for first, second in ((row.a, row.b), (row.b, row.a)):
                    turns = prompt(row.question, first, second, language, expected=expected)
                    asked.append(Question(turns, "", row.question.origin))
        texts = iter(text for text, _ in how.put(subject, asked, VERDICT_TOKENS))
        for row in rows:
            if not row.is_equal:
                row.replies = (next(texts), next(texts))
        return subject.name
    finally:
        subject.close()


def _language(questions: Sequence[Question]) -> str:
    return "zh" if is_chinese("".join(q.text for q in questions[:50])) else "en"


# ---- figures


def report(rows: Sequence[Judged]) -> dict[str, Any]:
    """Wins, losses, ties, the share of `target` with its interval, and how far the judge can be
    trusted (keys in docs/judge.md)."""
    read = [row for row in rows if row.is_read]
    asked = [row for row in rows if not row.is_equal]
    both = [row for row in asked if row.is_read]
    points = [{"a": 1.0, "tie": 0.5, "b": 0.0}[row.result or "tie"] for row in read]
    disagreed = sum(row.disagrees for row in both)
    places = [v for row in both for v in _places(row)]
    longer, of_length = _longer(both)
    low, high = of_scores(points) if points else (0.0, 1.0)
    found: dict[str, Any] = {
        "n": len(read),
        "wins": sum(row.result == "a" for row in read),
        "losses": sum(row.result == "b" for row in read),
        "ties": sum(row.result == "tie" for row in read),
        "equal_answers": len(rows) - len(asked),
        "share": sum(points) / len(points) if points else None,
        "interval_95": [low, high],
        "better": bool(points) and low > 0.5,
        "worse": bool(points) and high < 0.5,
        "disagreed": disagreed,
        "disagreed_share": disagreed / len(both) if both else None,
        "disagreed_interval_95": list(wilson(disagreed, len(both))),
        "first_place_share": sum(places) / len(places) if places else None,
        "first_place_interval_95": list(wilson(sum(places), len(places))),
        "longer_wins": longer,
        "longer_decided": of_length,
        "unreadable": len(rows) - len(read),
        "unreadable_replies": sum(v is None for row in asked for v in row.verdicts),
    }
    found["warnings"] = _warnings(found, len(asked))
    return found


def _places(row: Judged) -> list[bool]:
    """Of each verdict that is no tie, whether it is for the answer that stood first."""
    first, second = row.verdicts
    found = [first == "a"] if first in ("a", "b") else []
    return found + ([second == "b"] if second in ("a", "b") else [])


def _longer(rows: Sequence[Judged]) -> tuple[int, int]:
    """(wins of the longer answer, decided rows whose answers differ in length)."""
    decided = [r for r in rows if r.result in ("a", "b") and len(r.a) != len(r.b)]
    return sum((row.result == "a") == (len(row.a) > len(row.b)) for row in decided), len(decided)


def _warnings(found: dict[str, Any], asked: int) -> list[str]:
    out = []
    if found["unreadable"] > MOST_UNREADABLE * max(1, asked):
        out.append(say("judge.warning.unreadable", count=found["unreadable"], n=asked))
    if (found["disagreed_share"] or 0) > MOST_DISAGREED:
        share = f"{100 * found['disagreed_share']:.0f} %"
        out.append(say("judge.warning.disagrees", share=share))
    low = wilson(found["longer_wins"], found["longer_decided"])[0]
    if found["longer_decided"] and low > 0.5:
        share = f"{100 * found['longer_wins'] / found['longer_decided']:.0f} %"
        out.append(say("judge.warning.longer", share=share, n=found["longer_decided"]))
    return out


def lines(result: dict[str, Any]) -> list[str]:
    """The figures for a terminal, in the reader's language."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.0f} %"

    found = result["judge"]
    against = found["against"]
    against = say("judge.reference") if against == REFERENCE else against
    names = {"target": result["target"], "against": against}
    out = [say("judge.head", judge=found["judge"], data=result["data"], **names)]
    low, high = (percent(v) for v in found["interval_95"])
    counts = {k: found[k] for k in ("wins", "losses", "ties", "n", "equal_answers")}
    out.append(say("judge.share", share=percent(found["share"]), low=low, high=high, **counts))
    key = "better" if found["better"] else "worse" if found["worse"] else "equal"
    out.append(say(f"judge.verdict.{key}", **names))
    low, high = (percent(v) for v in found["disagreed_interval_95"])
    out.append(
        say(
            "judge.trust",
            disagreed=percent(found["disagreed_share"]),
            low=low,
            high=high,
            first=percent(found["first_place_share"]),
            unreadable=found["unreadable_replies"],
        )
    )
    spent = duration(result["seconds"]["total"])
    return [*out, *result["warnings"], say("judge.seconds", time=spent)]
