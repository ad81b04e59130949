"""Chat rows as OpenAI writes them: `messages` (or `conversations`), a list of {role, content}; also
turns under other names (`turn_names.py`).

`tools`, `tool_calls`, results of tools and per-message `weight` are honoured (`dialogue.py`).
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Origin
from tunewright.data.formats.common import Columns, RowFault, guarded
from tunewright.data.formats.dialogue import (
    BESIDE,
    MORE_TURN_COLUMNS,
    REASONING,
    TURN_COLUMNS,
    conversation,
    messages_of,
    turn_column,
    turns_look_like,
    under_other_names,
    with_system,
    with_thought,
)


class Messages(Section):
    """Rows with a list of messages, each with a role and a content."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a list of {role, content} or of turns that are respelt, 1 with a `messages` column of
    another shape."""
    if any(
        turns_look_like(raw.get(name), "role", "content") for name in TURN_COLUMNS
    ) or under_other_names(raw):
        return 2
    return int("messages" in raw and not turns_look_like(raw["messages"], "from", "value"))


@formats.register(
    "messages",
    Messages,
    needs="messages: [{role, content}, ...]",
    reads=(*TURN_COLUMNS, *MORE_TURN_COLUMNS, *REASONING, *BESIDE),
    looks_like=looks_like,
)
@guarded
def messages(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """A dialogue whose assistant turns are learnt."""
    name = turn_column(raw)
    if name is None:
        raise RowFault("no_answer")
    said = with_thought(
        messages_of(raw[name], "role", "content", columns, name, raw), raw, columns, of_last=False
    )
    return conversation(with_system(said, raw, columns), origin, raw, columns, is_marked=True)
