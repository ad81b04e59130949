"""ShareGPT rows: `conversations`, a list of {from, value} with from human, gpt, system (also user,
assistant, function_call, observation).

Also `system`, and `tools` as a list or as JSON text.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Conversation, Origin, Row
from tunewright.data.formats.common import Columns, row_format
from tunewright.data.formats.dialogue import (
    BESIDE,
    REASONING,
    TURN_COLUMNS,
    conversation_of_turns,
    turn_column,
    turns_look_like,
)
from tunewright.data.formats.writing import as_turns, of_kind

SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "observation"}


class ShareGPT(Section):
    """Rows with a list of turns, each with `from` and `value`."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a list of {from, value}, 1 with a `conversations` column of another shape."""
    if any(turns_look_like(raw.get(name), "from", "value") for name in TURN_COLUMNS):
        return 2
    return int(
        "conversations" in raw and not turns_look_like(raw["conversations"], "role", "content")
    )


def write(row: Row) -> dict[str, Any]:
    """The turns of a dialogue, by their speakers."""
    turns = of_kind(row, Conversation).messages
    return {"conversations": as_turns(turns, "from", "value", **SPEAKERS)}


@row_format(
    "sharegpt",
    ShareGPT,
    needs="conversations: [{from: human | gpt | system, value}, ...]",
    reads=(*TURN_COLUMNS, *REASONING, *BESIDE),
    looks_like=looks_like,
    write=write,
)
def sharegpt(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """A dialogue whose gpt turns are learnt."""
    name = "conversations" if "conversations" in raw else turn_column(raw)
    return conversation_of_turns(raw, name, ("from", "value"), origin, columns)
