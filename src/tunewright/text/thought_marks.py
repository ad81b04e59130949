"""What a template writes around a thought that it takes in a field of its own, found by asking it,
and an answer's text with such marks read back.

Templates that find a thought in the content, between <think> and </think>, need none of this.
Others read `reasoning_content` or `thinking` and write marks that are control tokens: the channels
of Harmony (gpt-oss), <seed:think>, [THINK]. Everywhere else in this program a thought stands
between <think> and </think>, whatever the template writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunewright.text.thinking import CLOSE, OPEN

_thought = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
FIELDS = ("thinking", "reasoning_content")
"""The names under which templates look for a message's thought; a message has it under both."""


@dataclass(frozen=True)
class ThoughtMarks:
    """Texts around a thought. In Harmony: `opening` <|channel|>analysis<|message|>, `between`
    <|end|><|start|>assistant<|channel|>final<|message|>, `final` <|channel|>final<|message|>."""

    opening: str
    between: str
    final: str
    """What stands before an answer without a thought; empty where that begins at once."""

    @property
    def are_usual(self) -> bool:
        """The marks are <think> and </think>, so nothing has to be read back."""
        return CLOSE in self.between

    @property
    def _another(self) -> str:
        """Between one thought and a second one, where a message may have several."""
        ends = self.between.removesuffix(self.final) if self.final else ""
        return ends + self.opening if ends and ends != self.between else ""

    def read(self, text: str, control: re.Pattern[str], *, whole: bool = True) -> str:
        """What a model wrote, control tokens shown, with its thought between <think> and </think>
        and without control tokens. Not `whole`: what may still become a mark is left out, so that
        the result only grows as the text does."""
        if not whole and any(mark.startswith(text) for mark in (self.opening, self.final) if mark):
            return ""
        if self.final and text.startswith(self.final):
            return _bare(text[len(self.final) :], control, whole)
        if not (self.opening and text.startswith(self.opening)):
            return _bare(text, control, whole)
        rest = text[len(self.opening) :]
        thought, closed, answer = rest.partition(self.between)
        if self._another:
            thought = thought.replace(self._another, "\n\n")
        thought = _bare(thought, control, whole or bool(closed))
        if not closed:
            return f"{OPEN}\n{thought}"
        return f"{OPEN}\n{thought}\n{CLOSE}\n\n{_bare(answer, control, whole)}"


def _bare(text: str, control: re.Pattern[str], whole: bool) -> str:
    """The text without control tokens; not `whole`: up to the first one."""
    if whole:
        return control.sub("", text)
    found = control.search(text)
    return text[: found.start()] if found else text


def in_fields(content: str) -> tuple[str, str] | None:
    """(thought, answer) of an answer that begins with a thought; None where it has none."""
    found = _thought.match(content) if CLOSE in content else None
    if found is None or not found.group(1).strip():
        return None
    return found.group(1).strip(), content[found.end() :]
