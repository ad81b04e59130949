"""Answers judged step by step: `prompt`, `completions` (the steps) and `labels` (true or false for
each), as TRL's data for process rewards is.

The steps become one answer of as many parts, a line break between two that have no white space
there.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Message, Origin, Row, Stepwise
from tunewright.data.formats.beside import BESIDE_QUESTION, question_of
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    json_cell,
    row_format,
    text_of,
    truth_of,
)
from tunewright.data.formats.dialogue import BESIDE, as_context, ordered, with_system
from tunewright.data.formats.marks import no_list, row_weight
from tunewright.data.formats.tool_calls import tools_of
from tunewright.data.formats.writing import as_turns, of_kind


class StepwiseFormat(Section):
    """Rows whose answer is a list of steps, each called right or wrong."""


def looks_like(raw: dict[str, Any]) -> int:
    """3 with steps and labels beside a prompt."""
    return 3 if "prompt" in raw and "completions" in raw and "labels" in raw else 0


def write(row: Row) -> dict[str, Any]:
    """The question, the steps and what each was called."""
    judged = of_kind(row, Stepwise)
    texts, labels = zip(*judged.steps, strict=True)
    asked = as_turns(judged.messages[:-1])
    return {"prompt": asked, "completions": list(texts), "labels": list(labels)}


@row_format(
    "stepwise",
    StepwiseFormat,
    needs="prompt, completions (a list), labels (a list of true and false)",
    reads=("prompt", "completions", "labels", *BESIDE_QUESTION, *BESIDE),
    looks_like=looks_like,
    write=write,
)
def stepwise(raw: dict[str, Any], origin: Origin, columns: Columns) -> Stepwise:
    """A question, and an answer of which every step is judged."""
    texts, labels = (json_cell(raw.get(name), name, columns) for name in ("completions", "labels"))
    if not isinstance(texts, list) or not isinstance(labels, list) or not texts:
        raise RowFault("no_answer")
    verdicts = [truth_of(label) for label in labels]
    if len(verdicts) != len(texts) or None in verdicts:
        raise RowFault("bad_label", repr(labels)[:40])
    steps = [text_of(text, "completions", columns) for text in texts]
    if not all(step.strip() for step in steps):
        raise RowFault("no_answer")
    asked = as_context(question_of(raw, "prompt", columns))
    no_list(raw, columns)
    turns = ordered(
        with_system([*asked, Message("assistant", joined(steps))], raw, columns), columns
    )
    judged = tuple((step, bool(verdict)) for step, verdict in zip(steps, verdicts, strict=True))
    return Stepwise(
        turns, all(verdicts), origin, tools_of(raw, columns), row_weight(raw, columns), judged
    )


def joined(steps: list[str]) -> str:
    """The answer that the steps make."""
    text = steps[0]
    for step in steps[1:]:
        text += step if text[-1:].isspace() or step[:1].isspace() else f"\n{step}"
    return text
