"""What an answer is worth to a clause of a contract: a score from 0 to 1 for each answer.

Each kind of clause has a judge of its own; the words that people read about a bad answer (`note`)
come from the same place, so that they say what was counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.comparing import folded
from tunewright.core.words import say
from tunewright.data.checks.wording import language_of, personal_data
from tunewright.evaluate import metrics
from tunewright.evaluate.asked import Question, read_questions
from tunewright.evaluate.contract import (
    PATTERN_SECONDS,
    Clause,
    Form,
    Know,
    Language,
    NotSay,
    Refuse,
    in_folder,
)
from tunewright.evaluate.refusals import refuses
from tunewright.rewards import schema
from tunewright.rewards.base import words_of
from tunewright.rewards.patterns import PatternError, matches
from tunewright.rewards.structure import json_value

SHORT_WORDS = 12
"""Expected answers up to here are looked for inside an answer."""


@dataclass(frozen=True)
class Judged:
    """One answer to one question: the score, and what was found wrong."""

    score: float
    note: str = ""


Judge = Callable[[Question, str, str], Judged]
"""(question, answer, how it ended) -> score. Lower is worse, also of what must not be said."""


def judge_of(clause: Clause, questions: Sequence[Question], folder: Path) -> Judge:
    """The judge of a clause with these questions. Raises DataError for a file that cannot be
    read."""
    if isinstance(clause, Know):
        return _know(clause, questions)
    if isinstance(clause, Refuse):
        return lambda question, text, end: (
            Judged(1.0) if refuses(text, clause.phrases) else Judged(0.0, say("gate.note.answered"))
        )
    if isinstance(clause, NotSay):
        return _not_say(clause, folder)
    if isinstance(clause, Form):
        return lambda question, text, end: _form(clause, text, end)
    assert isinstance(clause, Language)
    return lambda question, text, end: _language(clause, question, text)


def metric_for(clause: Know, questions: Sequence[Question]) -> str:
    """The metric of a clause. `auto`: by the expected answers; a short one must be contained,
    because a sentence with the right word in it is a right answer."""
    if clause.metric != "auto":
        return clause.metric
    expected = [question.expected for question in questions]
    chosen = metrics.chosen_for(expected)
    if "json_equal" in chosen:
        return "json_equal"
    if "number" in chosen:
        return "number"
    lengths = sorted(len(words_of(text)) for text in expected)
    return "contains" if lengths[(len(lengths) * 9) // 10] <= SHORT_WORDS else "f1"


def _know(clause: Know, questions: Sequence[Question]) -> Judge:
    name = metric_for(clause, questions)
    metric = metrics.METRICS[name]

    def judge(question: Question, text: str, end: str) -> Judged:
        score = min(1.0, max(0.0, metric.per_row(question.expected, text) / metric.scale))
        return Judged(score, "" if score == 1 else say("gate.note.expected", metric=name))

    return judge


# ---- what must not be said


def _not_say(clause: NotSay, folder: Path) -> Judge:
    copied = _Copies(clause, folder) if clause.copies_of else None

    def judge(question: Question, text: str, end: str) -> Judged:
        found = _said(clause, question, text) or (copied.found_in(text) if copied else "")
        return Judged(0.0, found) if found else Judged(1.0)

    return judge


def _said(clause: NotSay, question: Question, text: str) -> str:
    """What of it an answer says; empty for nothing."""
    plain = folded(text)
    for unsaid in clause.texts:
        if folded(unsaid) in plain:
            return say("gate.note.said", text=unsaid)
    for pattern in clause.patterns:
        try:
            if matches(pattern, text, "search", 0, PATTERN_SECONDS):
                return say("gate.note.said", text=pattern)
        except PatternError as e:
            return str(e)
    if clause.personal_data:
        asked = personal_data("\n".join(message.content for message in question.messages))
        new = personal_data(text) - asked
        if new:
            kinds = ", ".join(sorted(new))
            return say("gate.note.personal", kinds=kinds)
    return ""


class _Copies:
    """Runs of words that stand in the answers of a file."""

    def __init__(self, clause: NotSay, folder: Path):
        assert clause.copies_of is not None
        self.count = clause.copied_words
        read = read_questions(in_folder(clause.copies_of, folder))
        self.runs = {run for q in read.questions for run in self._runs(q.expected)}

    def _runs(self, text: str) -> list[tuple[str, ...]]:
        words = words_of(text.casefold())
        return [tuple(words[i : i + self.count]) for i in range(len(words) - self.count + 1)]

    def found_in(self, text: str) -> str:
        run = next((run for run in self._runs(text) if run in self.runs), None)
        return "" if run is None else say("gate.note.copied", text=" ".join(run))


# ---- form and language


def _form(clause: Form, text: str, end: str) -> Judged:
    wrong = _wrong_form(clause, text, end)
    return Judged(0.0, wrong) if wrong else Judged(1.0)


def _wrong_form(clause: Form, text: str, end: str) -> str:
    """The first thing that is wrong with the form of an answer; empty for nothing."""
    if clause.ends and end != "stop":
        return say("gate.note.cut")
    if clause.json_ or clause.schema_ is not None:
        try:
            value = json_value(text)
        except ValueError:
            return say("gate.note.no_json")
        if clause.schema_ is not None and not schema.follows(value, clause.schema_):
            return say("gate.note.schema")
    for pattern, mode in ((clause.pattern, "fullmatch"), (clause.contains_pattern, "search")):
        try:
            if pattern is not None and not matches(pattern, text, mode, re.DOTALL, PATTERN_SECONDS):
                return say("gate.note.pattern", pattern=pattern)
        except PatternError as e:
            return str(e)
    if clause.one_of and text.strip() not in [one.strip() for one in clause.one_of]:
        return say("gate.note.one_of")
    length = len(text)
    if clause.most_characters is not None and length > clause.most_characters:
        return say("gate.note.long", length=length)
    if clause.least_characters is not None and length < clause.least_characters:
        return say("gate.note.short", length=length)
    return ""


def _language(clause: Language, question: Question, text: str) -> Judged:
    """An answer with too few letters to tell, a number or a name, is in every language."""
    wanted: Any = clause.answers
    if wanted == "question":
        wanted = language_of(question.text)
    found = language_of(text)
    right = not found or not wanted or wanted == "mixed" or found == wanted
    # A few foreign words in a long answer are not another language; a text in two halves is.
    return Judged(1.0) if right else Judged(0.0, say("gate.note.language", language=found))
