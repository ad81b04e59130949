"""Judged answers (KTO): a dialogue in any of the usual shapes and whether its last answer is good:
`kto_tag`, or `label`.

`label` counts as a judgement beside `prompt` and `completion`, and beside messages or an
instruction where it is true or false; elsewhere it is the label of a classification.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Judged, Message, Origin, Row
from tunewright.data.formats import alpaca, prompt_completion
from tunewright.data.formats.beside import question_of, thoughtful
from tunewright.data.formats.common import Columns, RowFault, first_of, row_format, truth_of
from tunewright.data.formats.dialogue import (
    TURN_COLUMNS,
    as_context,
    conversation,
    keys_of,
    turn_column,
    turns_of_column,
    with_system,
)
from tunewright.data.formats.prompt_completion import completion_of, pair_of
from tunewright.data.formats.writing import as_turns, of_kind

READS = tuple(
    dict.fromkeys(("kto_tag", "label", *TURN_COLUMNS, *alpaca.READS, *prompt_completion.READS))
)


class KTO(Section):
    """Rows with an answer that somebody called good or bad."""


def looks_like(raw: dict[str, Any]) -> int:
    """3 with a tag beside a dialogue."""
    if "kto_tag" in raw:
        return 3
    label = raw.get("label")
    if isinstance(label, bool):
        told = "instruction" in raw and first_of(raw, alpaca.OUTPUTS)
        return 3 if turn_column(raw) or pair_of(raw) or told else 0
    return 3 if truth_of(label) is not None and "prompt" in raw and "completion" in raw else 0


def write(row: Row) -> dict[str, Any]:
    """The dialogue before the last answer, that answer, and what it was called."""
    judged = of_kind(row, Judged)
    asked, answer = as_turns(judged.messages[:-1]), as_turns(judged.messages[-1:])
    return {"prompt": asked, "completion": answer, "label": judged.good}


@row_format(
    "kto",
    KTO,
    needs="messages | instruction, output | prompt, completion; kto_tag | label (true, false)",
    reads=READS,
    looks_like=looks_like,
    write=write,
)
def kto(raw: dict[str, Any], origin: Origin, columns: Columns) -> Judged:
    """A dialogue and whether its last answer is good."""
    tag = raw["kto_tag"] if "kto_tag" in raw else raw.get("label")
    good = truth_of(tag)
    if good is None:
        raise RowFault("bad_label", repr(tag)[:40])
    turns, is_marked = with_system(_turns(raw, columns), raw, columns), bool(turn_column(raw))
    made = conversation(turns, origin, raw, columns, is_marked=is_marked)
    return Judged(made.messages, good, origin, made.tools, made.weight)


def _turns(raw: dict[str, Any], columns: Columns) -> list[Message]:
    name = turn_column(raw)
    if name is not None:
        return turns_of_column(raw, name, keys_of(raw[name]), columns)
    if "instruction" in raw:
        return alpaca.answered(raw, columns)
    pair = pair_of(raw)
    if pair is None:
        raise RowFault("no_answer")
    ask, answer = pair
    asked = as_context(question_of(raw, ask, columns))
    return thoughtful([*asked, *completion_of(raw, answer, columns)], raw, columns, answer)
