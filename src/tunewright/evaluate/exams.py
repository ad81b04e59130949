"""`tunewright evaluate MODEL --exam FOLDER|FILE`: multiple-choice exams (MMLU, C-Eval, CMMLU).

Asked as lm-eval asks, so the figures stand beside published ones: a sentence that names the
subject, up to five solved examples, the question with its choices, and the log-probability of each
letter as the next words. The letters of a question are branches of one sample, and what all
questions of a subject share (sentence and examples) is computed once; lm-eval computes it for every
letter of every question. With `chat` the same is asked through the model's chat template.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunewright.core.errors import UsageError, problem
from tunewright.core.machine import versions
from tunewright.core.telling import Tell, duration
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.evaluate.answer_table import about
from tunewright.evaluate.continuations import Pair, Scorer, encode_pairs, open_scorer
from tunewright.evaluate.exam_files import LETTERS, Exam, Item, Subject, read_exam
from tunewright.evaluate.interval import wilson
from tunewright.evaluate.kept import KEY, Kept, name_of
from tunewright.text.rendered import CannotRender

TABLE = "exam.jsonl"
"""The table of answers, a question a line."""
AT_ONCE = 100
"""Questions of a subject that are computed together, and kept: a kill loses no more."""
MOST_SHOTS = 20
USUAL_SHOTS = 5
ONE_LETTER = 0.8
"""A model that gives one letter to more of the questions than this looks at letters only."""
SELDOM = 0.1
"""Below this mean probability of all letters together the model would not answer with one."""
Language = Literal["auto", "en", "zh"]


# ---- prompts


@dataclass(frozen=True)
class Form:
    """How an exam is worded: with the sentences of lm-eval's tasks, so that figures compare."""

    kind: str
    """mmlu, ceval or cmmlu."""

    def opening(self, subject: Subject, chinese: str | None) -> str:
        """The sentence before everything."""
        name = (chinese or subject.name.replace("_", " ")) if subject.is_named else ""
        if self.kind == "mmlu":
            about = f" about {subject.name.replace('_', ' ')}" if subject.is_named else ""
            return f"The following are multiple choice questions (with answers){about}.\n\n"
        if self.kind == "ceval":
            return (
                f"以下是中国{f'关于{name}' if name else ''}的单项选择题，请选出其中的正确答案。\n\n"
            )
        about = f"关于{name}的" if name else ""
        return f"以下是{about}单项选择题，请直接给出正确答案的选项。\n\n"

    def question(self, item: Item) -> str:
        """A question with its choices, up to where the letter follows."""
        lines = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(item.choices)]
        end = "Answer:" if self.kind == "mmlu" else "答案："
        return "\n".join([item.question.strip(), *lines, end])

    def text(self, item: Item, shots: Sequence[Item], first: str) -> str:
        """The whole prompt as running text."""
        solved = (f"{self.question(shot)} {LETTERS[shot.right]}\n\n" for shot in shots)
        return "".join([first, *solved, self.question(item)])

    def turns(
        self, item: Item, shots: Sequence[Item], first: str, system: str | None
    ) -> list[Message]:
        """The same as a dialogue: each example is a turn and its answer."""
        turns = [] if system is None else [Message("system", system)]
        for place, one in enumerate([*shots, item]):
            turns.append(Message("user", (first if not place else "") + self.question(one)))
            if place < len(shots):
                turns.append(Message("assistant", LETTERS[one.right]))
        return turns


def _form(exam: Exam, language: Language) -> Form:
    if language == "auto":
        return Form(exam.kind)
    if language == "en":
        return Form("mmlu")
    return Form("cmmlu" if exam.kind == "mmlu" else exam.kind)


