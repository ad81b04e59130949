"""`tunewright gate CONTRACT.yaml A [--against B]`: does a model keep its contract?

Every question is put once to each model, however many clauses judge its answer, with the same seeds
to both. Both models are held at once where they fit, else opened in turns; timings are taken in
turns, so that what else runs on the machine hits both. `verdicts.py` decides.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.machine import versions
from tunewright.core.telling import Once, Tell
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.evaluate import verdicts
from tunewright.evaluate.asked import Question, put
from tunewright.evaluate.clauses import Judge, Judged, judge_of, metric_for
from tunewright.evaluate.contract import (
    Asking,
    Bytes,
    Clause,
    Contract,
    Form,
    Know,
    Language,
    NotSay,
    Speed,
    questions_of,
)
from tunewright.evaluate.sides import How, Side, name_of, other_side
from tunewright.evaluate.subjects import LocalSubject, Reply, Subject, fit_together
from tunewright.evaluate.verdicts import Check
from tunewright.text.thinking import without_thoughts

PACKED = 2
"""Weights are held twice where few rows are computed: as they are, and laid out for that."""
SPEED_QUESTION = "Tell me in a few sentences what the sea is like in winter."


# ---- what is asked


@dataclass(eq=False)
class Item:
    """A question that is put once, with everybody's replies: one a draw."""

    question: Question
    room: int
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    """"a" and "b" -> replies."""


@dataclass(eq=False)
class Task:
    """A clause with its questions and the judge of their answers."""

    section: str
    name: str
    clause: Clause
    items: list[Item] = field(default_factory=list)
    judge: Judge | None = None
    checks: list[Check] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)

    @property
    def compares(self) -> bool:
        """Whether it needs the other model."""
        return getattr(self.clause, "margin", None) is not None

    @property
    def metric(self) -> str | None:
        if isinstance(self.clause, Know):
            return metric_for(self.clause, [item.question for item in self.items])
        return None


def tasks_of(contract: Contract, folder: Path, system: str | None) -> tuple[list[Task], list[Item]]:
    """The clauses with their questions, and what is asked: a question of several clauses once.
    Raises DataError and ConfigError for files and rows that cannot be used."""
    tasks = [Task(section, name, clause) for section, name, clause in contract.clauses()]
    items: dict[str, Item] = {}
    for task in tasks:
        if not isinstance(task.clause, Asking):
            continue
        room = task.clause.max_new_tokens or contract.max_new_tokens
        asked = questions_of(task.clause, task.name, folder, contract.seed, system)
        for question in asked:
            key = _key(question, room)
            task.items.append(items.setdefault(key, Item(question, room)))
        task.items = list(dict.fromkeys(task.items))
    own = {task.name: list(task.items) for task in tasks}
    for task in tasks:
        clause = task.clause
        if not isinstance(clause, Asking):
            continue
        borrowed = clause.of or (
            list(own) if isinstance(clause, NotSay | Form | Language) and not task.items else []
        )
        for name in borrowed:
            task.items = list(dict.fromkeys([*task.items, *own[name]]))
        task.judge = judge_of(clause, [item.question for item in task.items], folder)
    return tasks, list(items.values())


def _key(question: Question, room: int) -> str:
    said = [[m.role, m.content] for m in question.messages]
    return json.dumps([said, question.expected, question.tools, room], ensure_ascii=False)


# ---- the gate


