"""Turns as messages, and dialogues that make sense: what the formats with several turns share.

A reasoning that stands in a field or column of its own (REASONING) goes before the answer, between
<think> and </think>, as the models that reason write it. Turns under other names are respelt first
(`turn_names.py`); calls of tools are read by `tool_calls.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.files.turns import CALL, ROLES
from tunewright.data.formats import channels
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    check_unicode,
    first_of,
    json_cell,
    looked_into,
    text_of,
)
from tunewright.data.formats.ledger import Seen, peek
from tunewright.data.formats.marks import LISTS, by_turn, marked, row_weight, turn_weight
from tunewright.data.formats.tool_calls import (
    TOOLS,
    calls_of,
    calls_of_text,
    tools_of,
    unfilled,
    with_tool_names,
)
from tunewright.data.formats.turn_names import CONTENT_KEYS, is_respellable, respelt

_turns = re.compile(r"""\s*(?:array\(\s*)?\[\s*\{\s*["'](?:role|from)["']\s*:""")
REASONING = tuple(
    """
    reasoning_content reasoning thinking thinking_content thought thoughts think cot
    chain_of_thought complex_cot reasoning_trace rationale
    """.split()
)
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
TURN_COLUMNS = ("messages", "conversations", "conversation")
MORE_TURN_COLUMNS = ("contents", "turns", "dialogue", "dialog", "data", "chat")
"""Also looked at where there is none of TURN_COLUMNS, and taken where they hold a list of turns:
`dialogue` is a text in many sets."""
_systems, _thoughts = frozenset(SYSTEMS), frozenset((*REASONING, "solution"))
BESIDE = (*SYSTEMS, *TOOLS, *LISTS)
"""Columns that any row with turns may have."""
_FOLLOWS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
_CALLED = ("assistant", "tool")
"""What a tool's result may follow. Turns in any other order are kept where the model's own template
writes them (`rendering` proves it)."""


def turn_column(raw: Mapping[str, Any]) -> str | None:
    """The column that holds the turns of a dialogue."""
    found = first_of(raw, TURN_COLUMNS)
    if found is not None:
        return found
    return next(
        (
            name
            for name in MORE_TURN_COLUMNS
            if name in raw and is_respellable(looked_into(peek(raw, name)))
        ),
        None,
    )


def under_other_names(raw: Mapping[str, Any]) -> bool:
    """Whether a row has turns that are respelt."""
    name = turn_column(raw)
    value = looked_into(peek(raw, name)) if name is not None else None
    known = any(turns_look_like(value, *keys) for keys in (("role", "content"), ("from", "value")))
    return not known and is_respellable(value)


def keys_of(turns: Any) -> tuple[str, str]:
    """How a list of turns calls role and content: `role` and `content`, or `from` and `value`."""
    turns = looked_into(turns)
    first = turns[0] if isinstance(turns, list) and turns else turns
    return ("from", "value") if isinstance(first, dict) and "from" in first else ("role", "content")


def turns_look_like(value: Any, role_key: str, content_key: str) -> bool:
    """Whether a cell is a list of turns with these two keys. A turn with tool calls may have no
    content."""
    value = looked_into(value)
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and role_key in value[0]
        and content_key in value[0]
    )


def last_role(value: Any) -> str:
    """The role of the last turn, as we call it; empty for what is no list of turns."""
    return _role_at(value, -1)


def first_role(value: Any) -> str:
    """The role of the first turn."""
    return _role_at(value, 0)


def _role_at(value: Any, place: int) -> str:
    value = looked_into(value)
    if not isinstance(value, list) or not value or not isinstance(value[place], dict):
        return ""
    role = value[place].get(keys_of(value)[0])
    return ROLES.get(role.strip().lower(), "") if isinstance(role, str) else ""


def messages_of(
    turns: Any,
    role_key: str,
    content_key: str,
    columns: Columns,
    name: str = "turns",
    row: Mapping[str, Any] | None = None,
) -> list[Message]:
    """A list of turns, the column `name`, as messages; a list of marks of `row` says which are
    learnt. Raises RowFault for anything that is no dialogue."""
    turns = json_cell(turns, name, columns) if isinstance(turns, str) else unfilled(turns, columns)
    if not isinstance(turns, list):
        raise RowFault("wrong_type", f"{name}: {type(turns).__name__}")
    turns, role_key, content_key = _spelt(turns, role_key, content_key, columns)
    kinds = [_kind(turn, role_key) for turn in turns]
    marks = by_turn(row, kinds, columns) if row is not None else [None] * len(turns)
    found: list[Message] = []
    for turn, kind, of_row in zip(turns, kinds, marks, strict=True):
        # Of a turn with a role and a content and nothing else nothing can be left.
        is_bare = len(turn) == 2 and role_key in turn and content_key in turn
        read = turn if is_bare else Seen(turn)
        weight = turn_weight(read, columns, kind in ("assistant", CALL), of_row)
        message = _message(read, kind, content_key, columns, weight)
        for left in read.left() - {role_key} if isinstance(read, Seen) else ():
            if (value := turn[left]) not in (None, "", [], {}):
                columns.fields[left] = value
        joined = _joined(found[-1], message) if found else None
        if joined is not None:
            found[-1] = joined
            columns.notes["turns_joined"] += 1
        else:
            found.append(message)
    return with_tool_names(found)


def _joined(before: Message, message: Message) -> Message | None:
    """Words and the call that follows them are one turn of the assistant; so are calls one after
    the other, and a thought in a channel of its own and its answer. None for two turns."""
    if channels.goes_before(before, message):
        return replace(
            before, content=before.content + message.content, tool_calls=message.tool_calls
        )
    is_same = before.role == message.role == "assistant" and before.weight == message.weight
    if not message.tool_calls or not is_same:
        return None
    content = "\n".join(part for part in (before.content, message.content) if part)
    calls = [*(before.tool_calls or []), *message.tool_calls]
    return replace(before, content=content, tool_calls=calls)


def _spelt(
    turns: list[Any], role_key: str, content_key: str, columns: Columns
) -> tuple[list[Any], str, str]:
    """The turns and what they call role and content, respelt where the first has other names."""
    first = turns[0] if turns else None
    if (
        isinstance(first, dict)
        and role_key in first
        and (content_key in first or not any(name in first for name in CONTENT_KEYS))
    ):
        return turns, role_key, content_key
    made = respelt(turns, columns)
    return (turns, role_key, content_key) if made is None else (made, "role", "content")


def _kind(turn: Any, role_key: str) -> str:
    """What a turn is: a role as we call it, or CALL. Raises RowFault."""
    if not isinstance(turn, dict):
        raise RowFault("wrong_type", f"turn: {type(turn).__name__}")
    role = turn.get(role_key)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise RowFault("unknown_role", repr(role)[:40])
    return known


def _message(
    turn: Mapping[str, Any], known: str, content_key: str, columns: Columns, weight: float
) -> Message:
    if known == CALL:
        return Message("assistant", "", weight, calls_of_text(turn.get(content_key), columns))
    content = text_of(turn.get(content_key), content_key, columns)
    calls = calls_of(turn, columns) if known == "assistant" else None
    if known == "assistant":
        content = _with_reasoning(turn, channels.without_channels(content), columns)
        content = channels.thought(content) if channels.is_analysis(turn) else content
    name, call_id = turn.get("name"), turn.get("tool_call_id")
    for key, value in (("name", name), ("tool_call_id", call_id)):
        if isinstance(value, str):
            check_unicode(value, key)
    return Message(
        known,
        content,
        weight,
        calls,
        name if isinstance(name, str) else None,
        call_id if isinstance(call_id, str) and call_id else None,
    )


def _with_reasoning(
    turn: Mapping[str, Any], content: str, columns: Columns, names: Sequence[str] = REASONING
) -> str:
    """The answer after the reasoning that a turn, or a row, holds in a field of its own."""
    if "</think>" in content:
        return content
    key = next((k for k in names if k in turn and _steps(peek(turn, k))), None)
    if key is None:
        return content
    columns.notes["reasoning_kept"] += 1
    return f"<think>\n{text_of(_steps(turn[key]), key, columns).strip()}\n</think>\n\n{content}"


def _steps(value: Any) -> str:
    """A reasoning as text: itself, or its steps on lines of their own; empty for anything else."""
    if isinstance(value, list) and value and all(isinstance(step, str) for step in value):
        value = "\n".join(value)
    return value if isinstance(value, str) and value.strip() else ""


def with_thought(
    messages: list[Message],
    raw: Mapping[str, Any],
    columns: Columns,
    *,
    of_last: bool = True,
    names: Sequence[str] = REASONING,
) -> list[Message]:
    """The messages with the reasoning that the row holds in a column before its answer: the last
    one, or (`of_last` False) the only one."""
    if _thoughts.isdisjoint(raw):
        return messages
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if (
        not answers
        or (len(answers) > 1 and not of_last)
        or not messages[answers[-1]].content.strip()
    ):
        return messages
    last = messages[answers[-1]]
    return [
        *messages[: answers[-1]],
        replace(last, content=_with_reasoning(raw, last.content, columns, names)),
        *messages[answers[-1] + 1 :],
    ]


def with_system(messages: list[Message], raw: Mapping[str, Any], columns: Columns) -> list[Message]:
    """The messages after the row's system prompt (SYSTEMS), where they bring none. An empty one is
    a prompt, null is none."""
    if _systems.isdisjoint(raw) or (messages and messages[0].role == "system"):
        return messages
    name = first_of(raw, SYSTEMS)
    value = raw[name] if name else None
    if name is None or value is None:
        return messages
    system = text_of(
        value["parts"] if isinstance(value, dict) and "parts" in value else value, name, columns
    )
    if columns.blank_is_none and not system.strip():
        return messages
    return [Message("system", system), *messages]


def ordered(messages: list[Message], columns: Columns) -> list[Message]:
    """The messages, each with a content where it needs one. An order that few templates write is
    counted. Raises RowFault for a result without a call."""
    before, is_usual, is_empty = "start", True, False
    for message in messages:
        if message.role not in _FOLLOWS[before]:
            if message.role == "tool" and before not in _CALLED:
                raise RowFault("bad_order", f"{message.role} after {before}")
            is_usual = False
        before = message.role
        if message.role == "system" and not message.content.strip():
            is_empty = True
        if message.role == "user" and not message.content.strip():
            raise RowFault("empty_question")
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise RowFault("empty_answer")
    if not is_usual:
        columns.notes["unusual_order"] += 1
    if is_empty:
        columns.notes["system_empty"] += 1
    return messages


def up_to_last_answer(messages: list[Message], columns: Columns) -> list[Message]:
    """The messages without a question after the last answer, which is counted. Raises RowFault with
    `no_answer`."""
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise RowFault("no_answer")
    if answers[-1] + 1 < len(messages):
        columns.notes["question_after_last_answer"] += 1
    return messages[: answers[-1] + 1]


def conversation(
    messages: list[Message],
    origin: Origin,
    raw: Mapping[str, Any],
    columns: Columns,
    *,
    is_marked: bool = False,
) -> Conversation:
    """A dialogue that ends with an answer, usually an optional system prompt, then user and
    assistant in turn.

    A question after the last answer is left out and counted. The marks of the row are put on its
    turns unless they are (`is_marked`). Raises RowFault with `no_answer`, `empty_answer`,
    `empty_question`, `bad_order` or what is wrong with a mark.
    """
    turns = messages if is_marked else marked(messages, raw, columns)
    return Conversation(
        ordered(up_to_last_answer(turns, columns), columns),
        origin,
        tools_of(raw, columns),
        row_weight(raw, columns),
    )


def conversation_of_turns(
    raw: Mapping[str, Any],
    name: str | None,
    keys: tuple[str, str],
    origin: Origin,
    columns: Columns,
) -> Conversation:
    """The dialogue that the list of turns in the column `name` is; `keys` are what the turns call
    role and content."""
    if name is None:
        raise RowFault("no_answer")
    said = turns_of_column(raw, name, keys, columns)
    return conversation(with_system(said, raw, columns), origin, raw, columns, is_marked=True)


def turns_of_column(
    raw: Mapping[str, Any], name: str, keys: tuple[str, str], columns: Columns
) -> list[Message]:
    """The turns of a column, marked, with the reasoning of the row before its only answer."""
    found = messages_of(raw[name], *keys, columns, name, raw)
    return with_thought(found, raw, columns, of_last=False)


def turns_or_text(value: Any, name: str, role: str, columns: Columns) -> list[Message]:
    """A cell that is a list of turns, one turn, or a text said by `role`."""
    seen = looked_into(value)
    if isinstance(seen, dict) and ("role" in seen or "from" in seen):
        seen = [seen]
    if (
        isinstance(seen, list)
        and seen
        and isinstance(seen[0], dict)
        and ("role" in seen[0] or "from" in seen[0])
    ):
        return messages_of(value if isinstance(value, str) else seen, *keys_of(seen), columns, name)
    if isinstance(value, str) and _turns.match(value):
        json_cell(value, name, columns)  # says what is wrong with it
    # An answer such as "[1, 2]" is a text, whatever else it could be read as.
    return [Message(role, text_of(value, name, columns))]


def as_context(messages: Sequence[Message]) -> list[Message]:
    """The messages with nothing to learn: what stands in a prompt was given, not asked for."""
    return [replace(m, weight=0.0) if m.role == "assistant" else m for m in messages]
