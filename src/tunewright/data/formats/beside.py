"""What belongs to question and answer but is in separate columns: earlier turns,
an input, a context, choices, a worked solution.

One place for all formats with a question. The turns of `history` go before the question, an `input`
on the line under it, a context before it with a blank line between (`data.wording`), choices after
it, one a line, each with its letter or number. An answer that is only the number of a choice
becomes its letter (0 is the first, as the sets of the hub count). Where the question is a list of
messages nothing is added to it; what stands beside it is then left, and named.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from tunewright.core.types import Message
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    first_of,
    json_cell,
    looked_into,
    number_of,
    text_of,
    worded,
)
from tunewright.data.formats.dialogue import (
    REASONING,
    keys_of,
    messages_of,
    turns_or_text,
    with_thought,
)
from tunewright.data.formats.ledger import peek

HISTORIES = tuple(
    """
    history chat_history conversation_history dialogue_history dialog_history
    """.split()
)
CONTEXTS = ("context", "passage", "article", "document", "paragraph", "background")
CHOICES = ("choices", "options")
ANSWER_KEYS = tuple(
    """
    answerkey answer_key correct_answer correct_option correct label answer_idx answer_index
    """.split()
)
"""Columns that name the right choice, where there are choices and none of the usual columns of an
answer."""
IN_CONTEXT = "{context}\n\n{question}"
BESIDE_QUESTION = (*HISTORIES, "input", *CONTEXTS, *CHOICES)
SOLUTION = "solution"
BESIDE_ANSWER = (*REASONING, SOLUTION)
_histories = frozenset(HISTORIES)
_numbered = re.compile(r"(?:choice|option|opt|op)[_ ]?([a-j]|\d{1,2})", re.IGNORECASE)


def question_of(raw: Mapping[str, Any], name: str, columns: Columns) -> list[Message]:
    """The turns up to the question in the column `name`, which may be a list of messages itself."""
    turns = turns_or_text(raw[name], name, "user", columns)
    if len(turns) == 1 and not isinstance(looked_into(peek(raw, name)), list | dict):
        text = turns[0].content
        text = under(text, raw, columns, ("input",) if name != "input" else ())
        text = in_context(text, raw, columns)
        turns = [Message("user", with_choices(text, raw, columns))]
    return [*earlier(raw, columns), *turns]


def under(text: str, raw: Mapping[str, Any], columns: Columns, names: tuple[str, ...]) -> str:
    """A question with what these columns hold on lines of their own under it."""
    parts = [text] if text.strip() else []
    for name in names:
        if name in raw and (more := text_of(raw[name], name, columns)).strip():
            parts.append(more)
    return "\n".join(parts)


def in_context(question: str, raw: Mapping[str, Any], columns: Columns) -> str:
    """A question after the text that it is about, where the row has one."""
    name = first_of(raw, CONTEXTS)
    context = text_of(raw[name], name, columns) if name else ""
    if not context.strip():
        return question
    wording = columns.wording if columns.wording and "{question}" in columns.wording else IN_CONTEXT
    return worded(wording, raw, columns, question=question, context=context)


def earlier(raw: Mapping[str, Any], columns: Columns) -> list[Message]:
    """The turns of a history: a list of [question, answer], of objects with both, of messages, or
    of texts in turn."""
    if _histories.isdisjoint(raw):
        return []
    name = first_of(raw, HISTORIES)
    value = json_cell(raw[name], name, columns) if name else None
    if value is None or name is None:
        return []
    if not isinstance(value, list):
        raise RowFault("wrong_type", name)
    pairs = [pair for pair in value if isinstance(pair, list)]
    if len(pairs) == len(value):
        if any(len(pair) != 2 for pair in pairs):
            raise RowFault("wrong_type", name)
        return [
            Message(role, text_of(cell, name, columns))
            for pair in pairs
            for role, cell in zip(("user", "assistant"), pair, strict=True)
        ]
    if all(isinstance(turn, str) for turn in value) and len(value) % 2:
        raise RowFault("wrong_type", name)
    return messages_of(value, *keys_of(value), columns, name)


# ---- choices


def choice_columns(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(label, column) of choices that stand in a column each: A, B, C; choice_a, choice_b; option1,
    option2. None or at least two, without a gap."""
    letters = {name: name for name in names if len(name) == 1 and name in "ABCDEFGHIJ"}
    letters = letters or {
        name.upper(): name for name in names if len(name) == 1 and name in "abcdefghij"
    }
    found = letters or {
        match.group(1).upper(): name for name in names if (match := _numbered.fullmatch(name))
    }
    labels = sorted(found, key=lambda label: (len(label), label))
    whole = [str(ord(label) - ord("A") + 1) if label.isalpha() else label for label in labels]
    begins = int(whole[0]) if whole else 0
    is_whole = [int(number) for number in whole] == list(range(begins, begins + len(whole)))
    if len(labels) < 2 or begins > 1 or not is_whole:
        return ()
    return tuple((label, found[label]) for label in labels)


