"""A question about a given text: `question`, `context` and `answer`, or `answers` as SQuAD writes them ({"text": [...], "answer_start": [...]}).

The context stands first and the question after a blank line, so that the questions of one context share its tokens; `data.wording` changes that.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import formats
from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.common import Columns, RowFault, first_of, guarded, json_cell, text_of, worded
from tunewright.data.formats.dialogue import conversation, with_system

WORDING = "{context}\n\n{question}"
ANSWERS = ("answers", "answer", "response", "output")


class QuestionContext(Section):
    """Rows with a question, a text to answer it from, and the answer."""


def looks_like(raw: dict[str, Any]) -> int:
    """3 with all three columns."""
    return 3 if "question" in raw and "context" in raw and first_of(raw, ANSWERS) else 0


@formats.register("question_context", QuestionContext, needs="question, context, answer | answers", looks_like=looks_like)
@guarded
def question_context(raw: dict[str, Any], origin: Origin, columns: Columns) -> Conversation:
    """One question with its context, and the answer."""
    question = text_of(raw.get("question"), "question", columns)
    context = text_of(raw.get("context"), "context", columns)
    if not question.strip():
        raise RowFault("empty_question")
    if not context.strip():
        raise RowFault("no_context")
    wording = columns.wording if columns.wording and "{question}" in columns.wording else WORDING
    asked = Message("user", worded(wording, question=question, context=context))
    return conversation(with_system([asked, Message("assistant", _answer(raw, columns))], raw, columns), origin, raw, columns)


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
    return text_of(value, name or "answer", columns)
