"""Judged answers (KTO): a dialogue in any of the usual shapes and whether its last answer is good:
`kto_tag`, or `label`.

`label` counts as a judgement beside `prompt` and `completion`, and beside messages or an
instruction where it is true or false; elsewhere it is the label of a classification.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Judged, Message, Origin
from tunewright.data.formats import alpaca, prompt_completion
from tunewright.data.formats.alpaca import OUTPUTS, asked
from tunewright.data.formats.beside import question_of, right_choice, thoughtful
from tunewright.data.formats.common import Columns, RowFault, first_of, guarded, text_of, truth_of
from tunewright.data.formats.dialogue import (
    TURN_COLUMNS,
    as_context,
    keys_of,
    messages_of,
    ordered,
    tools_of,
    turn_column,
    turns_or_text,
    up_to_last_answer,
    with_system,
    with_thought,
)
from tunewright.data.formats.marks import marked, row_weight
from tunewright.data.formats.prompt_completion import pair_of

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
        return (
            3
            if turn_column(raw) or pair_of(raw) or ("instruction" in raw and first_of(raw, OUTPUTS))
            else 0
        )
    return 3 if truth_of(label) is not None and "prompt" in raw and "completion" in raw else 0


@formats.register(
    "kto",
    KTO,
    needs="messages | instruction, output | prompt, completion; kto_tag | label (true, false)",
    reads=READS,
    looks_like=looks_like,
)
@guarded
def kto(raw: dict[str, Any], origin: Origin, columns: Columns) -> Judged:
    """A dialogue and whether its last answer is good."""
    tag = raw["kto_tag"] if "kto_tag" in raw else raw.get("label")
    good = truth_of(tag)
    if good is None:
        raise RowFault("bad_label", repr(tag)[:40])
    turns = with_system(_dialogue(raw, columns), raw, columns)
    found = ordered(
        up_to_last_answer(turns if turn_column(raw) else marked(turns, raw, columns), columns),
        columns,
    )
    return Judged(found, good, origin, tools_of(raw, columns), row_weight(raw, columns))


def _dialogue(raw: dict[str, Any], columns: Columns) -> list[Message]:
    name = turn_column(raw)
    if name is not None:
        return with_thought(
            messages_of(raw[name], *keys_of(raw[name]), columns, name, raw),
            raw,
            columns,
            of_last=False,
        )
    if "instruction" in raw:
        output = first_of(raw, OUTPUTS)
        if output is None:
            raise RowFault("no_answer")
        answer = text_of(right_choice(raw[output], raw, columns), output, columns)
        return thoughtful(
            [*asked(raw, columns), Message("assistant", answer)], raw, columns, output
        )
    pair = pair_of(raw)
    if pair is None:
        raise RowFault("no_answer")
    ask, answer = pair
    completion = turns_or_text(
        right_choice(raw[answer], raw, columns), answer, "assistant", columns
    )
    return thoughtful(
        [*as_context(question_of(raw, ask, columns)), *completion], raw, columns, answer
    )
