"""What a run and what was made of it are both asked: whole rows for their logits, questions for
their answers.

The run's held-out rows come first, then those it learnt from; where the data is gone, the questions
that were asked before and after; where there is neither, a few sentences.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.files import read_json_lines
from tunewright.core.types import Branch, Message, PlainText, Row
from tunewright.data import inspect
from tunewright.data.inspecting import DataSet
from tunewright.engine import opening

MAX_PROMPTS, PROMPT_TOKENS = 48, 256
MAX_QUESTIONS = 8
CALIBRATION_ROW = 512
"""Most tokens of a row that a model is calibrated on."""
QUESTIONS = (
    "What is the capital of France?",
    "请用一句话介绍你自己。",
    "Write two lines about the sea.",
    "Count from one to ten.",
    "为什么天空是蓝色的？",
)
"""Asked when neither the run's data nor its questions can be read."""


@dataclass
class Prompts:
    """Token ids that both models are asked, and where they came from: `data`, `questions` or
    `built-in`."""

    ids: list[list[int]]
    kind: str
    weights: list[list[float]] = field(default_factory=list)
    """For each prompt what the loss of each of its tokens counts: 0 for what is only read."""
    held_out: int = 0
    """How many of them the run did not learn from."""

    def __post_init__(self) -> None:
        self.weights = self.weights or [[0.0] * len(one) for one in self.ids]

    @property
    def shared(self) -> list[int]:
        """For each prompt how many of its first tokens an earlier one has, too. They say the same
        again: one system prompt before every row would otherwise decide the figures."""
        seen: set[tuple[int, ...]] = set()
        found = []
        for ids in self.ids:
            heads = [tuple(ids[: i + 1]) for i in range(len(ids))]
            found.append(sum(head in seen for head in heads))
            seen.update(heads)
        return found

    @property
    def positions(self) -> int:
        """Rows of logits that are compared."""
        return sum(map(len, self.ids)) - sum(self.shared)


@dataclass(frozen=True)
class Question:
    """A dialogue that ends where the model answers, and what was expected; empty where nobody
    knows."""

    messages: list[Message]
    expected: str = ""


@dataclass
class Asking:
    """Everything that is asked."""

    prompts: Prompts
    questions: list[Question]


def choose(
    target: opening.Target, renderer: Any, max_positions: int, words: Sequence[int] = ()
) -> Asking:
    """What both models are asked. Before the rows stand the tokens `words` that were added to the
    vocabulary: their rows are looked at whatever else is asked."""
    half = PROMPT_TOKENS // 2
    added = [[*renderer.lead, *words[i : i + half]] for i in range(0, len(words), half)]
    asked = _asked_before(target)
    data = _data_of(target, renderer)
    if data is not None:
        found = [*_branches(data.held_out), *_branches(data.train)]
        held_out = min(len(_branches(data.held_out)), MAX_PROMPTS)
        if found:
            prompts = _within(added, found, max_positions, "data")
            prompts.held_out = min(held_out, max(0, len(prompts.ids) - len(added)))
            rows = [*data.held_out_rows[:MAX_QUESTIONS], *data.train_rows[:MAX_QUESTIONS]]
            told = [q for row in rows if (q := _question(row)) is not None]
            return Asking(prompts, (asked + told)[:MAX_QUESTIONS])
    if asked:
        whole = [_answered(renderer, one) for one in asked]
        return Asking(_within(added, whole, max_positions, "questions"), asked[:MAX_QUESTIONS])
    own = [Question([Message("user", text)]) for text in QUESTIONS]
    plain = [Branch(renderer.prompt(one.messages), [], []) for one in own]
    return Asking(_within(added, plain, max_positions, "built-in"), own)


def learnt_rows(target: opening.Target, renderer: Any, max_tokens: int) -> list[list[int]]:
    """Token ids of rows that the run learnt from, spread over all of them, `max_tokens` together;
    empty where its data cannot be read."""
    data = _data_of(target, renderer)
    samples = [] if data is None else data.train
    found: list[list[int]] = []
    left = max_tokens
    # A few from everywhere: files are often sorted.
    step = max(1, len(samples) * CALIBRATION_ROW // (4 * max_tokens))
    for number in [n for first in range(step) for n in range(first, len(samples), step)]:
        for branch in samples[number].branches:
            row = branch.tokens[: min(CALIBRATION_ROW, left)]
            left -= len(row)
            if row:
                found.append(row)
            if left <= 0:
                return found
    return found


def _within(
    added: list[list[int]], found: Sequence[Branch], max_positions: int, kind: str
) -> Prompts:
    """As many whole prompts as `max_positions` has room for; the last is cut."""
    rows = [Branch(ids, [], []) for ids in added] + list(found)
    ids: list[list[int]] = []
    weights: list[list[float]] = []
    left = max_positions
    for row in rows[:MAX_PROMPTS]:
        cut = row.tokens[: min(PROMPT_TOKENS, left)]
        if not cut:
            break
        left -= len(cut)
        counts = [0.0] * len(row.tokens)
        for place, weight in zip(row.learnt, row.weights, strict=True):
            counts[place] = weight
        ids.append(cut)
        weights.append(counts[: len(cut)])
    return Prompts(ids, kind, weights)


def _branches(samples: Sequence[Any]) -> list[Branch]:
    """The first branches of a set; of a pair both answers."""
    return [branch for sample in samples[:MAX_PROMPTS] for branch in sample.branches]


def _data_of(target: opening.Target, renderer: Any) -> DataSet | None:
    """The rows that the run read, split as it split them; None where they are no longer there or no
    longer readable."""
    names = {
        key.removeprefix("data."): value
        for key, value in target.settings.items()
        if key.startswith("data.") and value is not None
    }
    if not names:
        return None
    try:
        config = DataConfig.model_validate(names)
        seed = int(target.settings.get("engine.seed") or 0)
        return inspect(config, renderer, seed=seed, refuse=False, check=False)
    except (TunewrightError, ValueError, OSError):
        return None


def _question(row: Row) -> Question | None:
    """The question of a row with its answer; None for running text."""
    if isinstance(row, PlainText):
        return None
    turns = list(row.question())
    return Question(turns, row.answer()) if turns and turns[-1].role == "user" else None


def _asked_before(target: opening.Target) -> list[Question]:
    """The questions that the run asked before and after, under its system prompt."""
    path = (target.run or Path()) / "before_after.jsonl"
    if target.run is None or not path.is_file():
        return []
    system = [Message("system", target.system)] if target.system else []
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for row in read_json_lines(path)[:MAX_PROMPTS]:
            asked = [*system, Message("user", row["question"])]
            found.append(Question(asked, row.get("expected") or row.get("after") or ""))
    return found


def _answered(renderer: Any, one: Question) -> Branch:
    """A question with its answer as one row."""
    said = Message("assistant", one.expected or "-")
    rendered = renderer.render([*one.messages, said])
    learnt = [i for first, after in rendered.spans for i in range(max(first, 1), after)]
    return Branch(rendered.ids, learnt, [1.0] * len(learnt))
