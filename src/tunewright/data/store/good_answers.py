"""`data.good_only`: of rows that hold good and bad answers only the good ones stay, as dialogues to
be imitated.

Nobody is to learn a rejected answer by likelihood; so an objective that learns from dialogues
refuses such rows, unless this is asked for. What is learnt is what the judgement was about: the
chosen turns of a pair, the last answer of a judged row. Answers before them are context.
"""

from __future__ import annotations

from dataclasses import replace

from tunewright.core.types import Conversation, Judged, Message, Preference, Row
from tunewright.data.formats.shaping import Dropped

LEFT_OUT = "not_good"
"""The reason of a row whose answer was called bad."""


def only_good(row: Row) -> Row | Dropped:
    """The row's good answer as a dialogue; a row of another kind as it is. A judged answer that is
    not good is dropped."""
    if isinstance(row, Preference):
        return Conversation([*_context(row.prompt), *row.chosen], row.origin, row.tools, row.weight)
    if isinstance(row, Judged):
        if not row.good:
            return Dropped(row.origin, LEFT_OUT)
        return Conversation(
            [*_context(row.messages[:-1]), replace(row.messages[-1], weight=1.0)],
            row.origin,
            row.tools,
            row.weight,
        )
    return row


def _context(messages: list[Message]) -> list[Message]:
    """The turns before the answer, none of them learnt."""
    return [replace(m, weight=0.0) if m.role == "assistant" else m for m in messages]
