"""What a model still knows of everything that it was not trained on: a small fixed set of general
questions, English and Chinese, put to it before and after.

Two questions in three have a right answer and wrong ones: each is scored by the log-probability
that the model gives to it, its stop token included (`options.py` says why), and nothing is written.
The score of a question is the probability of its right answer among them, which moves long before
the choice does: with two dozen questions the share of right choices alone would see nothing but a
disaster. The others need an answer of a few words: is the form kept, the language, is nothing
harmless refused. Those score 0 or 1.

A language that the start did not speak cannot be forgotten: its questions count only where it
answered more of them than guessing would.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunewright.core.comparing import normalised
from tunewright.core.types import Branch, Message, Sample
from tunewright.core.words import ASSETS
from tunewright.evaluate.interval import paired, wilson
from tunewright.evaluate.language import language_of
from tunewright.text.rendered import CannotRender

if TYPE_CHECKING:
    from tunewright.engine.decoding.answers import AnsweringModel
    from tunewright.engine.opening import Loaded
    from tunewright.text.renderer import Renderer

LANGUAGES = ("en", "zh")
KINDS = ("fact", "arithmetic", "sense", "form", "language", "harmless")
LOST = 0.05
"""A mean score that fell by less is nothing that a person would notice."""
TOO_WIDE = 0.10
"""Where the interval reaches further down than this, it is not said that nothing was forgotten."""
FEWEST = 6
"""Fewer questions say nothing: where there is no time for so many, none is asked."""
_refusal = re.compile(
    r"\bI(?:'m|’m| am) (?:sorry|unable|not able)\b|\bI (?:can ?not|can't|can’t|won't)\b"
    r"|^sorry\b|抱歉|对不起|我(?:无法|不能|没办法)|无法(?:提供|帮助|回答)|不能(?:提供|帮助|回答)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Item:
    """One question. `answers`, the right one first, are scored; without them an answer of at most
    `most` tokens is written and looked at: `one_of`, `script`, `refused` or `thoughts`."""

    id: str
    kind: str
    language: str
    question: str
    answers: tuple[str, ...] = ()
    most: int = 0
    one_of: tuple[str, ...] = ()
    script: str = ""
    refused: bool | None = None
    thoughts: bool = False
    place: int = 0
    """In the whole set: the first ones are a fair smaller set."""

    @property
    def messages(self) -> list[Message]:
        """The dialogue that asks it: without the system prompt of a run."""
        return [Message("user", self.question)]

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        return 1 / len(self.answers) if self.answers else 0.0

    def is_met(self, answer: str) -> bool:
        """Whether a written answer is as it should be."""
        if self.one_of:
            return normalised(answer) in map(normalised, self.one_of)
        if self.script:
            return language_of(answer) == {"latin": "en", "han": "zh"}[self.script]
        return bool(answer.strip()) and not refuses(answer)


def refuses(answer: str) -> bool:
    """Whether an answer begins with a refusal."""
    return _refusal.search(answer.strip()[:80]) is not None


@functools.cache
def all_items() -> tuple[Item, ...]:
    """The set, a question of each language in turn: the first ones are a fair smaller set."""
    read = [_read(language) for language in LANGUAGES]
    mixed = [item for some in zip(*read, strict=True) for item in some]
    return tuple(replace(item, place=place) for place, item in enumerate(mixed))


def _read(language: str) -> list[Item]:
    text = (ASSETS / "forgetting" / f"{language}.jsonl").read_text(encoding="utf-8")
    found = []
    for line in text.splitlines():
        values = json.loads(line)
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        found.append(Item(**{**values, **lists}, language=language))
    return found


# ---- asking


@dataclass(frozen=True)
class Asked:
    """The questions as one model is asked them: samples to score, prompts to answer."""

    scored: list[Item]
    samples: list[Sample]
    written: list[Item]
    prompts: list[list[int]]

    @property
    def items(self) -> list[Item]:
        """All that are asked."""
        return [*self.scored, *self.written]

    def only(self, ids: set[str]) -> Asked:
        """The same without the other questions."""
        scored = [i for i, item in enumerate(self.scored) if item.id in ids]
        written = [i for i, item in enumerate(self.written) if item.id in ids]
        return Asked(
            [self.scored[i] for i in scored],
            [replace(self.samples[i], index=n) for n, i in enumerate(scored)],
            [self.written[i] for i in written],
            [self.prompts[i] for i in written],
        )

    def key(self) -> list[Any]:
        """Everything that decides what a model says to them: all tokens."""
        tokens = [[branch.tokens for branch in sample.branches] for sample in self.samples]
        return [tokens, self.prompts, [item.most for item in self.written]]

    @functools.cached_property
    def shared(self) -> int:
        """Tokens with which all questions begin, which are computed once."""
        begun = [*(sample.branches[0].tokens for sample in self.samples), *self.prompts]
        # What the first and the last in order have in common, all between them have.
        pairs = zip(min(begun, default=[]), max(begun, default=[]), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def tokens_of(self, item: Item) -> int:
        """Token rows that asking one takes, without those of all questions."""
        from tunewright.engine.tree import build_tree

        if item in self.written:
            return len(self.prompts[self.written.index(item)]) - self.shared
        sample = self.samples[self.scored.index(item)]
        return build_tree([sample]).num_rows - self.shared


def asked(renderer: Renderer, items: Sequence[Item], context: int | None) -> Asked:
    """The questions of `items` that this model's template, tokens and context take."""
    out = Asked([], [], [], [])
    form: Any = "answer" if renderer.thinks else "default"
    for item in items:
        try:
            if item.answers:
                branches = [_branch(renderer, item, answer, form) for answer in item.answers]
                longest = max(len(branch.tokens) for branch in branches)
                told_apart = len({tuple(one.tokens) for one in branches}) == len(branches)
                if told_apart and (context is None or longest <= context):
                    out.scored.append(item)
                    out.samples.append(Sample(branches, len(out.samples)))
            elif not item.thoughts or renderer.thinks:
                prompt = renderer.prompt(item.messages, form="thinking" if item.thoughts else form)
                if context is None or len(prompt) + item.most <= context:
                    out.written.append(item)
                    out.prompts.append(prompt)
        except CannotRender:
            continue
    return out


