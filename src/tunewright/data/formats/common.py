"""What the formats share: renamed columns, text from values, and dialogues that make sense.

A row that cannot be used is no exception for the caller: a format returns `Unusable` with a short reason, which the report counts and whose
sentence stands in the locale under `data.reason.*`. Inside a format `RowFault` carries it; `guarded` turns one into the other.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunewright.core.types import Conversation, Message, Origin, Row

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Unusable:
    """Why a row cannot be trained on: a key of `data.reason.*`, and what exactly was found."""

    reason: str
    detail: str = ""


class RowFault(Exception):
    """Raised inside a format; `guarded` returns its `Unusable`."""

    def __init__(self, reason: str, detail: str = ""):
        self.unusable = Unusable(reason, detail)
        super().__init__(reason)


class Columns(dict[str, str]):
    """Our column names to the file's (`{instruction: question}`), and `notes`: what was converted on the way, counted."""

    def __init__(self, names: Mapping[str, str] | None = None):
        super().__init__(names or {})
        self.notes: Counter[str] = Counter()

    def renamed(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The row with our names; a column that was not renamed keeps its own."""
        out = {name: value for name, value in raw.items() if name not in self.values()}
        return out | {ours: raw[theirs] for ours, theirs in self.items() if theirs in raw}


Format = Callable[[Any, Origin, Columns], "Row | Unusable"]


def guarded(function: Callable[[dict[str, Any], Origin, Columns], Row]) -> Format:
    """Give `function` a renamed object only, and return what it could not use as `Unusable`."""

    @functools.wraps(function)
    def convert(raw: Any, origin: Origin, columns: Columns | dict[str, str]) -> Row | Unusable:
        named = columns if isinstance(columns, Columns) else Columns(columns)
        if not isinstance(raw, dict):
            return Unusable("not_an_object", type(raw).__name__)
        try:
            return function(named.renamed(raw), origin, named)
        except RowFault as fault:
            return fault.unusable

    return convert


def text_of(value: Any, name: str, columns: Columns) -> str:
    """The text of a cell. Numbers and booleans are legal (a label 1 or 0) and counted; null is empty; a list of text parts is joined."""
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        columns.notes["number_as_text"] += 1
        return str(value)
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(_part(part, name) for part in value)
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"{name}: {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault("bad_unicode", f"{name}: U+{ord(value[error.start]):04X}") from error
    return value


def _part(part: dict[str, Any], name: str) -> str:
    if part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RowFault("wrong_type", f"{name}: {part.get('type', 'part')}")


def weight_of(raw: Mapping[str, Any]) -> float:
    """The `weight` of a row or message, 1 where there is none."""
    weight = raw.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise RowFault("bad_weight", repr(weight)[:40])
    return float(weight)


def messages_of(turns: Any, role_key: str, content_key: str, columns: Columns) -> list[Message]:
    """A list of turns as messages. Raises RowFault for anything that is no dialogue."""
    if not isinstance(turns, list):
        raise RowFault("wrong_type", f"{type(turns).__name__}")
    found = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowFault("wrong_type", f"turn: {type(turn).__name__}")
        role = turn.get(role_key)
        if not isinstance(role, str) or role.strip().lower() not in ROLES:
            raise RowFault("unknown_role", repr(role)[:40])
        calls = turn.get("tool_calls") or None
        if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
            raise RowFault("wrong_type", "tool_calls")
        name = turn.get("name")
        content = text_of(turn.get(content_key), content_key, columns)
        known = ROLES[role.strip().lower()]
        found.append(Message(known, content, weight_of(turn), calls, name if isinstance(name, str) else None))
    return found


def conversation(messages: list[Message], origin: Origin, raw: Mapping[str, Any], columns: Columns) -> Conversation:
    """A dialogue in a sensible order: an optional system prompt, then user and assistant in turn, ending with an answer.

    A question after the last answer is left out and counted. Raises RowFault with `no_answer`, `empty_answer`, `empty_question` or `bad_order`.
    """
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise RowFault("no_answer")
    if answers[-1] + 1 < len(messages):
        columns.notes["question_after_last_answer"] += 1
        messages = messages[: answers[-1] + 1]
    if messages[0].role == "system" and not messages[0].content.strip():
        messages = messages[1:]
    before = "start"
    for message in messages:
        if message.role not in _FOLLOWS[before]:
            raise RowFault("bad_order", f"{message.role} after {before}")
        before = message.role
        if message.role == "user" and not message.content.strip():
            raise RowFault("empty_question")
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise RowFault("empty_answer")
    tools = raw.get("tools") or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowFault("wrong_type", "tools")
    return Conversation(messages, origin, tools, weight_of(raw))


_FOLLOWS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def turns_look_like(value: Any, role_key: str, content_key: str) -> bool:
    """Whether a cell is a list of turns with these two keys."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and role_key in value[0] and content_key in value[0]
