"""A question about a given text: `question`, `context` and `answer`, or `answers` as SQuAD writes
them ({"text": [...], "answer_start": [...]}).

The context stands first and the question after a blank line, so that the questions of one context
share its tokens; `data.wording` changes that.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.beside import (
    BESIDE_ANSWER,
    CHOICES,
    HISTORIES,
    earlier,
    in_context,
    right_choice,
    thoughtful,
    with_choices,
)
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    first_of,
    json_cell,
    row_format,
    text_of,
)
from tunewright.data.formats.dialogue import BESIDE, conversation, with_system

ANSWERS = ("answers", "answer", "response", "output")
READS = ("question", "context", *ANSWERS, *HISTORIES, *CHOICES, *BESIDE_ANSWER, *BESIDE)


class QuestionContext(Section):
    """Rows with a question, a text to answer it from, and the answer."""


def looks_like(raw: dict[str, Any]) -> int:
    """3 with all three columns."""
    return 3 if "question" in raw and "context" in raw and first_of(raw, ANSWERS) else 0


@row_format(
    "question_context",
    QuestionContext,
    needs="question, context, answer | answers",
    reads=READS,
    looks_like=looks_like,
)
def question_context(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question with its context, and the answer."""
    question = text_of(raw.get("question"), "question", columns)
    if not question.strip():
        raise RowFault("empty_question")
    if not text_of(raw.get("context"), "context", columns).strip():
        raise RowFault("no_context")
    asked = Message("user", with_choices(in_context(question, raw, columns), raw, columns))
    said = [*earlier(raw, columns), asked, Message("assistant", _answer(raw, columns))]
    said = thoughtful(said, raw, columns, first_of(raw, ANSWERS) or "answer")
    return conversation(with_system(said, raw, columns), origin, raw, columns)


def _answer(raw: dict[str, Any], columns: Columns) -> str:
    name = first_of(raw, ANSWERS)
    value = raw[name] if name else None
    if isinstance(value, str) and name == "answers" and value.lstrip()[:1] in ("{", "["):
        value = json_cell(value, name, columns)
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, list):
        if len({str(one) for one in value}) > 1:
            columns.notes["several_answers"] += 1
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("text")
    if value is None:
        raise RowFault("no_answer")
    return text_of(right_choice(value, raw, columns), name or "answer", columns)