@functools.lru_cache(maxsize=1000)
def _with_choices(names: tuple[str, ...]) -> bool:
    return first_of(dict.fromkeys(names), CHOICES) is not None or bool(choice_columns(names))


def has_choices(raw: Mapping[str, Any]) -> bool:
    """Whether a row has choices in columns, or a column of choices. Asked of every row, so the
    answer is kept by the names of its columns."""
    return _with_choices(tuple(raw))


def choices_of(raw: Mapping[str, Any], columns: Columns) -> list[tuple[str, str]]:
    """The choices of a row, each with its label; empty where it has none. Raises RowFault for a
    column of choices that cannot be read as such."""
    apart = choice_columns(tuple(raw))
    if apart:
        cells = [(label, text_of(raw[name], name, columns)) for label, name in apart]
        return [(label, text) for label, text in cells if text.strip()]
    name = first_of(raw, CHOICES)
    value = json_cell(raw[name], name, columns) if name else None
    if value is None or value in ("", [], {}):
        return []
    found = _listed(value, columns)
    if len(found) < 2:
        raise RowFault("bad_choices", type(value).__name__)
    return found


def _listed(value: Any, columns: Columns) -> list[tuple[str, str]]:
    """Choices as a list of texts, {"text": [...], "label": [...]}, {A: text, B: text} or [{label,
    text}]."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels = value.get("label")
        texts = value["text"]
        if not isinstance(labels, list) or len(labels) != len(texts):
            labels = [chr(ord("A") + i) for i in range(len(texts))]
        pairs = list(zip(labels, texts, strict=True))
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
        names = [
            (first_of(one, ("label", "key", "id")), first_of(one, ("text", "value", "content")))
            for one in value
        ]
        if any(label is None or text is None for label, text in names):
            raise RowFault("bad_choices", "list")
        pairs = [(one[label], one[text]) for one, (label, text) in zip(value, names, strict=True)]
    elif isinstance(value, list) and len(value) <= 26:
        pairs = [(chr(ord("A") + i), text) for i, text in enumerate(value)]
    else:
        raise RowFault("bad_choices", type(value).__name__)
    return [
        (str(label).strip(), text_of(text, "choices", columns))
        for label, text in pairs
        if text is not None
    ]


def with_choices(question: str, raw: Mapping[str, Any], columns: Columns) -> str:
    """A question with its choices under it, one a line; a question that holds them all already
    stays as it is."""
    if not has_choices(raw):
        return question
    found = choices_of(raw, columns)
    if not found or not question.strip() or all(text.strip() in question for _, text in found):
        return question
    columns.notes["choices_read"] += 1
    return question + "\n\n" + "\n".join(f"{label}. {text}" for label, text in found)


def right_choice(value: Any, raw: Mapping[str, Any], columns: Columns) -> Any:
    """The answer to a question with choices: the letter of the choice that a number names; any
    other answer as it is. Raises RowFault for a wrong number."""
    if not has_choices(raw):
        return value
    number = number_of(value)
    if number is None or not number.is_integer():
        return value
    found = choices_of(raw, columns)
    labels = [label for label, _ in found]
    shown = str(value).strip()
    is_text = isinstance(value, str) and shown in [text.strip() for _, text in found]
    if not found or shown in labels or is_text:
        return value
    if not 0 <= number < len(labels):
        raise RowFault("bad_choice", f"{shown}: {', '.join(labels)}"[:60])
    columns.notes["choice_named"] += 1
    return labels[int(number)]


def thoughtful(
    messages: list[Message], raw: Mapping[str, Any], columns: Columns, answer: str
) -> list[Message]:
    """The messages with the reasoning of the row before its answer. A `solution` beside the column
    of the answer is how one comes to it."""
    return with_thought(
        messages, raw, columns, names=REASONING if answer == SOLUTION else BESIDE_ANSWER
    )
