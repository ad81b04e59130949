"""Chat rows as OpenAI writes them: `messages` (or `conversations`), a list of {role, content}; also
turns under other names (`turn_names.py`).

`tools`, `tool_calls`, results of tools and per-message `weight` are honoured (`dialogue.py`).
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Conversation, Origin, Row
from tunewright.data.formats.common import Columns, row_format
from tunewright.data.formats.dialogue import (
    BESIDE,
    MORE_TURN_COLUMNS,
    REASONING,
    TURN_COLUMNS,
    conversation_of_turns,
    turn_column,
    turns_look_like,
    under_other_names,
)
from tunewright.data.formats.writing import as_turns, of_kind


class Messages(Section):
    """Rows with a list of messages, each with a role and a content."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a list of {role, content} or of turns that are respelt, 1 with a `messages` column of
    another shape."""
    known = any(turns_look_like(raw.get(name), "role", "content") for name in TURN_COLUMNS)
    if known or under_other_names(raw):
        return 2
    return int("messages" in raw and not turns_look_like(raw["messages"], "from", "value"))


def write(row: Row) -> dict[str, Any]:
    """The turns of a dialogue."""
    return {"messages": as_turns(of_kind(row, Conversation).messages)}


@row_format(
    "messages",
    Messages,
    needs="messages: [{role, content}, ...]",
    reads=(*TURN_COLUMNS, *MORE_TURN_COLUMNS, *REASONING, *BESIDE),
    looks_like=looks_like,
    write=write,
)
def messages(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """A dialogue whose assistant turns are learnt."""
    return conversation_of_turns(raw, turn_column(raw), ("role", "content"), origin, columns)
