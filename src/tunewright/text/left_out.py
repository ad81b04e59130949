"""What a template leaves out of a dialogue: a turn, a call, the tools. Looked at once a shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunewright.core.types import Message
from tunewright.text.chat_template import ChatTemplate
from tunewright.text.rendered import CannotRender
from tunewright.text.turns import Turns

MOST_SHAPES = 20_000
"""Sequences of roles of which it is remembered what the template leaves out."""


def names_of(calls: list[dict[str, Any]]) -> list[str]:
    """The names of the functions that are called."""
    return [str(call.get("function", call).get("name", "")) for call in calls]


def _shape(turns: Turns) -> tuple[Any, ...]:
    """What decides, besides the words, which parts of a dialogue a template writes."""
    return (
        bool(turns.tools),
        *((m["role"], bool(m["content"].strip()), *m.keys()) for m in turns.messages),
    )


class LeftOut:
    """What one template leaves out."""

    def __init__(self, template: ChatTemplate):
        self.template = template
        self._lost: dict[Any, str] = {}
        self._with_tools: dict[Any, bool] = {}

    def require_turns(self, turns: Turns) -> None:
        """Raises CannotRender where the template does not write a question, a system prompt or a
        tool's result."""
        key = _shape(turns)
        if len(self._lost) > MOST_SHAPES:
            self._lost.clear()
        if key not in self._lost:
            self._lost[key] = ", ".join(
                m["role"]
                for k, m in enumerate(turns.messages)
                if m["role"] != "assistant"
                and m["content"]
                and turns.sentinel not in self.template.write(turns, replace=k)
            )
        if self._lost[key]:
            raise CannotRender("turn_unwritten", self._lost[key])

    def require_calls(self, turns: Turns, k: int) -> None:
        """Raises CannotRender where the template does not write the name and the arguments of every
        call of turn k."""
        calls = turns.messages[k]["tool_calls"]
        key = (_shape(turns), k, len(calls))
        if key not in self._lost:
            written = all(self._writes_call(turns, k, i) for i in range(len(calls)))
            self._lost[key] = "" if written else "lost"
        if self._lost[key]:
            raise CannotRender("calls_unwritten", ", ".join(names_of(calls)))

    def _writes_call(self, turns: Turns, k: int, i: int) -> bool:
        """Whether another name, and other arguments, of a call stand in the text."""
        for changed in ({"name": turns.sentinel}, {"arguments": {"x": turns.sentinel}}):
            calls = list(turns.messages[k]["tool_calls"])
            inner = calls[i].get("function")
            calls[i] = calls[i] | (
                {"function": inner | changed} if isinstance(inner, dict) else changed
            )
            messages = [*turns.messages]
            messages[k] = messages[k] | {"tool_calls": calls}
            try:
                if turns.sentinel not in self.template.write(replace(turns, messages=messages)):
                    return False
            except CannotRender:
                return False
        return True

    def writes_tools(self, messages: Sequence[Message], tools: list[dict[str, Any]]) -> bool:
        """Whether the template writes these tools beside turns of these roles."""
        inner = [tool.get("function", tool) for tool in tools]
        names = tuple(str(one.get("name", "")) if isinstance(one, dict) else "" for one in inner)
        key = (tuple((m.role, bool(m.tool_calls)) for m in messages), names)
        if key not in self._with_tools:
            try:
                turns = self.template.prepare(messages, tools)
                text = self.template.write(turns)
                self._with_tools[key] = all(
                    name in text for name in names
                ) and text != self.template.write(replace(turns, tools=None))
            except CannotRender:
                return True  # the row is dropped with the template's own reason
        return self._with_tools[key]
