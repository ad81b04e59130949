"""Chat rows as OpenAI writes them: `messages` (or `conversations`), a list of {role, content}.

`tools`, `tool_calls`, results of tools and per-message `weight` are honoured (`dialogue.py`).
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Origin
from tunewright.data.formats.common import Columns, RowFault, guarded
from tunewright.data.formats.dialogue import TURN_COLUMNS, conversation, messages_of, turn_column, turns_look_like, with_system


class Messages(Section):
    """Rows with a list of messages, each with a role and a content."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a list of {role, content}, 1 with a `messages` column of another shape."""
    if any(turns_look_like(raw.get(name), "role", "content") for name in TURN_COLUMNS):
        return 2
    return int("messages" in raw and not turns_look_like(raw["messages"], "from", "value"))


@formats.register("messages", Messages, needs="messages: [{role, content}, ...]", looks_like=looks_like)
@guarded
def messages(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """A dialogue whose assistant turns are learnt."""
    name = turn_column(raw)
    if name is None:
        raise RowFault("no_answer")
    return conversation(
        with_system(messages_of(raw[name], "role", "content", columns, name, raw), raw, columns), origin, raw, columns, is_marked=True
    )
