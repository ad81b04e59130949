"""Answers in full: every row's question put to the model, greedily, and what the answers are worth.

Only the last answer of a dialogue is asked for; earlier ones stand in the question. Thoughts are
left out of both texts before they are compared. Reward functions see the whole answer and the
columns of the row's file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright import rewards
from tunewright.core.comparing import matches
from tunewright.core.errors import UsageError, problem
from tunewright.core.telling import Tell, telling_answers
from tunewright.core.types import Answer as Judgeable
from tunewright.core.types import Conversation, Origin, Prompt
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.engine.decoding.answers import Answer, answer
from tunewright.evaluate import interval, metrics
from tunewright.evaluate.answer_table import AnswerTable, about, name_of
from tunewright.models.limits import answer_room
from tunewright.text import thinking

MOST_NEW_TOKENS, THOUGHT_TOKENS = 512, 512
"""Most tokens of an answer unless told otherwise; and what is added where a model thinks before it
answers and the expected answer has no thought whose length would tell."""
SHOWN = 5
Askable = Conversation | Prompt


@dataclass
class Asked:
    """One row that was asked. `expected` and `text` are without thoughts."""

    row: Askable
    expected: str
    answer: Answer
    text: str
    line: dict[str, Any]
    """Its line of the table."""
    cut_off: bool = False
    """It was cut off inside its thought."""
    scores: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, float | None] = field(default_factory=dict)


def rooms(opened: opening.Opened, rows: Sequence[Askable], max_new_tokens: int | None) -> list[int]:
    """Most tokens of each row's answer: `max_new_tokens`, or a quarter more than the expected one
    has, at least what a run's own questions get."""
    if max_new_tokens is not None:
        return [max_new_tokens] * len(rows)
    renderer, found = opened.renderer, []
    for row in rows:
        expected = row.answer()
        room = answer_room(len(renderer.tokenizer(expected)["input_ids"]))
        form = renderer.form_of_row(row)
        thinks = form == "thinking" or (form == "default" and renderer.template.opens)
        more = THOUGHT_TOKENS if thinks and not renderer.has_thought(expected) else 0
        found.append(min(MOST_NEW_TOKENS, room) + more)
    return found


def ask(
    opened: opening.Opened,
    rows: Sequence[Askable],
    limits: Sequence[int],
    table: AnswerTable,
    tell: Tell,
) -> tuple[list[Asked], int]:
    """(every row with its answer, how many stood in the table). Lines are added to it as answers
    end. Raises what opening the table raises."""
    model = opened.answering
    prompts = [model.renderer.question(row) for row in rows]
    who = about(opened) if table.path is not None else ""
    names = [name_of(who, model, p, most) for p, most in zip(prompts, limits, strict=True)]
    answers = [table.find(name) for name in names]
    kept = sum(one is not None for one in answers)
    table.open(tell)
    open_ = [i for i, one in enumerate(answers) if one is None]
    lines = [
        _line(row, name, len(prompt), most)
        for row, name, prompt, most in zip(rows, names, prompts, limits, strict=True)
    ]
    before = sum(len(one.tokens) for one in answers if one is not None)
    told = telling_answers(tell, say("evaluate.answering"), len(rows), sum(limits))
    if kept:
        tell.line(say("evaluate.from_table", count=kept, n=len(rows), file=table.path))

    def on_answer(place: int, found: Answer) -> None:
        i = open_[place]
        answers[i] = found
        table.add(lines[i] | _answered(found))

    if open_:
        answer(
            model,
            [prompts[i] for i in open_],
            max_new_tokens=[limits[i] for i in open_],
            progress=lambda done, written, _: told(kept + done, before + written, 0),
            on_answer=on_answer,
        )
    tell.finish()
    renderer, asked = model.renderer, []
    for row, prompt, found, line in zip(rows, prompts, answers, lines, strict=True):
        assert found is not None
        # A thought that was cut off is no answer, whatever number stands in it.
        thought, text = thinking.parted(
            found.text, opened=renderer.opens(prompt), finished=found.end == "stop"
        )
        cut_off = bool(thought) and not text and found.end != "stop"
        whole = {**line, **_answered(found), **({"thought": thought} if thought else {})}
        expected = renderer.without_thoughts(row.answer())
        asked.append(Asked(row, expected, found, text, whole, cut_off))
    return asked, kept


def _line(row: Askable, name: str, prompt_tokens: int, most: int) -> dict[str, Any]:
    turns = row.question()
    question = next((m.content for m in reversed(turns) if m.role == "user"), "")
    return {
        "origin": str(row.origin),
        "question": question,
        "turns": len(turns),
        "expected": row.answer(),
        "prompt_tokens": prompt_tokens,
        "most_tokens": most,
        "key": name,
    }


def _answered(found: Answer) -> dict[str, Any]:
    return {
        "answer": found.text,
        "end": found.end,
        "tokens": len(found.tokens),
        "ids": list(found.tokens),
    }


def whole_line(one: Asked) -> dict[str, Any]:
    """A row of the finished table."""
    line = {**one.line, "scores": one.scores}
    return {**line, "rewards": one.rewards} if one.rewards else line


# ---- what they are worth


def _share(right: int, count: int) -> dict[str, Any]:
    return {
        "right": right,
        "share": right / count if count else None,
        "interval_95": list(interval.wilson(right, count)),
    }


