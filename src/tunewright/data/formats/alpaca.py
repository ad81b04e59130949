"""Alpaca rows: `instruction`, an optional `input`, `output`; also `system` and `history`, a list of
[question, answer] pairs.

The question is the instruction, and the input on a new line under it when it is not empty. Dolly
calls the input `context` and the output `response`; a row may also hold a `question` under a
general instruction, or both `input` and `context`: each goes on a line of its own.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Conversation, Message, Origin, Row
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
from tunewright.data.formats.common import Columns, RowFault, first_of, row_format, text_of
from tunewright.data.formats.dialogue import BESIDE, conversation, with_system
from tunewright.data.formats.writing import of_kind, system_and_turns

INPUTS = ("question", "query", "problem", "input", "context")
OUTPUTS = ("output", "response", "answer", "completion", "solution")
READS = ("instruction", *INPUTS, *OUTPUTS, *HISTORIES, *CHOICES, *BESIDE_ANSWER, *BESIDE)


class Alpaca(Section):
    """Rows with an instruction, perhaps an input, and an output."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with an instruction and an output, 1 with an instruction alone."""
    return ("instruction" in raw) + ("instruction" in raw and first_of(raw, OUTPUTS) is not None)


def write(row: Row) -> dict[str, Any]:
    """The last question and answer, the earlier ones as history; all answers are learnt, in this
    form as in the row."""
    system, turns = system_and_turns(of_kind(row, Conversation).messages)
    if any(m.weight != 1 for m in turns if m.role == "assistant"):
        raise RowFault("turn_weights")
    if len(turns) % 2:
        raise RowFault("turns")
    pairs = [[turns[i].content, turns[i + 1].content] for i in range(0, len(turns), 2)]
    asked, answer = pairs.pop()
    out = {"instruction": asked, "input": "", "output": answer, **system}
    return out | ({"history": pairs} if pairs else {})


@row_format(
    "alpaca",
    Alpaca,
    needs="instruction, output (input, system, history)",
    reads=READS,
    looks_like=looks_like,
    write=write,
)
def alpaca(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question and answer, after the earlier ones of `history`."""
    return conversation(answered(raw, columns), origin, raw, columns)


def answered(raw: dict[str, Any], columns: Columns) -> list[Message]:
    """The turns with the answer."""
    name = first_of(raw, OUTPUTS)
    if name is None:
        raise RowFault("no_answer")
    answer = text_of(right_choice(raw[name], raw, columns), name, columns)
    return thoughtful([*asked(raw, columns), Message("assistant", answer)], raw, columns, name)


def asked(raw: dict[str, Any], columns: Columns) -> list[Message]:
    """The turns up to the question."""
    question = under(text_of(raw.get("instruction"), "instruction", columns), raw, columns, INPUTS)
    turns = [*earlier(raw, columns), Message("user", with_choices(question, raw, columns))]
    return with_system(turns, raw, columns)
