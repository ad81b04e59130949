"""The messages of a dialogue made ready for a chat template: a system prompt that the template
refuses stands in the first question, and control tokens that somebody typed are marked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunewright.core.types import Message
from tunewright.text.rendered import CannotRender
from tunewright.text.spelling import ControlTokens, Marks, mark
from tunewright.text.thinking import Form
from tunewright.text.thought_marks import FIELDS, in_fields

PRIVATE_USE = [chr(code) for code in range(0xF8A0, 0xF8FF)]
_private_use = re.compile(f"[{PRIVATE_USE[0]}-{PRIVATE_USE[-1]}]")


@dataclass
class Turns:
    """Messages ready for the template: control tokens that were typed are wrapped in `marks`, two
    private-use characters."""

    messages: list[dict[str, Any]]
    origin: list[int]
    """The index of each in the messages that were given."""
    tools: list[dict[str, Any]] | None
    marks: Marks
    sentinel: str
    """Stands for a content whose place is looked for."""
    form: Form
    neutralised: int = 0
    """Control tokens that were typed."""
    notes: list[str] = field(default_factory=list)

    @property
    def calls(self) -> bool:
        """Whether a turn calls a tool."""
        return any(message.get("tool_calls") for message in self.messages)


def prepare(
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    form: Form,
    *,
    control: ControlTokens,
    merges_system: bool,
    fields: bool = False,
) -> Turns:
    """`merges_system`: the template refuses a system prompt; `fields`: it takes thoughts in fields
    of their own. Raises CannotRender where the row leaves no private-use character free."""
    kept = list(enumerate(messages))
    contents = {i: m.content for i, m in kept}
    roles = {i: m.role for i, m in kept}
    notes = []
    if merges_system and kept and kept[0][1].role == "system":
        first, system = kept[0]
        if not system.content.strip():
            kept.pop(0)  # a template without system prompts has nothing to write of an empty one
        elif len(kept) > 1 and kept[1][1].role == "user":
            notes.append("system_merged")
            kept.pop(0)
            contents[kept[0][0]] = f"{system.content}\n\n{kept[0][1].content}"
        else:
            notes.append("system_merged")
            roles[first] = "user"
    marks, sentinel = unused(
        [
            *contents.values(),
            *(str(m.tool_calls or "") + str(m.name or "") for m in messages),
            str(tools or ""),
        ]
    )
    ready, count = [], 0
    for i, message in kept:
        # An answer may hold tokens that the template also writes without being control tokens,
        # such as <think>.
        pattern = control.in_answers if roles[i] == "assistant" else control.anywhere
        given = {
            "content": contents[i],
            "tool_calls": message.tool_calls,
            "name": message.name,
            "tool_call_id": message.tool_call_id,
        }
        apart = in_fields(contents[i]) if fields and roles[i] == "assistant" else None
        if apart is not None:
            given[FIELDS[0]], given["content"] = apart
        marked, found = mark(
            {key: value for key, value in given.items() if key == "content" or value},
            pattern,
            marks,
        )
        if FIELDS[0] in marked:
            marked = {**marked, **dict.fromkeys(FIELDS, marked[FIELDS[0]])}
        ready.append({"role": roles[i], **marked})
        count += found
    marked_tools, found = mark(tools, control.anywhere, marks)
    origin = [i for i, _ in kept]
    return Turns(ready, origin, marked_tools, marks, sentinel, form, count + found, notes)


def unused(strings: Iterable[str]) -> tuple[Marks, str]:
    """Two marks, and a sentinel of private-use characters, that occur nowhere in `strings`. Raises
    CannotRender where too few are left."""
    taken = {c for text in strings for c in _private_use.findall(text)}
    free = [c for c in PRIVATE_USE if c not in taken]
    if len(free) < 4:
        raise CannotRender("cannot_render", "private-use characters U+F8A0 to U+F8FE")
    return (free[0], free[1]), free[2] + free[3] + free[2]