def _branch(renderer: Renderer, item: Item, answer: str, form: Any) -> Branch:
    """A question with one of its answers, stop token included, as training would render it."""
    rendered = renderer.render([*item.messages, Message("assistant", answer)], form=form)
    first, after = rendered.spans[-1]
    return Branch(rendered.ids[:after], list(range(first, after)), [1.0] * (after - first))


Side = dict[str, Any]
"""What one model said, by id of the question: the log-probabilities of its answers in nats, or
{"text", "end"}."""


def score(loaded: Loaded, what: Asked, *, layout: str, rows_per_pass: int) -> Side:
    """The log-probability of every answer that is scored, all of them in one go: what the questions
    have in common is computed once."""
    from tunewright.evaluate.logprobs import logprobs_of

    found = logprobs_of(
        loaded, what.samples, layout_name=layout, rows_per_pass=rows_per_pass, exact=True
    )
    return {
        item.id: [sum(branch) for branch in branches]
        for item, branches in zip(what.scored, found, strict=True)
    }


def write(model: AnsweringModel, what: Asked, check: Callable[[], None] | None = None) -> Side:
    """The short answers, side by side."""
    from tunewright.engine.decoding.answers import answer

    most = [item.most for item in what.written]
    found = answer(model, what.prompts, max_new_tokens=most, check=check)
    return {
        item.id: {"text": one.text, "end": one.end}
        for item, one in zip(what.written, found, strict=True)
    }


# ---- comparing


def points(item: Item, said: Any) -> float:
    """The score of a question, from 0 to 1: the probability of the right answer among those that
    were scored, or whether the written one is as it should be. 0 for what is no number."""
    if not item.answers:
        return float(item.is_met(said["text"]))
    if not all(map(math.isfinite, said)):
        return 0.0
    top = max(said)
    return 1 / sum(math.exp(value - top) for value in said) * math.exp(said[0] - top)


def is_right(item: Item, said: Any) -> bool:
    """Whether the right answer is the likeliest, or the written one as it should be."""
    if item.answers:
        return all(map(math.isfinite, said)) and said[0] > max(said[1:])
    return points(item, said) == 1


