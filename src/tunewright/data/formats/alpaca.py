"""Alpaca rows: `instruction`, an optional `input`, `output`; also `system` and `history`, a list of [question, answer] pairs.

The question is the instruction, and the input on a new line under it when it is not empty.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.common import Columns, RowFault, conversation, guarded, text_of


class Alpaca(Section):
    """Rows with an instruction, perhaps an input, and an output."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with an instruction and an output, 1 with an instruction alone."""
    return ("instruction" in raw) + ("instruction" in raw and "output" in raw)


@formats.register("alpaca", Alpaca, needs="instruction, output (input, system, history)", looks_like=looks_like)
@guarded
def alpaca(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and answer, after the earlier ones of `history`."""
    if "output" not in raw:
        raise RowFault("no_answer")
    parts = [text_of(raw.get(name), name, columns) for name in ("instruction", "input")]
    messages = [Message("system", text_of(raw.get("system"), "system", columns))]
    for pair in _history(raw.get("history")):
        messages += [Message(role, text_of(cell, "history", columns)) for role, cell in zip(("user", "assistant"), pair, strict=True)]
    question = "\n".join(part for part in parts if part.strip())
    answer = text_of(raw["output"], "output", columns)
    return conversation([*messages, Message("user", question), Message("assistant", answer)], origin, raw, columns)


def _history(value: Any) -> list[list[Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise RowFault("wrong_type", "history")
    return value
