"""`tunewright compare A B [C...]`: several models on the same questions with the same seeds, side
by side.

Models are opened one after another and closed again, so that only the largest must fit; what they
answered stays in a table. A difference is always that of the same rows (`interval.paired`): what
makes a row hard is the same for both. The log-probability of the expected answers is compared in
nats an answer, because two tokenizers cut the same answer into other tokens.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.machine import versions
from tunewright.core.telling import Once, Quiet, Tell
from tunewright.core.types import Conversation
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.evaluate import metrics
from tunewright.evaluate.address import is_address
from tunewright.evaluate.asked import Question, Read, read_questions, room_for
from tunewright.evaluate.interval import paired
from tunewright.evaluate.kept import Kept
from tunewright.evaluate.kept_replies import How, put_kept
from tunewright.evaluate.subjects import (
    AddressSubject,
    LocalSubject,
    Reply,
    Scored,
    Subject,
    open_subject,
    require_askable,
)

MOST_SUBJECTS = 8
DEFAULT_ROWS = 200
"""Rows that are asked where nobody says how many: written answers take time."""
CHECKED_ROWS = 4
"""Questions at which the base column is compared with a fresh load of the base."""


@dataclass
class Column:
    """One subject and everything that it said."""

    name: str
    target: str
    kind: str
    is_base: bool = False
    replies: list[Reply] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """The answers as they are compared: without thoughts."""
    losses: list[Scored | None] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How everybody is asked."""

    metrics: list[str]
    max_new_tokens: int
    temperature: float
    seed: int
    dtype: str | None
    think: bool | None
    system: str | None


