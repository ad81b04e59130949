"""What the formats share when they write rows: the inverse of reading, where a form can hold them.

A format's `write` gives the object that its reader would make the row of. It raises RowFault, with
a key of `convert.reason.*`, for a row of another kind and for what the form has no place for.
"""

from __future__ import annotations

from typing import Any, TypeVar

from tunewright.core.types import ROW_KINDS, Message, Row
from tunewright.data.formats.common import RowFault

T = TypeVar("T")


def of_kind(row: Row, kind: type[T]) -> T:
    """The row, if it is of this kind."""
    if not isinstance(row, kind):
        raise RowFault(f"kind_{ROW_KINDS[type(row)]}")
    return row


def as_turns(
    messages: list[Message], role: str = "role", content: str = "content", **words: str
) -> list[dict[str, Any]]:
    """Messages as {role, content}, with what else they carry; `words` are other names of roles."""
    made = []
    for m in messages:
        turn: dict[str, Any] = {role: words.get(m.role, m.role), content: m.content}
        turn |= {"weight": m.weight} if m.weight != 1 else {}
        turn |= {"tool_calls": m.tool_calls} if m.tool_calls else {}
        made.append(turn | ({"name": m.name} if m.name else {}))
    return made


def system_and_turns(messages: list[Message]) -> tuple[dict[str, Any], list[Message]]:
    """The column of the system prompt and the turns after it. Raises RowFault for turns of tools
    and for weights, which two text columns cannot hold."""
    if any(m.tool_calls or m.role == "tool" for m in messages):
        raise RowFault("tool_turns")
    if any(m.weight not in (0, 1) for m in messages):
        raise RowFault("turn_weights")
    if messages and messages[0].role == "system":
        return {"system": messages[0].content}, messages[1:]
    return {}, messages
