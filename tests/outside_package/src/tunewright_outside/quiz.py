"""Rows with the columns `ask` and `reply`."""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.common import Columns, RowFault, row_format


class Quiz(Section):
    """Rows of a quiz: a question to `ask` and the `reply` that is wanted."""


@row_format(
    "quiz",
    Quiz,
    needs="ask, reply",
    reads=("ask", "reply"),
    looks_like=lambda raw: 2 * ("ask" in raw and "reply" in raw),
)
def quiz(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and answer."""
    for name in ("ask", "reply"):
        if not isinstance(raw.get(name), str) or not raw[name].strip():
            raise RowFault("quiz without words", name)
    turns = [Message("user", raw["ask"]), Message("assistant", raw["reply"])]
    return Conversation(turns, origin)