def compare(
    targets: Sequence[str],
    data: str,
    *,
    base: bool = False,
    limit: int | None = None,
    wanted: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    dtype: str | None = None,
    think: bool | None = None,
    system: str | None = None,
    loss: bool = True,
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
    kept: Path | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Ask every target the rows of `data` and return the figures (keys in docs/compare.md).

    `base` adds what the first run or adapter was trained from as the first column. `wanted` names
    metrics; None: those that suit the expected answers. `system` stands before rows that have no
    system prompt; None: that of the runs, where they have the same one. `kept` is a table in which
    every answer stands as soon as it has ended: what stands there is not asked again.

    Raises UsageError for too few or too many targets, and what reading and opening raise.
    """
    tell, started = Once(tell or Tell()), time.perf_counter()
    _require(targets, base, limit, max_new_tokens, temperature)
    chosen = None if wanted is None else metrics.named(wanted)
    read = read_questions(
        data,
        limit=limit or DEFAULT_ROWS,
        seed=seed,
        data_format=data_format,
        columns=columns,
        data_dir=data_dir,
    )
    order = [(target, False) for target in targets]
    if base:
        order.insert(0, (_trained(targets), True))
    planned = _Planned(order, tell, think)
    spoken, warnings = planned.system(system)
    questions = [question.under(spoken) for question in read.questions]
    how = Settings(
        chosen or _metrics_for(questions),
        max_new_tokens or room_for(questions, planned.tokenizer()),
        temperature,
        seed,
        dtype or planned.dtype(),
        think,
        spoken,
    )
    warnings += _about_rows(read, questions, planned, data)
    table = _Table(questions, how, tell, loss, Kept(kept))
    try:
        for place, (target, is_base) in enumerate(order):
            table.ask(target, is_base, planned.name(place))
    finally:
        table.table.close()
    check = table.check_base(planned.base_column())
    seconds = time.perf_counter() - started
    return table.result(data, read, check, [*warnings, *table.warnings], seconds)


def _require(
    targets: Sequence[str],
    base: bool,
    limit: int | None,
    max_new_tokens: int | None,
    temperature: float,
) -> None:
    count = len(targets) + base
    if not 2 <= count <= MOST_SUBJECTS:
        raise UsageError(problem("E-EVAL-41", "compare", count=count, most=MOST_SUBJECTS))
    if any(n is not None and n < 1 for n in (limit, max_new_tokens)):
        raise UsageError(problem("E-EVAL-05", "--limit --max-new-tokens"))
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(problem("E-EVAL-42", "--temperature", value=temperature))


def _trained(targets: Sequence[str]) -> str:
    """The first target that was trained from something. Raises UsageError where none was."""
    for target in targets:
        if not is_address(target):
            found = opening.find(target, Quiet())
            if found.run is not None or found.adapter is not None:
                return target
    raise UsageError(problem("E-EVAL-43", "--base", targets=", ".join(targets)))


def _metrics_for(questions: Sequence[Question]) -> list[str]:
    return metrics.chosen_for([q.expected for q in questions if q.expected.strip()])


class _Planned:
    """What is known of the targets before any weights are read: a misspelt name is said at once,
    not after the first model has answered."""

    def __init__(self, order: Sequence[tuple[str, bool]], tell: Tell, think: bool | None):
        self.order = order
        self.found = [
            None if is_address(target) else opening.find(target, tell, base=is_base, think=think)
            for target, is_base in order
        ]
        for (target, _), found in zip(order, self.found, strict=True):
            if is_address(target):
                AddressSubject(target, tell)
            elif found is not None:
                require_askable(found)

    def name(self, place: int) -> str | None:
        """A name of its own for a target that stands twice; None for one that has one already."""
        before = self.order[:place].count(self.order[place])
        return f"{self.order[place][0]} ({before + 1})" if before else None

    def system(self, given: str | None) -> tuple[str | None, list[str]]:
        """The system prompt for rows without one, and what is to be said of it."""
        if given is not None:
            return given, []
        own = {found.system for found in self.found if found is not None and found.system}
        if len(own) > 1:
            return None, [say("beside.warning.systems", count=len(own))]
        return (own.pop() if own else None), []

    def dtype(self) -> str | None:
        """The first run's, so that all compute in the same."""
        return next(
            (
                str(found.settings["engine.dtype"])
                for found in self.found
                if found is not None and found.settings.get("engine.dtype")
            ),
            None,
        )

    def tokenizer(self) -> Any:
        """The first local model's."""
        found = next((found for found in self.found if found is not None), None)
        return None if found is None else found.renderer().tokenizer

    def base_column(self) -> int | None:
        """Which column is the base of a run or adapter that is compared with it."""
        for place, (_, is_base) in enumerate(self.order):
            if is_base:
                return place
        trained = {
            opening.find(target, Quiet(), base=True).source.folder.resolve()
            if found.run is not None
            else found.source.folder.resolve()
            for (target, _), found in zip(self.order, self.found, strict=True)
            if found is not None and (found.run is not None or found.adapter is not None)
        }
        return next(
            (
                place
                for place, found in enumerate(self.found)
                if found is not None
                and found.adapter is None
                and found.run is None
                and found.source.folder.resolve() in trained
            ),
            None,
        )


def _about_rows(
    read: Read, questions: Sequence[Question], planned: _Planned, data: str
) -> list[str]:
    said = []
    if len(questions) < read.rows - read.left_out:
        said.append(
            say("beside.warning.some", count=len(questions), rows=read.rows - read.left_out)
        )
    if read.left_out:
        said.append(say("beside.warning.no_question", count=read.left_out))
    for (target, _), found in zip(planned.order, planned.found, strict=True):
        trained = found.settings.get("data.train") if found is not None else None
        if isinstance(trained, str) and _same_place(trained, data):
            said.append(say("beside.warning.trained_on", name=target, data=data))
    if not any(q.expected.strip() for q in questions):
        said.append(say("beside.warning.nothing_expected"))
    return said


def _same_place(a: str, b: str) -> bool:
    return a == b or (Path(a).exists() and Path(b).exists() and Path(a).samefile(b))


class _Table:
    """The answers of everybody, and what follows from them."""

    def __init__(
        self, questions: list[Question], how: Settings, tell: Tell, loss: bool, table: Kept
    ):
        self.questions, self.how, self.tell, self.loss = questions, how, tell, loss
        self.table = table
        self.columns: list[Column] = []
        self.logits: dict[int, list[Any]] = {}
        self.warnings: list[str] = []

    # ---- asking

    def ask(self, target: str, is_base: bool, name: str | None) -> None:
        """Open a subject, ask it everything, close it."""
        how = self.how
        start = time.perf_counter()
        subject = open_subject(target, self.tell, base=is_base, dtype=how.dtype, think=how.think)
        subject.name = name or subject.name
        loaded = time.perf_counter()
        turn = sum((c.target, c.is_base) == (target, is_base) for c in self.columns)
        asking = How(how.max_new_tokens, how.temperature, how.seed, turn)
        replies, spent = put_kept(subject, self.questions, self.table, asking, self.tell)
        column = Column(
            subject.name,
            target,
            subject.kind,
            is_base,
            replies,
            [subject.bare(reply.text) for reply in replies],
        )
        column.facts = _facts(subject, replies, loaded - start, spent)
        if isinstance(subject, LocalSubject):
            if self.loss:
                column.losses = self._losses(subject)
            self.logits[len(self.columns)] = subject.logits(self._checked())
        if isinstance(subject, AddressSubject) and any(q.tools for q in self.questions):
            self.warnings.append(say("beside.warning.tools", name=subject.name))
        subject.close()
        self.columns.append(column)

    def _checked(self) -> list[Any]:
        return [question.messages for question in self.questions[:CHECKED_ROWS]]

    def _losses(self, subject: LocalSubject) -> list[Scored | None]:
        places = [i for i, q in enumerate(self.questions) if isinstance(q.row, Conversation)]
        rows = [q.row for q in self.questions if isinstance(q.row, Conversation)]
        out: list[Scored | None] = [None] * len(self.questions)
        if rows:
            what = say("beside.scoring", name=subject.name)
            self.tell.start(what)
            found = subject.losses(rows, lambda done: self.tell.progress(what, done, len(rows)))
            self.tell.finish()
            for place, one in zip(places, found, strict=True):
                out[place] = one
        return out

    def check_base(self, place: int | None) -> dict[str, Any] | None:
        """The base column against the base loaded afresh: logits at every place of the first
        questions."""
        if place is None:
            return None
        column = self.columns[place]
        fresh = open_subject(
            column.target,
            self.tell,
            base=column.is_base,
            dtype=self.how.dtype,
            think=self.how.think,
        )
        assert isinstance(fresh, LocalSubject)
        again = fresh.logits(self._checked())
        fresh.close()
        gaps = [
            math.inf if a.shape != b.shape else float((a - b).abs().max())
            for a, b in zip(self.logits[place], again, strict=True)
        ]
        return {
            "column": column.name,
            "rows": len(gaps),
            "places": sum(len(one) for one in again),
            "largest_logit_difference": max(gaps),
        }

    # ---- figures

    def result(
        self,
        data: str,
        read: Read,
        check: dict[str, Any] | None,
        warnings: list[str],
        seconds: float,
    ) -> dict[str, Any]:
        """Everything as plain values."""
        scores = self._scores()
        return {
            "data": data,
            "rows_read": read.rows,
            "n": len(self.questions),
            "metrics": self.how.metrics,
            "settings": {k: v for k, v in asdict(self.how).items() if k != "metrics"},
            "subjects": [self._subject(column) for column in self.columns],
            "pairs": [
                self._pair(a, b, scores) for a, b in combinations(range(len(self.columns)), 2)
            ],
            "base_check": check,
            "rows": self._rows(scores),
            "warnings": warnings,
            "seconds": round(seconds, 3),
            "versions": versions(),
        }

    def _judged(self) -> list[int]:
        """Rows that expect something."""
        return [i for i, q in enumerate(self.questions) if q.expected.strip()]

    def _scores(self) -> dict[str, list[list[float]]]:
        """metric -> column -> score of every judged row, from 0 to 1."""
        places = self._judged()
        expected = [self.questions[i].expected for i in places]
        return {
            name: [
                [
                    value / metrics.METRICS[name].scale
                    for value in metrics.per_row(name, expected, [c.texts[i] for i in places])
                ]
                for c in self.columns
            ]
            for name in self.how.metrics
        }

    def _subject(self, column: Column) -> dict[str, Any]:
        places = self._judged()
        expected = [self.questions[i].expected for i in places]
        answers = [column.texts[i] for i in places]
        figures = {
            name: metrics.figure(name, expected, answers, seed=self.how.seed)
            for name in self.how.metrics
        }
        return {
            "name": column.name,
            "target": column.target,
            "kind": column.kind,
            "is_base": column.is_base,
            "figures": figures,
            "loss": _loss(column.losses),
            **column.facts,
        }

    def _pair(self, a: int, b: int, scores: dict[str, list[list[float]]]) -> dict[str, Any]:
        """b - a."""
        first, second = self.columns[a], self.columns[b]
        same = sum(x == y for x, y in zip(first.texts, second.texts, strict=True))
        out: dict[str, Any] = {
            "a": first.name,
            "b": second.name,
            "same_answers": same,
            "differences": {
                name: asdict(paired(values[a], values[b], seed=self.how.seed))
                for name, values in scores.items()
                if values[a]
            },
        }
        nats = self._paired_nats(first, second)
        if nats:
            out["loss"] = asdict(paired(nats[0], nats[1], seed=self.how.seed))
            # Fewer nats are better, so wins and losses change places.
            out["loss"]["wins"], out["loss"]["losses"] = (
                out["loss"]["losses"],
                out["loss"]["wins"],
            )
            out["largest_loss_difference"] = max(abs(x - y) for x, y in zip(*nats, strict=True))
        speeds = [column.facts["tokens_per_second"] for column in (first, second)]
        out["speed_ratio"] = speeds[1] / speeds[0] if all(speeds) else None
        out["no_difference"] = same == len(self.questions) and not out.get(
            "largest_loss_difference", 0.0
        )
        return out

    def _paired_nats(self, a: Column, b: Column) -> tuple[list[float], list[float]] | None:
        pairs = [
            (x.nats, y.nats)
            for x, y in zip(a.losses or [], b.losses or [], strict=False)
            if x is not None and y is not None
        ]
        return ([x for x, _ in pairs], [y for _, y in pairs]) if pairs else None

    def _rows(self, scores: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
        """Every question with all answers; where the second falls most behind the first stands
        first, then other answers with the same score, then equal ones."""
        judged = {place: n for n, place in enumerate(self._judged())}
        rows = []
        for i, question in enumerate(self.questions):
            n = judged.get(i)
            own = {
                name: [column[n] for column in values] if n is not None else None
                for name, values in scores.items()
            }
            rows.append(
                {
                    "origin": question.origin,
                    "question": question.text,
                    "expected": question.expected,
                    "answers": [column.texts[i] for column in self.columns],
                    "ends": [column.replies[i].end for column in self.columns],
                    "scores": own,
                    "nats": [
                        None if c.losses is None or c.losses[i] is None else c.losses[i].nats  # type: ignore[union-attr]
                        for c in self.columns
                    ],
                    "same": len({column.texts[i] for column in self.columns}) == 1,
                }
            )
        return sorted(rows, key=_worst_first)


def _worst_first(row: dict[str, Any]) -> tuple[Any, ...]:
    changes = [s[1] - s[0] for s in row["scores"].values() if s is not None]
    nats = row["nats"]
    worse = nats[0] - nats[1] if nats[0] is not None and nats[1] is not None else 0.0
    return (sum(changes), row["same"], worse)


def _facts(
    subject: Subject, replies: Sequence[Reply], load: float, answering: float
) -> dict[str, Any]:
    """Speed, size and how answers ended."""
    written = [reply.written for reply in replies]
    tokens = sum(n for n in written if n is not None)
    known = all(n is not None for n in written)
    return {
        "bytes_on_disk": subject.bytes_on_disk,
        "memory_bytes": subject.memory_bytes,
        "dtype": subject.dtype if isinstance(subject, LocalSubject) else None,
        "device": subject.device if isinstance(subject, LocalSubject) else None,
        "load_seconds": round(load, 3),
        "answer_seconds": round(answering, 3),
        "tokens": tokens if known else None,
        "tokens_per_second": tokens / answering if known and answering > 0 else None,
        "seconds_per_answer": answering / len(replies) if replies else None,
        "ends": dict(Counter(reply.end for reply in replies)),
        "mean_characters": sum(len(r.text) for r in replies) / len(replies) if replies else None,
    }


def _loss(losses: Sequence[Scored | None] | None) -> dict[str, Any] | None:
    """Mean nats a token and a character, over the rows that could be scored."""
    kept = [one for one in losses or [] if one is not None]
    tokens, letters = sum(one.tokens for one in kept), sum(one.characters for one in kept)
    if not tokens:
        return None
    nats = math.fsum(one.nats for one in kept)
    return {
        "token_mean": nats / tokens,
        "tokens": tokens,
        "nats_per_answer": nats / len(kept),
        "nats_per_character": nats / letters if letters else None,
        "rows": len(kept),
    }
