"""Texts with labels: `text` (or `sentence`) and `label`; the label's name (`label_text`,
`label_name`) is learnt where there is one.

The question is the text in a wording that asks for the label, `data.wording`, which may name other
columns too (`{aspect}`). Labels may be numbers; `data.labels` or the file's own metadata names
them.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats import common, dialogue
from tunewright.data.formats.common import Columns, RowFault, first_of, number_of, text_of
from tunewright.data.formats.dialogue import BESIDE, REASONING

WORDING = "{text}\n\nLabel:"
TEXTS, LABELS = ("text", "sentence"), ("label_text", "label_name", "label")
READS = (*TEXTS, *LABELS, *REASONING, *BESIDE)


class Classification(Section):
    """Rows with a text and its label."""


def looks_like(raw: dict[str, Any]) -> int:
    """2 with a text and a label."""
    return 2 if first_of(raw, TEXTS) and first_of(raw, LABELS) else 0


@common.row_format(
    "classification",
    Classification,
    needs="text, label (label_text)",
    reads=READS,
    looks_like=looks_like,
)
def classification(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """The text in its wording, and the label."""
    name = first_of(raw, TEXTS)
    found = text_of(raw[name], name, columns) if name else ""
    if not found.strip():
        raise RowFault("empty_text" if name else "no_text")
    wording = columns.wording if columns.wording and "{text}" in columns.wording else WORDING
    asked = Message("user", common.worded(wording, raw, columns, text=found))
    said = [asked, Message("assistant", _label(raw, columns))]
    said = dialogue.with_system(dialogue.with_thought(said, raw, columns), raw, columns)
    return dialogue.conversation(said, origin, raw, columns)


def _label(raw: dict[str, Any], columns: Columns) -> str:
    name = first_of(raw, LABELS)
    value = raw[name] if name else None
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowFault("no_label")
    number = number_of(value)
    if columns.labels is not None and number is not None and number.is_integer():
        if not 0 <= number < len(columns.labels):
            raise RowFault("no_label", str(value)[:40])
        columns.notes["label_named"] += 1
        return columns.labels[int(number)]
    if isinstance(value, bool | int | float):
        label = text_of(value, "label", Columns())
        columns.notes["label_as_text"] += 1
        return label
    return text_of(value, "label", columns)
