"""Measured ways: what each answered, its score on every row, what it costs; kept, so that nothing
is measured twice.

What is kept of a way lies in `measured/<way>.json` of the advice's folder, under a key of all that
decides it: the model's files, the rows, the prompts' token ids, the seed. Another key, another
measurement.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewright.advise.decide import Gain, Score
from tunewright.commands.advising.lookup import same
from tunewright.commands.advising.prompts import Way
from tunewright.commands.advising.rows import Rows
from tunewright.core.comparing import contains, folded
from tunewright.core.files import write_json
from tunewright.core.telling import Tell, telling_answers
from tunewright.core.types import Conversation
from tunewright.core.words import say
from tunewright.evaluate import interval, metrics

VERSION = 1
"""Changes whenever the same way to ask may be measured otherwise."""
PREFERRED = ("json_equal", "number", "contains", "rougeL", "f1", "exact")
"""Of the metrics that suit the answers, the one that judges what is said and not how."""
FORM_OF = {"contains": "normalised", "number": "normalised", "labels": "normalised"}
"""What judges the form beside it."""
SHORT_ANSWER_TOKENS, MOST_ANSWER_TOKENS = 32, 256


@dataclass
class Measured:
    """What one way did on the held-out rows."""

    way: str
    answers: list[str]
    scores: list[float]
    """From 0 to 1, a row each."""
    forms: list[float] = field(default_factory=list)
    """1 where the answer has the expected form as well; empty where the metric judges both."""
    seconds: float = 0.0
    """Of all answers, written side by side."""
    prompt_tokens: float = 0.0
    """Mean of a question."""
    setup_seconds: float = 0.0
    disk_bytes: int = 0
    """Besides the model."""
    ends: dict[str, int] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    """SQL behind the answers."""

    @property
    def seconds_per_answer(self) -> float:
        return self.seconds / max(1, len(self.answers))


class Judge:
    """How answers are scored: chosen once, from the expected answers alone."""

    def __init__(self, rows: Rows):
        self.rows = rows
        every = [row.answer() for row in [*rows.held_out, *rows.train[:1000]]]
        suited = metrics.chosen_for(every)
        self.metric = next((name for name in PREFERRED if name in suited), suited[0])
        if self.metric in ("contains", "rougeL") and len(set(map(_without_number, every))) == 1:
            self.metric = "number"  # "Score: 31.5": the same words around every number
        if rows.labels:
            self.metric = "labels"

    @property
    def form(self) -> str | None:
        """The metric of the form, if there is one beside."""
        return FORM_OF.get(self.metric)

    def scores(self, answers: Sequence[str], *, of_query: bool = False) -> list[float]:
        """What each held-out row's answer is worth, from 0 to 1. A query's result is right where
        it is what a sentence says (`lookup.same`)."""
        expected = self.rows.expected
        if self.metric == "labels":
            found = [float(self._names(a, e)) for a, e in zip(answers, expected, strict=True)]
        else:
            scale = metrics.METRICS[self.metric].scale
            found = [v / scale for v in metrics.per_row(self.metric, expected, list(answers))]
        if not of_query:
            return found
        return [
            max(value, float(same(e, a, q)))
            for value, e, a, q in zip(found, expected, answers, self.rows.questions, strict=True)
        ]

    def forms(self, answers: Sequence[str]) -> list[float]:
        """1 for each answer that is the expected one to the letter, but case and punctuation."""
        if self.form is None:
            return []
        return metrics.per_row(self.form, self.rows.expected, list(answers))

    def _names(self, answer: str, expected: str) -> bool:
        """Whether an answer names the expected label and no other. A label inside a longer one that
        is named does not count."""
        text = folded(answer)
        if text.strip(".!\"'` ") == folded(expected):
            return True
        named = []
        for label in sorted(self.rows.labels, key=len, reverse=True):
            short = folded(label)
            if _stands(short, text):
                named.append(short)
                text = text.replace(short, "\x00")
        return named == [folded(expected)]


def _without_number(text: str) -> str:
    """A text with its one number left out; itself where there is none, or several."""
    found = re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?", text)
    return text.replace(found[0], "#", 1) if len(found) == 1 else text


def _stands(label: str, text: str) -> bool:
    """Whether a label stands in a text as a word of its own."""
    place = text.find(label)
    while place >= 0:
        before, after = text[place - 1 : place], text[place + len(label) : place + len(label) + 1]
        wide = any("\u3040" <= c <= "\u9fff" for c in label)
        if wide or not (before.isalnum() or after.isalnum()):
            return contains(text, label)
        place = text.find(label, place + 1)
    return False


class Kept:
    """The measured ways of an advice's folder."""

    def __init__(self, folder: Path):
        self.folder = folder / "measured"

    def get(self, way: str, key: str) -> Measured | None:
        """What was measured under this key; None for nothing, or a file that is none of ours."""
        try:
            value = json.loads((self.folder / f"{way}.json").read_text(encoding="utf-8"))
            return Measured(**value["measured"]) if value["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, measured: Measured) -> None:
        """Keep it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        value = {"key": key, "measured": asdict(measured)}
        write_json(self.folder / f"{measured.way}.json", value)


def key_of(*facts: Any) -> str:
    """A hash of everything that decides a measurement."""
    text = json.dumps([VERSION, *facts], ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_of(model: Any, way: Way, row: Conversation, limit: int) -> list[int]:
    """Token ids of a row's question in a way, with as many examples and passages as leave room for
    an answer of `limit` tokens."""
    renderer, room = model.renderer, model.room(0)
    form = renderer.form_of([m.content for m in row.messages if m.role == "assistant"])
    tokens: list[int] = []
    for shrink in range(way.most_shrink + 1):
        tokens = renderer.prompt(way.build(row, shrink), row.tools, form)
        if room is None or len(tokens) + limit <= room:
            break
    return tokens


def answer_limit(rows: Rows, tokenizer: Any) -> int:
    """Most tokens of an answer: a quarter more than the longest expected one, and room for a
    sentence."""
    texts = [row.answer() for row in [*rows.held_out, *rows.train[:500]]]
    longest = max(len(ids) for ids in tokenizer(texts)["input_ids"])
    return min(MOST_ANSWER_TOKENS, max(SHORT_ANSWER_TOKENS, longest * 5 // 4 + 8))


def ask(
    model: Any,
    way: Way,
    judge: Judge,
    prompts: list[list[int]],
    limit: int,
    tell: Tell,
    check: Callable[[], None] | None = None,
) -> Measured:
    """Ask the held-out rows' questions, greedily, and score the answers without their thoughts."""
    from tunewright.engine.decoding.answers import answer

    start = time.perf_counter()
    what = say(f"advise.way.{way.name}")
    told = telling_answers(tell, what, len(prompts), limit * len(prompts))
    # Threads that follow the load round sums in another way each time: the same seed must give the
    # same answers.
    model.writer.paced = False
    answers = answer(model, prompts, max_new_tokens=limit, check=check, progress=told)
    tell.finish()
    seconds = time.perf_counter() - start
    texts = [model.renderer.without_thoughts(one.text).strip() for one in answers]
    ends: dict[str, int] = {}
    for one in answers:
        ends[one.end] = ends.get(one.end, 0) + 1
    return Measured(
        way.name,
        texts,
        judge.scores(texts),
        judge.forms(texts),
        seconds,
        sum(map(len, prompts)) / len(prompts),
        ends=ends,
    )


# ---- figures of measured ways


def score_of(values: Sequence[float], seed: int) -> Score:
    """The mean with its 95 % interval."""
    low, high = interval.of_scores(list(values), seed=seed)
    return Score(sum(values) / len(values), low, high)


def gain_of(before: Sequence[float], after: Sequence[float], seed: int) -> Gain:
    """How much better `after` is, row by row."""
    found = interval.paired(list(before), list(after), seed=seed)
    return Gain(found.difference, found.low, found.high)


def beyond_chance(
    rows: Rows, value: Callable[[Conversation, str], float | None]
) -> tuple[list[float], list[float]]:
    """`value` of every held-out row with its own answer, and with the answers of other rows on
    average: what would be there by chance. Rows without a value are left out."""
    held = rows.held_out
    shifts = sorted({s for s in (1, len(held) // 3, len(held) // 2) if 0 < s < len(held)})
    own, chance = [], []
    for i, row in enumerate(held):
        mine = value(row, row.answer())
        if mine is None:
            continue
        others = [
            v
            for s in shifts
            if (other := held[(i + s) % len(held)]).answer() != row.answer()
            and (v := value(row, other.answer())) is not None
        ]
        own.append(float(mine))
        chance.append(sum(others) / len(others) if others else 0.0)
    return own, chance
