"""Alpaca rows: `instruction`, an optional `input`, `output`; also `system` and `history`, a list of [question, answer] pairs.

The question is the instruction, and the input on a new line under it when it is not empty. Dolly calls the input `context` and the output `response`.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.common import Columns, RowFault, first_of, guarded, json_cell, text_of
from tunewright.data.formats.dialogue import conversation, with_system

INPUTS, OUTPUTS = ("input", "context"), ("output", "response")


class Alpaca(Section):
    """Rows with an instruction, perhaps an input, and an output."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with an instruction and an output, 1 with an instruction alone."""
    return ("instruction" in raw) + ("instruction" in raw and first_of(raw, OUTPUTS) is not None)


@formats.register("alpaca", Alpaca, needs="instruction, output (input, system, history)", looks_like=looks_like)
@guarded
def alpaca(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and answer, after the earlier ones of `history`."""
    name = first_of(raw, OUTPUTS)
    if name is None:
        raise RowFault("no_answer")
    answer = text_of(raw[name], name, columns)
    return conversation([*asked(raw, columns), Message("assistant", answer)], origin, raw, columns)


def asked(raw: dict[str, Any], columns: Columns) -> list[Message]:
    """The turns up to the question."""
    more = first_of(raw, INPUTS)
    parts = [text_of(raw.get(name), name, columns) for name in ("instruction", more) if name]
    messages: list[Message] = []
    for pair in _history(raw.get("history"), columns):
        messages += [Message(role, text_of(cell, "history", columns)) for role, cell in zip(("user", "assistant"), pair, strict=True)]
    question = "\n".join(part for part in parts if part.strip())
    return with_system([*messages, Message("user", question)], raw, columns)


def _history(value: Any, columns: Columns) -> list[list[Any]]:
    value = json_cell(value, "history", columns)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise RowFault("wrong_type", "history")
    return value