class _Asker:
    """Questions to token pairs, with as many examples as fit."""

    def __init__(self, exam: Exam, form: Form, opened: opening.Opened, room: int, chat: bool):
        self.exam, self.form, self.opened, self.room, self.chat = exam, form, opened, room, chat
        self.fewer = self.cut = 0

    def counts(self, shots: int) -> dict[str, Any]:
        """How many examples were shown, and what could not be asked as it should."""
        there = max((len(subject.examples) for subject in self.exam.subjects), default=0)
        left_out = self.exam.left_out
        return {
            "shots": min(shots, there),
            "fewer_shots": self.fewer,
            "cut_at_the_beginning": self.cut,
            "left_out": {k: {"count": len(v), "examples": v[:5]} for k, v in left_out.items()},
        }

    def pairs(self, subject: Subject, item: Item, shots: int) -> list[Pair] | None:
        """One pair a letter; None where the template cannot write the question."""
        first = self.form.opening(subject, self.exam.names(subject.name)[0])
        found: list[Pair] = []
        for count in range(min(shots, len(subject.examples)), -1, -1):
            found = self._made(item, subject.examples[:count], first)
            if not found or max(len(a) + len(b) for a, b in found) <= self.room:
                self.fewer += count < min(shots, len(subject.examples))
                return found or None
        self.cut += 1
        return found

    def _made(self, item: Item, shots: Sequence[Item], first: str) -> list[Pair]:
        count = len(item.choices)
        if not self.chat:
            text = self.form.text(item, shots, first)
            ends = [f" {LETTERS[i]}" for i in range(count)]
            return encode_pairs(self.opened.tokenizer, text, ends)
        turns = self.form.turns(item, shots, first, self.opened.target.system)
        made = []
        for letter in LETTERS[:count]:
            try:
                rendered = self.opened.renderer.render([*turns, Message("assistant", letter)])
            except CannotRender:
                return []
            (start, end), stop = rendered.spans[-1], rendered.stop_index[-1]
            made.append((rendered.ids[:start], rendered.ids[start : end - (stop is not None)]))
        return made


# ---- the whole exam


@dataclass
class _Answer:
    """What the model found likeliest for one question."""

    subject: str
    item: Item
    scores: list[float]

    @property
    def chosen(self) -> int:
        """The first of the highest."""
        return max(range(len(self.scores)), key=lambda i: (self.scores[i], -i))

    @property
    def is_right(self) -> bool:
        return self.chosen == self.item.right

    def as_row(self) -> dict[str, Any]:
        """For `--details` and the table of answers."""
        return {
            "origin": str(self.item.origin),
            "subject": self.subject,
            "answer": LETTERS[self.item.right],
            "chosen": LETTERS[self.chosen],
            "scores": self.scores,
        }


