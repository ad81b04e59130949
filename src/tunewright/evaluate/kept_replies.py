"""Replies that are kept as they come, so that a comparison that was ended goes on where it was.

The name of a reply is made of everything that decides it: of a model of files what `answer_table`
names and the tokens of the question, of an address its name and the messages. What stands behind an
address may change without a word; whoever changed it asks into another folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.evaluate import answer_table
from tunewright.evaluate.asked import Question, put
from tunewright.evaluate.kept import KEY, Kept, name_of
from tunewright.evaluate.subjects import LocalSubject, Reply, Subject, luck_of

FIELDS = ("text", "end", "tokens", "prompt_tokens", "written")
TOOK = "seconds"
"""Seconds since the reply before it ended: together they are the time of all."""


@dataclass(frozen=True)
class How:
    """How a subject is asked. `turn` tells a subject that stands twice from itself, so that the
    second answers for itself."""

    max_new_tokens: int
    temperature: float
    seed: int
    turn: int = 0


def put_kept(
    subject: Subject, questions: Sequence[Question], table: Kept, how: How, tell: Tell
) -> tuple[list[Reply], float]:
    """(the reply to every question, the seconds that they took, also before). Those that stand in
    the table are not asked; the others are added to it as they end."""
    names = _names(subject, questions, how) if table.path is not None else [""] * len(questions)
    found = [_reply(table.find(name)) for name in names]
    open_ = [i for i, one in enumerate(found) if one is None]
    before = sum(one.seconds for one in found if one is not None)
    if len(open_) < len(questions):
        count = len(questions) - len(open_)
        n, file = len(questions), table.path
        tell.line(say("beside.from_table", name=subject.name, count=count, n=n, file=file))
    started = last = time.perf_counter()

    def keep(place: int, reply: Reply) -> None:
        nonlocal last
        now = time.perf_counter()
        i, took, last = open_[place], now - last, now
        said = {name: getattr(reply, name) for name in FIELDS}
        about = {"model": subject.name, "origin": questions[i].origin}
        table.add([{KEY: names[i], **about, "question": questions[i].text, **said, TOOK: took}])

    replies = put(
        subject,
        [questions[i] for i in open_],
        tell,
        max_new_tokens=how.max_new_tokens,
        temperature=how.temperature,
        seed=how.seed,
        on_reply=keep if table.path is not None else None,
        lucks=_lucks(questions, open_, how),
    )
    for i, reply in zip(open_, replies, strict=True):
        found[i] = reply
    spent = time.perf_counter() - started if open_ else 0.0
    return [one for one in found if one is not None], before + spent


def _lucks(questions: Sequence[Question], places: Sequence[int], how: How) -> list[int] | None:
    """The seeds of the questions that are still to be asked: of a question that stands twice the
    second has another luck, whichever of the two was answered before."""
    if how.temperature <= 0 or len(places) == len(questions):
        return None
    lucks = luck_of([question.messages for question in questions], how.seed)
    return [lucks[i] for i in places]


def _names(subject: Subject, questions: Sequence[Question], how: How) -> list[str]:
    lucks = luck_of([question.messages for question in questions], how.seed)
    rest = [
        [how.turn, how.temperature, luck if how.temperature > 0 else None, how.max_new_tokens]
        for luck in lucks
    ]
    if not isinstance(subject, LocalSubject):
        return [
            name_of(subject.name, subject.kind, _plain(question), *one)
            for question, one in zip(questions, rest, strict=True)
        ]
    who = answer_table.about(subject.opened)
    with subject.model() as model:
        prompts = subject.prompts(
            model,
            [question.messages for question in questions],
            [question.expected for question in questions],
            [question.tools for question in questions],
        )
        return [
            name_of(answer_table.name_of(who, model, prompt, how.max_new_tokens), *one)
            for prompt, one in zip(prompts, rest, strict=True)
        ]


def _plain(question: Question) -> list[list[str]]:
    return [[message.role, message.content] for message in question.messages]


def _reply(line: Any) -> Reply | None:
    """A reply from a line of the table; None for a line that is none."""
    if line is None:
        return None
    try:
        ids, took = line["tokens"], float(line[TOOK])
        whole = ids is None or all(isinstance(token, int) for token in ids)
        good = whole and isinstance(line["text"], str) and isinstance(line["end"], str)
        counts = [line[name] for name in ("prompt_tokens", "written")]
        if not good or any(not isinstance(n, int | None) for n in counts):
            return None
        return Reply(line["text"], line["end"], took, ids, *counts)
    except (KeyError, TypeError, ValueError):
        return None
