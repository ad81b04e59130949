"""Thoughts of an answer, and the form in which a template is asked: with thinking, without, or as
it comes.

A thought stands between <think> and </think> before the answer. An empty pair is no thought:
templates write it to say "answer at once", so it is context and never learnt. Templates switch by a
variable (`enable_thinking`, `thinking`); others open the thought in every question, or write an
empty pair before every answer that has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

OPEN, CLOSE = "<think>", "</think>"
SWITCHES = ("enable_thinking", "thinking")
"""Names of the variable by which templates switch thinking."""
Form = Literal["default", "thinking", "answer"]
"""How a template is used: as it comes, in its form with thinking, or in its form without (an answer
at once)."""

_thought = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_unopened = re.compile(r"(?:(?!<think>).)*?</think>\s*", re.DOTALL)
_empty = re.compile(r"\s*(?:<think>\s*)?</think>")
_empty_at_end = re.compile(r"<think>\s*</think>(\s*)$|(?<=>)</think>(\s*)$")
_opening = re.compile(r"(?:<think>\s*)?(?:</think>\s*)?$")


@dataclass(frozen=True)
class Thinking:
    """What is done with thoughts. `mode` is `data.thinking`: auto, learn, keep or off."""

    mode: str = "auto"
    asked: bool | None = None
    """`--think` or `--no-think`: every question is asked so."""
    by_rows: bool = True
    """A row's answer decides its form. False where answers are not learnt from rows (rollouts)."""
    habit: bool | None = None
    """How a question without an answer is asked under `auto`: as the run's rows were learnt. None:
    as the template comes."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the template (`data.template_arguments`)."""

    @property
    def leaves_out(self) -> bool:
        """Thoughts are taken out of the rows."""
        return self.asked is False or (self.asked is None and self.mode == "off")

    @property
    def hides(self) -> bool:
        """Thoughts are shown and not learnt."""
        return self.mode == "keep"


def has_thought(content: str) -> bool:
    """Whether an answer begins with a thought that is not empty."""
    found = _thought.match(content) if CLOSE in content else None
    return bool(found and found.group(1).strip())


def without_thoughts(content: str, unopened: bool = False) -> str:
    """The answer without its thoughts; `unopened`: also without one whose opening stood in the
    question. What was cut off inside a thought has no answer."""
    if CLOSE not in content:
        return "" if content.lstrip().startswith(OPEN) else content
    rest = _thought.sub("", content)
    return _unopened.sub("", rest, count=1) if unopened and CLOSE in rest else rest


def parted(text: str, *, opened: bool, finished: bool = True) -> tuple[str, str]:
    """(thought, answer) of what a model wrote. `opened`: the question ended inside a thought. One
    that was cut off (not `finished`) inside its thought has no answer."""
    rest = text.lstrip()
    begins = rest.startswith(OPEN)
    thought, closed, answer = rest.removeprefix(OPEN).partition(CLOSE)
    if closed and (begins or opened):
        return thought.strip(), answer.strip()
    if not closed and (begins or (opened and not finished)):
        return thought.strip(), ""
    return "", text.strip()


def without_empty_thought(content: str) -> str:
    """The answer without an empty thought at its beginning."""
    found = _thought.match(content)
    return content[found.end() :] if found and not found.group(1).strip() else content


def opened(content: str) -> str:
    """The answer with the opening that a question ended with."""
    return (
        f"{OPEN}\n{content}"
        if CLOSE in content and OPEN not in content.partition(CLOSE)[0]
        else content
    )


def ends_open(question: str) -> bool:
    """Whether a question ends inside a thought that the model is to go on with."""
    return question.rstrip().endswith(OPEN)


def after_opening(content: str) -> str:
    """What is left to write of an answer whose opening the question has."""
    return content.lstrip().removeprefix(OPEN).lstrip("\n")


def empty_end(question: str) -> str | None:
    """The white space after an empty thought at the end of a question; None where there is none."""
    found = _empty_at_end.search(question)
    return None if found is None else (found.group(1) or found.group(2) or "")


def empty_start(text: str, start: int, tail: str) -> int:
    """The place behind an empty thought that stands at `start`, with `tail` of the white space
    after it; `start` where none does."""
    found = _empty.match(text, start)
    if found is None:
        return start
    return found.end() + (len(tail) if text.startswith(tail, found.end()) else 0)


def bare(question: str) -> str:
    """A question without an opened or an empty thought at its end: what a template writes before
    the same answer in an earlier turn."""
    return question[: _opening.search(question).start()]  # type: ignore[union-attr]  # it matches an empty text at the end