def shown(item: Item, said: Any) -> str:
    """What a model said, for people: its likeliest answer, or what it wrote."""
    if item.answers:
        return item.answers[max(range(len(said)), key=lambda i: (said[i], -i))]
    return str(said["text"])


def compare(items: Sequence[Item], before: Side, after: Side) -> dict[str, Any]:
    """Both sides as the key `forgetting` of a run's summary (docs/damage.md has its keys). Thoughts
    are left to `damage.py`."""
    both = [i for i in items if not i.thoughts and i.id in before and i.id in after]
    languages = {one: _language(both, one, before, after) for one in LANGUAGES}
    able = [i for i in both if languages[i.language]["able"]]
    first = [points(i, before[i.id]) for i in able]
    last = [points(i, after[i.id]) for i in able]
    found = paired(first, last) if able else None
    return {
        "asked": len(both),
        "counted": len(able),
        "verdict": _verdict(found),
        "score": None
        if found is None
        else {
            "before": sum(first) / len(able),
            "after": sum(last) / len(able),
            "difference": found.difference,
            "interval_95": [found.low, found.high],
        },
        "right": _rights(able, before, after),
        "languages": {name: told for name, told in languages.items() if told["n"]},
        "kinds": {
            kind: _rights([i for i in able if i.kind == kind], before, after)
            for kind in KINDS
            if any(i.kind == kind for i in able)
        },
        "forgotten": _moved(able, before, after, was=True),
        "gained": _moved(able, before, after, was=False),
    }


def _verdict(found: Any) -> str:
    """`kept`, `forgot`, `unclear`, or `unknown` where the start could do nothing."""
    if found is None:
        return "unknown"
    if found.high < 0 and found.difference <= -LOST:
        return "forgot"
    return "kept" if found.low >= -TOO_WIDE else "unclear"


def _language(items: Sequence[Item], language: str, before: Side, after: Side) -> dict[str, Any]:
    """Counts of one language, and whether the start was able to speak it: surely more questions
    with answers to choose from were right than guessing would get, or without such at least half of
    all."""
    mine = [item for item in items if item.language == language]
    chosen = [item for item in mine if item.answers]
    right = sum(is_right(item, before[item.id]) for item in chosen)
    if chosen:
        chance = sum(item.chance for item in chosen) / len(chosen)
        able = wilson(right, len(chosen))[0] > chance
    else:
        chance, able = 0.0, False
    return {**_rights(mine, before, after), "by_chance": chance * len(chosen), "able": able}


def _rights(items: Sequence[Item], before: Side, after: Side) -> dict[str, Any]:
    first = sum(is_right(item, before[item.id]) for item in items)
    last = sum(is_right(item, after[item.id]) for item in items)
    n = len(items)
    return {
        "n": n,
        "before": first,
        "after": last,
        "before_interval_95": list(wilson(first, n)),
        "after_interval_95": list(wilson(last, n)),
    }


def _moved(items: Sequence[Item], before: Side, after: Side, *, was: bool) -> list[dict[str, Any]]:
    """The questions that were right and are not (`was`), or the other way round."""
    return [
        {
            "id": item.id,
            "kind": item.kind,
            "language": item.language,
            "question": item.question,
            "expected": item.answers[0] if item.answers else "",
            "before": shown(item, before[item.id]),
            "after": shown(item, after[item.id]),
        }
        for item in items
        if is_right(item, before[item.id]) is was and is_right(item, after[item.id]) is not was
    ]


def read_side(items: Sequence[Item], stored: Mapping[str, Any]) -> Side | None:
    """A side from a file, in which what is no number is a word ("NaN"): None where it is not one of
    these questions'."""
    found: Side = {}
    for item in items:
        said = stored.get(item.id)
        if item.answers:
            if not isinstance(said, list) or len(said) != len(item.answers):
                return None
            try:
                said = [float(value) for value in said]
            except (TypeError, ValueError):
                return None
        elif not isinstance(said, dict) or not isinstance(said.get("text"), str):
            return None
        found[item.id] = said
    return found
