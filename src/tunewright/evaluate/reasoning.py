"""How much reasoning is left: a small fixed set of questions with numbers, asked with thinking
before and after. The share of answers with a thought, its length, and the share that is right.

Both sides get the same room, so thoughts that are cut off are cut off alike; such an answer counts
as wrong. Sixteen questions tell a loss, not a small change: intervals stand beside the figures.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunewright.core.types import Message
from tunewright.core.words import ASSETS
from tunewright.evaluate.interval import paired, wilson
from tunewright.rewards.reaching import reaches
from tunewright.text.rendered import CannotRender

if TYPE_CHECKING:
    from tunewright.engine.decoding.answers import AnsweringModel
    from tunewright.text.renderer import Renderer

LANGUAGES = ("en", "zh")
FEWEST = 4
"""Fewer questions say nothing."""
ROOMS = (384, 192, 96)
"""Most tokens of an answer: the first for which there is time."""
LOST_SHARE, LOST_LENGTH = 0.5, 0.25
"""Reasoning is lost where fewer answers than this share of before have a thought, or where thoughts
have less than this share of their length."""


@dataclass(frozen=True)
class Item:
    """One question and the number that its answer must end with."""

    id: str
    question: str
    answer: str
    language: str
    place: int = 0

    @property
    def messages(self) -> list[Message]:
        """The dialogue that asks it: without the system prompt of a run."""
        return [Message("user", self.question)]


Said = dict[str, Any]
"""{"thought", "text", "thought_tokens", "finished"} of one answer."""
Side = dict[str, Said]
"""What one model said, by id of the question."""


@functools.cache
def all_items() -> tuple[Item, ...]:
    """The set, a question of each language in turn."""
    read = []
    for language in LANGUAGES:
        text = (ASSETS / "reasoning" / f"{language}.jsonl").read_text(encoding="utf-8")
        read.append([Item(**json.loads(line), language=language) for line in text.splitlines()])
    mixed = [item for some in zip(*read, strict=True) for item in some]
    return tuple(replace(item, place=place) for place, item in enumerate(mixed))


def prompts_of(
    renderer: Renderer, items: Sequence[Item], context: int | None
) -> dict[str, list[int]]:
    """The questions that the template takes and that leave the smallest room, by id."""
    found = {}
    for item in items:
        try:
            prompt = renderer.prompt(item.messages, form="thinking")
        except CannotRender:
            continue
        if context is None or len(prompt) + ROOMS[-1] <= context:
            found[item.id] = prompt
    return found


def ask(
    model: AnsweringModel,
    prompts: Mapping[str, list[int]],
    most: int,
    check: Callable[[], None] | None = None,
) -> Side:
    """What a model says to each prompt, greedily, in at most `most` tokens."""
    from tunewright.engine.decoding.answers import answer

    renderer = model.renderer
    found = answer(model, list(prompts.values()), max_new_tokens=most, check=check)
    side = {}
    for (name, prompt), one in zip(prompts.items(), found, strict=True):
        thought, text = renderer.parts(prompt, one.tokens, one.end == "stop")
        count = len(renderer.piece(thought)) if thought else 0
        side[name] = {
            "thought": thought,
            "text": text,
            "thought_tokens": count,
            "finished": one.end == "stop",
        }
    return side


def read_side(items: Sequence[Item], stored: Mapping[str, Any]) -> Side | None:
    """A side from a file; None where it is not one of these questions'."""
    keys = {"thought", "text", "thought_tokens", "finished"}
    found = {item.id: stored.get(item.id) for item in items}
    if not all(isinstance(said, dict) and keys <= said.keys() for said in found.values()):
        return None
    return {name: dict(said) for name, said in found.items() if said is not None}


def is_right(item: Item, said: Said) -> bool:
    """Whether the answer, without its thought, ends with the number."""
    return bool(said["finished"]) and reaches(said["text"], item.answer, "numeric")


def compare(items: Sequence[Item], before: Side, after: Side, most: int) -> dict[str, Any]:
    """Both sides as the key `reasoning` of a run's summary (docs/thinking.md has its keys)."""
    both = [item for item in items if item.id in before and item.id in after]
    first, last = _figures(both, before), _figures(both, after)
    right = [[float(is_right(item, side[item.id])) for item in both] for side in (before, after)]
    change = paired(*right) if both else None
    return {
        "asked": len(both),
        "most_tokens": most,
        "verdict": _verdict(first, last, change),
        "before": first,
        "after": last,
        "right_difference": None
        if change is None
        else {"value": change.difference, "interval_95": [change.low, change.high]},
    }


def _figures(items: Sequence[Item], side: Side) -> dict[str, Any]:
    n = len(items)
    lengths = [side[i.id]["thought_tokens"] for i in items if side[i.id]["thought"]]
    right = sum(is_right(item, side[item.id]) for item in items)
    return {
        "with_thoughts": len(lengths),
        "share": len(lengths) / n if n else None,
        "thought_tokens": sum(lengths) / len(lengths) if lengths else None,
        "right": right,
        "right_interval_95": list(wilson(right, n)) if n else None,
        "cut_off": sum(not side[item.id]["finished"] for item in items),
    }


def _verdict(first: dict[str, Any], last: dict[str, Any], change: Any) -> str:
    """`none` where the start wrote no thoughts, `lost`, `worse` (fewer are right, surely), or
    `kept`."""
    if not first["with_thoughts"]:
        return "none"
    fewer = last["with_thoughts"] < LOST_SHARE * first["with_thoughts"]
    shorter = bool(last["with_thoughts"]) and (
        last["thought_tokens"] < LOST_LENGTH * first["thought_tokens"]
    )
    if fewer or shorter:
        return "lost"
    return "worse" if change is not None and change.high < 0 else "kept"