def take_exam(
    target: str,
    place: str,
    *,
    shots: int | None = None,
    chat: bool = False,
    language: Language = "auto",
    limit: int | None = None,
    base: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    details: bool = False,
    out: str | Path | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Ask `target` (run, adapter, model folder, hub id) every question of the exam in `place` and
    return the figures (keys in docs/exams.md).

    `shots` None: five, or as many as there are examples. `limit`: questions of each subject. `out`
    keeps every answer in a table in that folder and asks nothing again that stands there. Raises
    UsageError for a number of shots outside 0 to 20, DataError for what is no exam, ModelError for
    a model that cannot be opened.
    """
    tell, started = tell or Tell(), time.perf_counter()
    if (shots is not None and not 0 <= shots <= MOST_SHOTS) or (limit is not None and limit < 1):
        raise UsageError(problem("E-EXAM-03", "--shots --limit", most=MOST_SHOTS))
    if language not in ("auto", "en", "zh"):
        raise UsageError(problem("E-EXAM-04", "--exam-language", value=language))
    exam = read_exam(place)
    scorer = open_scorer(target, tell, base=base, dtype=dtype, device=device, threads=threads)
    loaded = time.perf_counter()
    asker = _Asker(exam, _form(exam, language), scorer.opened, scorer.context, chat)
    wanted = USUAL_SHOTS if shots is None else shots
    table = Kept(None if out is None else Path(out) / TABLE)
    try:
        answers, lost = _asked(exam, asker, scorer, wanted, limit, table, tell)
    finally:
        table.close()
    result: dict[str, Any] = {
        **scorer.about(),
        "data": place,
        "exam": {
            "kind": asker.form.kind,
            "split": exam.split,
            "chat": chat,
            **report(exam, answers),
            **asker.counts(wanted),
        },
        "versions": versions(),
    }
    result["warnings"] = _warnings(result["exam"], exam, shots, lost)
    if details:
        result["rows"] = [one.as_row() for one in answers]
    now = time.perf_counter()
    result["seconds"] = {"load": round(loaded - started, 3), "total": round(now - started, 3)}
    return result


def _asked(
    exam: Exam,
    asker: _Asker,
    scorer: Scorer,
    shots: int,
    limit: int | None,
    table: Kept,
    tell: Tell,
) -> tuple[list[_Answer], int]:
    """(every question answered, how many could not be asked)."""
    answers: list[_Answer] = []
    lost = done = 0
    total = sum(len(subject.items[:limit]) for subject in exam.subjects)
    who = about(scorer.opened) if table.path is not None else None
    tell.start(say("exam.asking"))
    for subject in exam.subjects:
        asked: list[tuple[Item, list[Pair]]] = []
        for item in subject.items[:limit]:
            made = asker.pairs(subject, item, shots)
            if made is None:
                lost += 1
            else:
                asked.append((item, made))
        for start in range(0, max(1, len(asked)), AT_ONCE):
            tell.progress(say("exam.asking"), done + start, total, subject.name)
            part = asked[start : start + AT_ONCE]
            answers += _answered(subject.name, part, scorer, table, who)
        done += len(subject.items[:limit])
    tell.progress(say("exam.asking"), total, total)
    tell.finish()
    if not answers:
        raise UsageError(problem("E-EXAM-01", exam.subjects[0].name, reasons=f"{lost}"))
    return answers, lost


def _answered(
    subject: str, asked: Sequence[tuple[Item, list[Pair]]], scorer: Scorer, table: Kept, who: Any
) -> list[_Answer]:
    """The answers to the questions of one subject: those of the table, and the others scored
    together. Raises UsageError (E-EVAL-04) for a score that is no finite number."""
    names = [name_of(who, pairs) if who is not None else "" for _, pairs in asked]
    known = [table.find(name) for name in names]
    pairs = [
        pair for (_, own), line in zip(asked, known, strict=True) if line is None for pair in own
    ]
    scores = iter(value for value, _ in scorer.score(pairs)) if pairs else iter(())
    answers = []
    for (item, own), line in zip(asked, known, strict=True):
        found = [next(scores) for _ in own] if line is None else list(line["scores"])
        if not all(map(math.isfinite, found)):
            raise UsageError(problem("E-EVAL-04", str(item.origin), value=found[0]))
        answers.append(_Answer(subject, item, found))
    table.add({**one.as_row(), KEY: name} for one, name in zip(answers, names, strict=True))
    return answers


# ---- figures


def report(exam: Exam, answers: Sequence[_Answer]) -> dict[str, Any]:
    """Accuracy in all, over subjects, by category and by subject, each with its interval (keys in
    docs/exams.md)."""
    by_subject: dict[str, list[_Answer]] = {}
    by_category: dict[str, list[_Answer]] = {}
    for one in answers:
        by_subject.setdefault(one.subject, []).append(one)
        for category in exam.names(one.subject)[1]:
            by_category.setdefault(category, []).append(one)
    chance = sum(1 / len(one.item.choices) for one in answers) / len(answers)
    whole = _share(answers)
    chosen = Counter(LETTERS[one.chosen] for one in answers)
    likely = sum(min(1.0, sum(map(math.exp, one.scores))) for one in answers) / len(answers)
    return {
        **whole,
        "chance": chance,
        "beats_chance": whole["interval_95"][0] > chance,
        "mean_of_subjects": _mean_of_subjects(list(by_subject.values())),
        "categories": [{"category": c, **_share(a)} for c, a in sorted(by_category.items())],
        "subjects": [{"subject": s, **_share(a)} for s, a in sorted(by_subject.items())],
        "letters": {letter: chosen[letter] for letter in LETTERS if chosen[letter]},
        "letters_right": dict(sorted(Counter(LETTERS[one.item.right] for one in answers).items())),
        "probability_of_letters": likely,
    }


def _share(answers: Sequence[_Answer]) -> dict[str, Any]:
    right = sum(one.is_right for one in answers)
    return {
        "n": len(answers),
        "right": right,
        "accuracy": right / len(answers),
        "interval_95": list(wilson(right, len(answers))),
    }


def _mean_of_subjects(groups: Sequence[Sequence[_Answer]], draws: int = 1000) -> dict[str, Any]:
    """The mean of the subjects' accuracies, as C-Eval and CMMLU give it, with the percentiles of a
    bootstrap inside each subject."""
    shares = [sum(one.is_right for one in group) / len(group) for group in groups]
    draw = random.Random(0)
    means = sorted(
        sum(
            sum(draw.random() < share for _ in group) / len(group)
            for share, group in zip(shares, groups, strict=True)
        )
        / len(groups)
        for _ in range(draws if sum(map(len, groups)) <= 3000 else draws // 10)
    )
    low, high = means[round(0.025 * (len(means) - 1))], means[round(0.975 * (len(means) - 1))]
    return {"accuracy": sum(shares) / len(shares), "interval_95": [low, high]}


def _warnings(figures: dict[str, Any], exam: Exam, shots: int | None, lost: int) -> list[str]:
    """What a reader of the figures has to know, in words."""
    out = [
        say(
            "exam.warning.left_out",
            count=len(rows),
            what=say(f"exam.reason.{reason}"),
            first=rows[0],
        )
        for reason, rows in exam.left_out.items()
    ]
    if lost:
        out.append(say("exam.warning.lost", count=lost))
    if shots and figures["shots"] < shots:
        out.append(say("exam.warning.few_examples", wanted=shots, count=figures["shots"]))
    for key in ("fewer_shots", "cut_at_the_beginning"):
        if figures[key]:
            out.append(say(f"exam.warning.{key}", count=figures[key], n=figures["n"]))
    letter, count = max(figures["letters"].items(), key=lambda pair: pair[1])
    if figures["n"] >= 20 and count > ONE_LETTER * figures["n"]:
        share = f"{100 * count / figures['n']:.0f} %"
        out.append(say("exam.warning.one_letter", letter=letter, share=share))
    if figures["probability_of_letters"] < SELDOM:
        share = f"{100 * figures['probability_of_letters']:.2g} %"
        out.append(say("exam.warning.seldom", share=share))
    return out


def lines(result: dict[str, Any]) -> list[str]:
    """The figures for a terminal, in the reader's language."""

    def shown(share: dict[str, Any]) -> dict[str, str]:
        low, high = (f"{100 * v:.1f} %" for v in share["interval_95"])
        return {"accuracy": f"{100 * share['accuracy']:.1f} %", "low": low, "high": high}

    exam = result["exam"]
    split = exam["split"] or "-"
    out = [
        say("exam.head", target=result["target"], data=result["data"], split=split, **_heads(exam))
    ]
    key = "exam.accuracy_beats" if exam["beats_chance"] else "exam.accuracy"
    chance = f"{100 * exam['chance']:.1f} %"
    out.append(say(key, **shown(exam), right=exam["right"], n=exam["n"], chance=chance))
    if len(exam["subjects"]) > 1:
        count = len(exam["subjects"])
        out.append(say("exam.mean", **shown(exam["mean_of_subjects"]), count=count))
    out += [
        say("exam.part", name=one["category"], n=one["n"], **shown(one))
        for one in exam["categories"]
    ]
    if len(exam["subjects"]) > 1:
        out += [
            say("exam.part", name="  " + one["subject"], n=one["n"], **shown(one))
            for one in exam["subjects"]
        ]
    letters = " · ".join(f"{letter} {count}" for letter, count in exam["letters"].items())
    truth = " · ".join(f"{letter} {count}" for letter, count in exam["letters_right"].items())
    out.append(say("exam.letters", letters=letters, truth=truth))
    seconds = result["seconds"]
    return [
        *out,
        *result["warnings"],
        say(
            "evaluate.seconds",
            time=duration(seconds["total"]),
            load=f"{seconds['load']:.0f}",
            where=f"{result['device']} {result['dtype']}",
            layout=result["layout"],
        ),
    ]


def _heads(exam: dict[str, Any]) -> dict[str, Any]:
    names = {"mmlu": "MMLU", "ceval": "C-Eval", "cmmlu": "CMMLU"}
    form = say("exam.form.chat" if exam["chat"] else "exam.form.text")
    return {"shots": exam["shots"], "form": f"{names[exam['kind']]}, {form}"}