def exact_match(asked: Sequence[Asked], options: Sequence[str] | None = None) -> dict[str, Any]:
    """How many answers are the expected ones (keys in docs/evaluate.md)."""
    verdicts = [matches(one.expected, one.text) for one in asked]
    ends = Counter(one.answer.end for one in asked)
    found = {
        "n": len(asked),
        "exact": _share(sum(v[0] for v in verdicts), len(asked)),
        "normalised": _share(sum(v[1] for v in verdicts), len(asked)),
        "max_new_tokens": max(one.line["most_tokens"] for one in asked),
        "context_full": ends["context"],
        "no_room": ends["no_room"],
        "mistakes": [
            {"origin": one.line["origin"], "expected": one.row.answer(), "answer": one.answer.text}
            for one, verdict in zip(asked, verdicts, strict=True)
            if not verdict[1]
        ][:SHOWN],
    }
    if options is not None:
        found["none_of_the_options"] = sum(one.text.strip() not in options for one in asked)
    return found


def measure(
    asked: Sequence[Asked], names: Sequence[str], words: metrics.Words, seed: int
) -> dict[str, Any]:
    """The figure of each metric by name; each row gets its scores."""
    expected, texts = [one.expected for one in asked], [one.text for one in asked]
    found = {}
    for name in names:
        found[name] = metrics.figure(name, expected, texts, seed=seed, words=words)
        values = metrics.per_row(name, expected, texts, words=words)
        for one, value in zip(asked, values, strict=True):
            one.scores[name] = value
    return found


def counts(opened: opening.Opened, asked: Sequence[Asked], kept: int) -> dict[str, Any]:
    """What was asked, in numbers, and how the answers ended."""
    questions = [one.row.question() for one in asked]
    has = opened.renderer.has_thought
    return {
        "asked": len(asked),
        "from_table": kept,
        "many_turns": sum(sum(m.role == "user" for m in turns) > 1 for turns in questions),
        "with_system": sum(bool(turns) and turns[0].role == "system" for turns in questions),
        "empty_expected": sum(not one.expected.strip() for one in asked),
        "empty_answers": sum(not one.text.strip() for one in asked),
        "with_thoughts": sum(has(one.answer.text) for one in asked),
        "unfinished_thoughts": sum(one.cut_off for one in asked),
        "ends": dict(Counter(one.answer.end for one in asked)),
        "answer_tokens": sum(len(one.answer.tokens) for one in asked),
    }


# ---- reward functions


def read_rewards(text: str, run_settings: dict[str, Any]) -> rewards.RewardSet:
    """The reward functions of `--rewards`: names with commas, mappings in braces, or `run` for
    those that the run was trained with. Raises UsageError (E-EVAL-23, E-EVAL-24) and what reading
    rewards raises."""
    import yaml

    if text.strip() == "run":
        spec = run_settings.get("objective.reward")
        if spec is None:
            raise UsageError(problem("E-EVAL-23", "--rewards", given=text))
    else:
        try:
            spec = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError as e:
            raise UsageError(problem("E-EVAL-23", "--rewards", given=text)) from e
    found = rewards.read(spec, on_bad="skip", place="--rewards")
    if found.models:
        folders = ", ".join(str(folder) for _, folder in found.models)
        raise UsageError(problem("E-EVAL-24", "--rewards", folders=folders))
    return found


PASS = 1.0
"""A row passes a function that gives it full marks."""


def pass_rates(
    asked: Sequence[Asked],
    wanted: rewards.RewardSet,
    columns: dict[Origin, dict[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """By function: how many answers pass, and the mean value; each row gets its values. Failures of
    a function are counted and shown, never scored."""
    answers = [
        Judgeable(
            one.row.question(),
            one.text,
            len(one.answer.tokens) + (one.answer.end == "stop"),
            one.answer.end == "stop",
            {"answer": one.expected} | columns.get(one.row.origin, {}),
            one.row.origin,
            one.line.get("thought", ""),
        )
        for one in asked
    ]
    scores = wanted.score(answers)
    out: dict[str, Any] = {}
    for part in wanted.functions:
        values = scores.parts[part.name]
        for one, given in zip(asked, values, strict=True):
            one.rewards[part.name] = given
        judged = [value for value in values if value is not None]
        faults = [(i, why) for i, name, why in scores.bad if name == part.name]
        failed = {i for i, _ in faults if values[i] is None}
        passed = sum(value >= PASS for value in judged)
        out[part.name] = {
            "pass_rate": passed / len(judged) if judged else None,
            "pass_interval_95": list(interval.wilson(passed, len(judged))) if judged else None,
            "passed": passed,
            "n": len(judged),
            "mean": sum(judged) / len(judged) if judged else None,
            "mean_interval_95": _interval_of(judged, seed),
            "no_opinion": len(values) - len(judged) - len(failed),
            "failed": len(failed),
            "faults": [
                {"origin": asked[i].line["origin"], "why": why} for i, why in faults[:SHOWN]
            ],
        }
    return out


def _interval_of(values: Sequence[float], seed: int) -> list[float] | None:
    """Of a mean of values that need not lie between 0 and 1."""
    if not values:
        return None
    if all(0 <= value <= 1 for value in values):
        return list(interval.of_scores(values, seed=seed))
    return list(interval.bootstrap(values, seed=seed))
