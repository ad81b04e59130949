"""ShareGPT rows: `conversations`, a list of {from, value} with from human, gpt, system (also user, assistant, observation); optional `system`."""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.common import Columns, RowFault, conversation, guarded, messages_of, text_of, turns_look_like


class ShareGPT(Section):
    """Rows with a list of turns, each with `from` and `value`."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a list of {from, value}, 1 with a `conversations` column of another shape."""
    return 2 if turns_look_like(raw.get("conversations"), "from", "value") else int("conversations" in raw)


@formats.register("sharegpt", ShareGPT, needs="conversations: [{from: human | gpt | system, value}, ...]", looks_like=looks_like)
@guarded
def sharegpt(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """A dialogue whose gpt turns are learnt."""
    if "conversations" not in raw:
        raise RowFault("no_answer")
    turns = messages_of(raw["conversations"], "from", "value", columns)
    system = text_of(raw.get("system"), "system", columns)
    if system.strip() and not (turns and turns[0].role == "system"):
        turns = [Message("system", system), *turns]
    return conversation(turns, origin, raw, columns)
