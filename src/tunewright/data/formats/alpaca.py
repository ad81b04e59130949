"""Alpaca rows: `instruction`, an optional `input`, `output`; also `system` and `history`, a list of
[question, answer] pairs.

The question is the instruction, and the input on a new line under it when it is not empty. Dolly
calls the input `context` and the output `response`; a row may also hold a `question` under a
general instruction, or both `input` and `context`: each goes on a line of its own.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.beside import (
    BESIDE_ANSWER,
    CHOICES,
    HISTORIES,
    earlier,
    right_choice,
    thoughtful,
    under,
    with_choices,
)
from tunewright.data.formats.common import Columns, RowFault, first_of, guarded, text_of
from tunewright.data.formats.dialogue import BESIDE, conversation, with_system

INPUTS, OUTPUTS = (
    ("question", "query", "problem", "input", "context"),
    ("output", "response", "answer", "completion", "solution"),
)
READS = ("instruction", *INPUTS, *OUTPUTS, *HISTORIES, *CHOICES, *BESIDE_ANSWER, *BESIDE)


class Alpaca(Section):
    """Rows with an instruction, perhaps an input, and an output."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with an instruction and an output, 1 with an instruction alone."""
    return ("instruction" in raw) + ("instruction" in raw and first_of(raw, OUTPUTS) is not None)


@formats.register(
    "alpaca",
    Alpaca,
    needs="instruction, output (input, system, history)",
    reads=READS,
    looks_like=looks_like,
)
@guarded
def alpaca(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and answer, after the earlier ones of `history`."""
    name = first_of(raw, OUTPUTS)
    if name is None:
        raise RowFault("no_answer")
    answer = text_of(right_choice(raw[name], raw, columns), name, columns)
    said = thoughtful([*asked(raw, columns), Message("assistant", answer)], raw, columns, name)
    return conversation(said, origin, raw, columns)


def asked(raw: dict[str, Any], columns: Columns) -> list[Message]:
    """The turns up to the question."""
    question = under(text_of(raw.get("instruction"), "instruction", columns), raw, columns, INPUTS)
    return with_system(
        [*earlier(raw, columns), Message("user", with_choices(question, raw, columns))],
        raw,
        columns,
    )
