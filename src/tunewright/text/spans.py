"""Where the answers of a dialogue stand in what a template wrote, proven against their contents.

An answer starts where the question rendered with a generation prompt ends, and ends after the first
special token that the template writes after it. Where a template is not prefix-stable (it strips
thinking from earlier turns, trims, moves the system prompt), the turn is rendered once more with a
sentinel in place of its content: what stands around the sentinel stands around the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunewright.text import thinking as thoughts
from tunewright.text.chat_template import ChatTemplate
from tunewright.text.left_out import LeftOut, names_of
from tunewright.text.rendered import CannotRender, compact
from tunewright.text.thinking import CLOSE
from tunewright.text.thought_marks import FIELDS
from tunewright.text.turns import Turns


@dataclass
class Place:
    """Characters of one assistant turn: the span is [start, end); the stop token, if any, is its
    last token."""

    start: int
    end: int
    stop: str | None
    sure: bool
    """The stop token is the first of its kind after `start`, so no cut is needed at `end`."""
    asked: int | None = None
    """Where the question ends, if the span begins later: an empty thought, or one that is not to be
    learnt, stands between."""

    def cuts(self) -> list[int]:
        """Places in the text at which tokens must begin."""
        found = [self.start] if self.sure else [self.start, self.end]
        return found if self.asked is None else [*found, self.asked]


class AnswerFinder:
    """Finds the answers of one dialogue. `hides`: thoughts are shown and not learnt."""

    def __init__(self, template: ChatTemplate, left_out: LeftOut, turns: Turns, hides: bool):
        self.template, self.left_out, self.turns, self.hides = template, left_out, turns, hides

    def locate(
        self, text: str, k: int, *, last: bool = False, asked: bool = False
    ) -> tuple[Place, str]:
        """Where turn k stands in `text`, and the text (with an end token appended where the
        template writes none after the last turn). `asked`: the text ends with a generation prompt.
        Raises CannotRender where that cannot be proven."""
        template, message = self.template, self.turns.messages[k]
        content = message["content"]
        # Before the first turn there is nothing that a template could write as a question.
        question = template.ask(self.turns, k) if k else None
        asked_so = len(question) if question is not None else None
        start: int | None = None
        if question is not None:
            if template.thinks and not text.startswith(question):
                bare = thoughts.bare(question)
                # An earlier turn, before which the template writes no thought.
                question = bare if text.startswith(bare) else question
            start = len(question) if text.startswith(question) else None
        if message.get("tool_calls"):
            return self._locate_calls(text, k, start), text
        end = _after(text, start, content) if start is not None else None
        stop = template.stop_after(text, end) if end is not None else None
        if stop is None or start is None or end is None:
            # Also when no stop token follows: "<" is found in a "<think>" that the template wrote
            # before an answer "<".
            known = question if start is not None else None
            start, end = self._around_sentinel(text, k, known, asked)
            stop = template.stop_after(text, end)
        following = self.turns.messages[k + 1 : k + 2]
        if stop and template.opens_next(stop.group(), following[0]["role"] if following else ""):
            stop = None
        first = self._learnt_from(text, start, end, message)
        begins = start if first != start and self.hides else first
        if last and asked_so is not None and begins != asked_so:
            self.turns.notes.append("prompt_differs")
        asked_to = start if first != start else None
        if stop:
            return Place(first, stop.end(), stop.group(), True, asked_to), text
        if not last:
            return Place(first, end, None, False, asked_to), text
        # The template writes no stop token: the end token stands directly after the answer.
        text = (text[:end] if not text[end:].strip() else text.rstrip()) + template.end_text
        return Place(first, len(text), template.end_text, True, asked_to), text

    def _learnt_from(self, text: str, start: int, end: int, message: dict[str, Any]) -> int:
        """Where the learnt part of an answer begins: behind an empty thought, and behind one that
        is shown only."""
        content, given = message["content"], message.get(FIELDS[0])
        if given and given.strip() in text[start:end]:
            return end - len(content.strip()) if self.hides else start
        if given:
            self.turns.notes.append("thinking_stripped")
        first = self.template.behind_empty_thought(text, start)
        before = text[max(0, first - 40) : first]
        if self.template.thinks and thoughts.empty_end(before) is not None:
            self.turns.notes.append("empty_thought")
        if self.hides and thoughts.has_thought(content):
            closed = text.find(CLOSE, first, end)
            if closed >= 0:
                answer = text[closed + len(CLOSE) : end]
                first = end - len(answer.lstrip())
        return first

    def _around_sentinel(
        self, text: str, k: int, question: str | None, asked: bool
    ) -> tuple[int, int]:
        """Start and end of what the template wrote in place of turn k's content, proven against
        that content."""
        template, sentinel = self.template, self.turns.sentinel
        shown = template.write(self.turns, generation=asked, replace=k)
        shown += template.header if asked else ""
        if shown.count(sentinel) != 1:
            raise CannotRender("cannot_render", "the template does not write this answer")
        before, _, after = shown.partition(sentinel)
        glue = ""
        if question is None:
            if not text.startswith(before):
                raise CannotRender(
                    "cannot_render", "the template changes the question with the answer"
                )
            start = len(template.without_gap(before))
        else:
            start = len(question)
            glue = before[start:] if before.startswith(question) else ""
        end = len(text) - len(after)
        if end < start or not text.endswith(after):
            raise CannotRender("cannot_render", "the template changes later turns with the answer")
        opened = question is not None and thoughts.ends_open(question)
        self._prove(text[start:end], self.turns.messages[k]["content"], glue, opened)
        return start, end

    def _prove(self, text: str, content: str, glue: str, opened: bool) -> None:
        """The span is the content, or what is left of it without its thinking, perhaps after an
        opening that the template wrote."""
        written = {compact(text), compact(text.removeprefix(glue))}
        if compact(content) in written:
            return
        if opened and compact(text) == compact(thoughts.after_opening(content)):
            return
        _, thought, rest = content.rpartition(CLOSE)
        if thought and compact(rest) in written:
            self.turns.notes.append("thinking_stripped")
            return
        raise CannotRender("cannot_render", "the template rewrites the answer")

    def _locate_calls(self, text: str, k: int, start: int | None) -> Place:
        """A turn with tool calls: from the question's end to the last special token of the turn."""
        template = self.template
        upto = template.write(self.turns, k + 1)
        if start is not None:
            start = template.behind_empty_thought(text, start)
            if not text.startswith(upto):
                # Before a last turn the template writes an empty thought.
                upto = upto[:start] + upto[template.behind_empty_thought(upto, start) :]
        found = start is not None and text.startswith(upto)
        turn = text[start : len(upto)].rstrip() if found else ""
        stop = template.control.special_at_end(turn)
        message = self.turns.messages[k]
        said, names = message["content"].strip(), names_of(message["tool_calls"])
        self.left_out.require_calls(self.turns, k)
        # The words before a call may name the tool as well.
        beside = turn.replace(said, "", 1)
        if start is None or not stop or said not in turn or any(n not in beside for n in names):
            raise CannotRender(
                "cannot_render", "the tool calls of this turn cannot be told from the rest"
            )
        return Place(start, start + len(turn), stop, False)


def _after(text: str, start: int, content: str) -> int | None:
    """End of `content` where the text continues with it at `start`, as it is or trimmed; None where
    it does not."""
    if text.startswith(content, start):
        return start + len(content)
    while start < len(text) and text[start].isspace():
        start += 1
    trimmed = content.strip()
    return start + len(trimmed) if text.startswith(trimmed, start) else None