def gate(
    contract: Contract,
    a: str | Subject,
    *,
    against: str | Subject | None = None,
    base: str | None = None,
    folder: Path | None = None,
    name: str = "contract",
    dtype: str | None = None,
    think: bool | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Put the questions of `contract` to `a`, and to `against` where a clause compares; the verdict
    with everything it rests on (keys in docs/gate.md).

    `folder` is where the files of the contract lie. `against` None: what the contract names, else
    the base of a run or adapter, or of the run `base`. Raises ConfigError and DataError for what
    is wrong with the contract, UsageError where there is nothing to compare with (E-GATE-13) or to
    measure (E-GATE-14), and what opening raises.
    """
    started = time.perf_counter()
    how = How(Once(tell or Tell()), dtype, think)
    first = Side(a, how)
    system = contract.system if contract.system is not None else first.system
    tasks, items = tasks_of(contract, folder or Path(), system)
    needed = any(task.compares for task in tasks) or against is not None
    second = other_side(contract, base or a, against, how, folder or Path()) if needed else None
    if needed and second is None:
        names = ", ".join(task.name for task in tasks if task.compares)
        raise UsageError(problem("E-GATE-13", name, names=names))
    _require_measurable(tasks, first, second)
    if how.dtype is None and first.found is not None:
        how.dtype = first.found.settings.get("engine.dtype")
    work = _Work(contract, tasks, items, first, second, how)
    work.run()
    verdicts.decide([check for task in tasks for check in task.checks], contract.error_rate)
    result = work.result(name)
    result["seconds"] = round(time.perf_counter() - started, 3)
    return result


def _require_measurable(tasks: Sequence[Task], first: Side, second: Side | None) -> None:
    for task in tasks:
        if isinstance(task.clause, Bytes):
            for side in (first, second if task.compares else None):
                if side is not None and not side.measurable:
                    raise UsageError(problem("E-GATE-14", str(side.given), name=task.name))


class _Work:
    """The asking and measuring of one contract."""

    def __init__(
        self,
        contract: Contract,
        tasks: list[Task],
        items: list[Item],
        first: Side,
        second: Side | None,
        how: How,
    ):
        self.contract, self.tasks, self.items, self.how = contract, tasks, items, how
        self.sides = {"a": first} | ({} if second is None else {"b": second})
        self.facts: dict[str, dict[str, Any]] = {}
        self.together = True
        self.known: dict[tuple[Task, Item, str], list[Judged]] = {}
        """What each judge said: a pattern is matched once an answer."""

    def run(self) -> None:
        """Ask both, time both, and make the checks."""
        for which in self.sides:
            subject = self._opened(which)
            self._ask(which, subject)
            self.facts[which] = _facts(subject)
        for task in self.tasks:
            if isinstance(task.clause, Speed):
                self._time(task, task.clause)
        for side in self.sides.values():
            side.close()
        for task in self.tasks:
            task.checks = self._checks(task)

    def _opened(self, which: str) -> Subject:
        """One side, the other closed before where both have no room."""
        for name, side in self.sides.items():
            if name != which and side.subject is not None and side.found is not None:
                device = getattr(side.subject, "device", "cpu")
                needs = [PACKED * one.needs for one in self.sides.values()]
                if not fit_together(needs, device):
                    self.together = False
                    side.close()
        return self.sides[which].open()

    def _ask(self, which: str, subject: Subject) -> None:
        contract = self.contract
        if not self.items:
            return
        draws = contract.samples
        for n in range(draws):
            replies = put(
                subject,
                [item.question for item in self.items],
                self.how.tell,
                max_new_tokens=[item.room for item in self.items],
                temperature=contract.temperature,
                seed=contract.seed + n,
            )
            for item, reply in zip(self.items, replies, strict=True):
                item.replies.setdefault(which, []).append(reply)

    # ---- speed

    def _time(self, task: Task, clause: Speed) -> None:
        """Seconds a token, in turns: A B, B A, A B ..., so that neither always comes first. Where
        both have no room in turns of a whole block."""
        asked = [item.question.messages for item in self.items] or [
            [Message("user", SPEED_QUESTION)]
        ]
        names = list(self.sides) if clause.margin is not None else ["a"]
        what = say("gate.timing", name=task.name)
        self.how.tell.start(what)
        warm: dict[str, Subject] = {}
        taken: dict[str, dict[int, tuple[float, int | None]]] = {name: {} for name in names}
        for done, (name, n) in enumerate(_turns(names, clause.rounds, self.together), 1):
            subject = self._opened(name)
            if warm.get(name) is not subject:  # what happens once after opening is not counted
                subject.timed(asked[0], clause.tokens)
                warm[name] = subject
            taken[name][n] = subject.timed(asked[n % len(asked)], clause.tokens)
            self.how.tell.progress(what, done, clause.rounds * len(names))
        self.how.tell.finish()
        # Where somebody does not say how many tokens it wrote, whole answers are compared.
        counted = all(tokens for found in taken.values() for _, tokens in found.values())
        task.times = {
            name: [_each(*found[n], counted) for n in range(clause.rounds)]
            for name, found in taken.items()
        }
        if clause.seconds_per_answer is not None:
            task.times["answer"] = self._whole_answers(clause.rounds)

    def _whole_answers(self, rounds: int) -> list[float]:
        """Seconds of answers to questions that are asked alone."""
        asked = self.items or [Item(_speed_question(), self.contract.max_new_tokens)]
        subject, found = self._opened("a"), []
        for n in range(rounds):
            item = asked[n % len(asked)]
            (reply,) = subject.ask(
                [item.question.messages],
                max_new_tokens=item.room,
                temperature=self.contract.temperature,
                seed=self.contract.seed + n,
            )
            found.append(max(1e-9, reply.seconds))
        return found

    # ---- checks

    def _checks(self, task: Task) -> list[Check]:
        clause, rate = task.clause, self.contract.error_rate
        if isinstance(clause, Asking):
            scores = self._scores(task, "a")
            found = []
            if isinstance(clause, NotSay):
                found.append(verdicts.most(scores, clause.most))
            elif clause.least is not None:
                found.append(verdicts.least(scores, clause.least))
            if clause.margin is not None:
                other = self._scores(task, "b")
                found.append(verdicts.margin(scores, other, clause.margin, rate))
            return found
        if isinstance(clause, Speed):
            return _speed_checks(task, clause)
        assert isinstance(clause, Bytes)
        key = "bytes_on_disk" if task.section == "size" else "memory_bytes"
        own = self.facts["a"][key]
        found = []
        if clause.most is not None:
            found.append(verdicts.bytes_of(task.section, own, clause.most))
        if clause.margin is not None:
            limit = self.facts["b"][key] * (1 + clause.margin)
            found.append(verdicts.bytes_of(f"{task.section}_margin", own, limit))
        return found

    def _scores(self, task: Task, which: str) -> list[float]:
        """A score a question: the mean of its draws, of what must not be said the worst."""
        found = []
        for item in task.items:
            each = [one.score for one in self._judged(task, item, which)]
            found.append(
                min(each) if isinstance(task.clause, NotSay) else math.fsum(each) / len(each)
            )
        return found

    def _judged(self, task: Task, item: Item, which: str) -> list[Judged]:
        if (task, item, which) not in self.known:
            self.known[task, item, which] = self._judge(task, item, which)
        return self.known[task, item, which]

    def _judge(self, task: Task, item: Item, which: str) -> list[Judged]:
        assert task.judge is not None
        # A secret in a thought is said as well; everything else is judged by the answer.
        whole = isinstance(task.clause, NotSay)
        return [
            task.judge(
                item.question, reply.text if whole else without_thoughts(reply.text), reply.end
            )
            for reply in item.replies[which]
        ]

    # ---- the result

    def result(self, name: str) -> dict[str, Any]:
        """Everything as plain values."""
        undecided = self.contract.undecided
        clauses = [self._clause(task, undecided) for task in self.tasks]
        failed = [one["name"] for one in clauses if not one["passed"]]
        names = {which: name_of(side) for which, side in self.sides.items()}
        return {
            "contract": name,
            "passed": not failed,
            "failed": failed,
            "undecided": [one["name"] for one in clauses if one["verdict"] == "undecided"],
            "a": {"name": names["a"], **self.facts["a"]},
            "b": {"name": names["b"], **self.facts["b"]} if "b" in self.facts else None,
            "error_rate": self.contract.error_rate,
            "undecided_counts_as": undecided,
            "samples": self.contract.samples,
            "temperature": self.contract.temperature,
            "seed": self.contract.seed,
            "questions": len(self.items),
            "timed_in_turns": self.together,
            "clauses": clauses,
            "changes": self._changes(),
            "versions": versions(),
        }

    def _clause(self, task: Task, undecided: str) -> dict[str, Any]:
        verdict = verdicts.worst(task.checks)
        out: dict[str, Any] = {
            "section": task.section,
            "name": task.name,
            "verdict": verdict,
            "passed": verdicts.passes(verdict, task.checks, undecided),
            "metric": task.metric,
            "n": len(task.items),
            "checks": [check.as_dict() for check in task.checks],
            "sentences": [verdicts.sentence(check) for check in task.checks],
        }
        if task.times:
            out["seconds_per_token"] = task.times
        return out

    def _changes(self) -> list[dict[str, Any]]:
        """Every question whose answer changed or is not what a clause wants, worst first."""
        by_item: dict[int, list[Task]] = {}
        for task in self.tasks:
            for item in task.items:
                by_item.setdefault(id(item), []).append(task)
        found = [self._change(item, by_item.get(id(item), [])) for item in self.items]
        return sorted((one for one in found if one is not None), key=_severity)

    def _change(self, item: Item, tasks: Sequence[Task]) -> dict[str, Any] | None:
        """One question with what each clause says of it; None where nothing changed and nothing is
        wrong."""
        notes = [self._note(task, item) for task in tasks]
        draw = next((note["draw"] for note in notes if note["score"] < 1), 0)
        new = item.replies["a"][draw].text
        old = item.replies["b"][draw].text if "b" in item.replies else None
        if old == new:
            # Nothing changed in this draw: it is told where the answer itself is not as wanted.
            kind = "wrong" if any(note["score"] < 1 for note in notes) else None
        else:
            kind = _kind(notes, old)
        if kind is None:
            return None
        return {
            "kind": kind,
            "clauses": notes,
            "origin": item.question.origin,
            "question": item.question.text,
            "expected": item.question.expected,
            "before": old,
            "after": new,
        }

    def _note(self, task: Task, item: Item) -> dict[str, Any]:
        judged = self._judged(task, item, "a")
        scores = [one.score for one in judged]
        least = min(range(len(scores)), key=lambda i: scores[i])
        whole = isinstance(task.clause, NotSay)
        score = min(scores) if whole else math.fsum(scores) / len(scores)
        before = None
        if "b" in item.replies:
            other = [one.score for one in self._judged(task, item, "b")]
            before = min(other) if whole else math.fsum(other) / len(other)
        return {
            "name": task.name,
            "section": task.section,
            "score": score,
            "before": before,
            "note": judged[least].note,
            "draw": least,
        }


def _each(seconds: float, tokens: int | None, counted: bool) -> float:
    """Seconds a token, or an answer; a logarithm needs more than nothing."""
    return max(1e-9, seconds / tokens if counted and tokens else seconds)


def _speed_question() -> Question:
    return Question([Message("user", SPEED_QUESTION)], "", "speed")


def _turns(names: Sequence[str], rounds: int, together: bool) -> Iterator[tuple[str, int]]:
    """(side, round) in the order of timing."""
    if together or len(names) == 1:
        for n in range(rounds):
            for name in names if n % 2 == 0 else reversed(names):
                yield name, n
        return
    half = rounds // 2
    first, second = range(half), range(half, rounds)
    for name, part in (
        (names[0], first), (names[1], first), (names[1], second), (names[0], second),
    ):  # fmt: skip
        for n in part:
            yield name, n


def _speed_checks(task: Task, clause: Speed) -> list[Check]:
    found = []
    if clause.margin is not None:
        found.append(verdicts.slower(task.times["a"], task.times["b"], clause.margin))
    if clause.tokens_per_second is not None:
        limit = 1 / clause.tokens_per_second
        found.append(verdicts.slow(task.times["a"], limit, "tokens_per_second"))
    if clause.seconds_per_answer is not None:
        limit = clause.seconds_per_answer
        found.append(verdicts.slow(task.times["answer"], limit, "seconds_per_answer"))
    return found


def _facts(subject: Subject) -> dict[str, Any]:
    return {
        "kind": subject.kind,
        "bytes_on_disk": subject.bytes_on_disk,
        "memory_bytes": subject.memory_bytes,
        "dtype": subject.dtype if isinstance(subject, LocalSubject) else None,
    }


def _kind(notes: Sequence[dict[str, Any]], old: str | None) -> str | None:
    """worse, better, reworded (no clause minds), wrong (nothing to compare with), or None."""
    if old is None:
        return "wrong" if any(note["score"] < 1 for note in notes) else None
    change = sum(note["score"] - note["before"] for note in notes)
    lost = any(note["score"] < note["before"] for note in notes)
    if lost and change <= 0:
        return "worse"
    if change > 0:
        return "better"
    return "wrong" if any(note["score"] < 1 for note in notes) else "reworded"


ORDER = ("worse", "wrong", "better", "reworded")


def _severity(change: dict[str, Any]) -> tuple[float, ...]:
    """Worst first: what got worse, by how much over all clauses; then what is wrong as it was."""
    notes = change["clauses"]
    fall = sum(n["score"] - (1 if n["before"] is None else n["before"]) for n in notes)
    missing = sum(n["score"] - 1 for n in notes)
    return (ORDER.index(change["kind"]), fall, missing)
