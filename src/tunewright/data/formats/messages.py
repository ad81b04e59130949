"""Chat rows as OpenAI writes them: `messages` (or `conversations`), a list of {role, content}; `tools` and per-message `weight` are honoured."""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Origin
from tunewright.data.formats.common import Columns, RowFault, conversation, guarded, messages_of, turns_look_like


class Messages(Section):
    """Rows with a list of messages, each with a role and a content."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a list of {role, content}, 1 with a `messages` column of another shape."""
    if any(turns_look_like(raw.get(name), "role", "content") for name in ("messages", "conversations")):
        return 2
    return int("messages" in raw)


@formats.register("messages", Messages, needs="messages: [{role, content}, ...]", looks_like=looks_like)
@guarded
def messages(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """A dialogue whose assistant turns are learnt."""
    name = "messages" if "messages" in raw else "conversations"
    if name not in raw:
        raise RowFault("no_answer")
    return conversation(messages_of(raw[name], "role", "content", columns), origin, raw, columns)
