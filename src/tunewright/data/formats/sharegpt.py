"""ShareGPT rows: `conversations`, a list of {from, value} with from human, gpt, system (also user,
assistant, function_call, observation).

Also `system`, and `tools` as a list or as JSON text.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Origin
from tunewright.data.formats.common import Columns, RowFault, guarded
from tunewright.data.formats.dialogue import (
    BESIDE,
    REASONING,
    TURN_COLUMNS,
    conversation,
    messages_of,
    turn_column,
    turns_look_like,
    with_system,
    with_thought,
)


class ShareGPT(Section):
    """Rows with a list of turns, each with `from` and `value`."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a list of {from, value}, 1 with a `conversations` column of another shape."""
    if any(turns_look_like(raw.get(name), "from", "value") for name in TURN_COLUMNS):
        return 2
    return int(
        "conversations" in raw and not turns_look_like(raw["conversations"], "role", "content")
    )


@formats.register(
    "sharegpt",
    ShareGPT,
    needs="conversations: [{from: human | gpt | system, value}, ...]",
    reads=(*TURN_COLUMNS, *REASONING, *BESIDE),
    looks_like=looks_like,
)
@guarded
def sharegpt(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """A dialogue whose gpt turns are learnt."""
    name = "conversations" if "conversations" in raw else turn_column(raw)
    if name is None:
        raise RowFault("no_answer")
    said = with_thought(
        messages_of(raw[name], "from", "value", columns, name, raw), raw, columns, of_last=False
    )
    return conversation(with_system(said, raw, columns), origin, raw, columns, is_marked=True)
