"""Turns as messages, and dialogues that make sense: what the formats with several turns share.

Tool calls are kept as `tool_calls` of the assistant's message with their arguments as objects,
whichever way they were written: OpenAI's arguments as JSON text, ShareGPT's `function_call` turns,
the older `function_call` field. A reasoning that stands in a field or column of its own (REASONING)
goes before the answer, between <think> and </think>, as the models that reason write it. Turns
under other names are respelt first (`turn_names.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunewright.core.types import Conversation, Message, Origin
from tunewright.core.written import plain_numbers
from tunewright.data.files.turns import CALL, ROLES
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
from tunewright.data.formats.turn_names import CONTENT_KEYS, is_respellable, respelt

_turns = re.compile(r"""\s*(?:array\(\s*)?\[\s*\{\s*["'](?:role|from)["']\s*:""")
_return = re.compile(r"(?<!\\)(?:\\\\)*\\r")
CALLING = ("tool_calls", CALL, "content", "value")
REASONING = tuple(
    """
    reasoning_content reasoning thinking thinking_content thought thoughts think cot
    chain_of_thought complex_cot reasoning_trace rationale
    """.split()
)
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
TOOLS = ("tools", "functions")
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
        seen = None if len(turn) == 2 and role_key in turn and content_key in turn else Seen(turn)
        read = turn if seen is None else seen
        message = _message(
            read,
            kind,
            content_key,
            columns,
            turn_weight(read, columns, kind in ("assistant", CALL), of_row),
        )
        for left in seen.left() - {role_key} if seen is not None else ():
            if (value := turn[left]) not in (None, "", [], {}):
                columns.fields[left] = value
        before = found[-1] if found else None
        if (
            before
            and before.role == message.role == "assistant"
            and message.tool_calls
            and before.weight == message.weight
        ):
            # Words and the call that follows them are one turn of the assistant; so are calls one
            # after the other.
            joined = "\n".join(part for part in (before.content, message.content) if part)
            found[-1] = replace(
                before, content=joined, tool_calls=[*(before.tool_calls or []), *message.tool_calls]
            )
            columns.notes["turns_joined"] += 1
        else:
            found.append(message)
    return _with_tool_names(found)


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
        return Message("assistant", "", weight, _calls_of_text(turn.get(content_key), columns))
    content = text_of(turn.get(content_key), content_key, columns)
    calls = _calls(turn, columns) if known == "assistant" else None
    if known == "assistant":
        content = _with_reasoning(turn, content, columns)
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


def _calls(turn: Mapping[str, Any], columns: Columns) -> list[dict[str, Any]] | None:
    """The tool calls of an assistant's message, arguments as objects."""
    if turn.get("tool_calls") is None and CALL not in turn:
        return None
    calls = json_cell(turn.get("tool_calls"), "tool_calls", columns) or None
    if calls is None and isinstance(turn.get(CALL), dict):
        calls = [{"type": "function", "function": turn[CALL]}]
    if calls is None:
        return None
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise RowFault("wrong_type", "tool_calls")
    return [_call(call, columns) for call in calls]


def own(value: Any, name: str, columns: Columns) -> Any:
    """The value of a cell without the nulls that the one schema of a columnar file put into its
    objects; what stands there as text has none of those."""
    if isinstance(value, str) or not columns.fills_objects:
        return json_cell(value, name, columns)
    made, count = _without_nulls(value)
    if count:
        columns.notes["schema_nulls"] += count
    return made


def unfilled(turns: Any, columns: Columns) -> Any:
    """The turns, as a columnar file has them, without the nulls of its schema in their calls
    (`own`); other turns as they are."""
    if not columns.fills_objects or not isinstance(turns, list):
        return turns
    found = []
    for turn in turns:
        calls = (
            [key for key, cell in turn.items() if key in CALLING and isinstance(cell, dict | list)]
            if isinstance(turn, dict)
            else ()
        )
        found.append(
            {**turn, **{key: own(turn[key], key, columns) for key in calls}} if calls else turn
        )
    return found


def _without_nulls(value: Any, name: str = "") -> tuple[Any, int]:
    """The value without fields that are null, on every level, and how many there were; a property
    of a tool that held nothing else is left out as well."""
    if isinstance(value, list):
        items = [_without_nulls(inner) for inner in value]
        return [inner for inner, _ in items], sum(count for _, count in items)
    if not isinstance(value, dict):
        return value, 0
    made, total = {}, 0
    for key, inner in value.items():
        left, count = _without_nulls(inner, key)
        total += count + (inner is None)
        if inner is not None and not (name == "properties" and inner and left == {}):
            made[key] = left
    return made, total


def with_plain_numbers(value: Any, columns: Columns) -> Any:
    """The value with numbers as JSON libraries write them, for a template writes them so; those
    that its file spells otherwise are counted."""
    made, count = plain_numbers(value)
    if count:
        columns.notes["numbers_respelt"] += count
    return made


def _call(call: dict[str, Any], columns: Columns) -> dict[str, Any]:
    function = call["function"] if isinstance(call.get("function"), dict) else call
    if not isinstance(function.get("name"), str):
        raise RowFault("bad_tool_call", "name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json_cell(arguments, "arguments", columns) or {}
        except RowFault as fault:
            raise RowFault("bad_tool_call", "arguments") from fault
    if isinstance(arguments, str):
        raise RowFault("bad_tool_call", "arguments")
    made = {k: v for k, v in function.items() if k not in ("arguments", "parameters")} | {
        "arguments": {} if arguments is None else arguments
    }
    whole = with_plain_numbers(call | {"function": made} if function is not call else made, columns)
    _plain(whole, "tool_calls", columns)
    return dict(whole)


def _calls_of_text(value: Any, columns: Columns) -> list[dict[str, Any]]:
    """The calls of a ShareGPT turn: JSON text (or the value itself) with a name and arguments, or a
    list of those."""
    try:
        found = json_cell(value, CALL, columns)
    except RowFault as fault:
        raise RowFault("bad_tool_call", "JSON") from fault
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise RowFault("bad_tool_call", type(found).__name__)
    return [
        {"type": "function", "function": made}
        if "function" not in (made := _call(call, columns))
        else made
        for call in calls
    ]


def _with_tool_names(messages: list[Message]) -> list[Message]:
    """Results of tools with the name of the tool, found by the id of the call, for templates that
    write it."""
    names: dict[str, str] = {}
    out = []
    for message in messages:
        for call in message.tool_calls or []:
            if isinstance(call.get("id"), str):
                names[call["id"]] = str(call.get("function", call).get("name", ""))
        if message.role == "tool" and message.name is None and message.tool_call_id in names:
            message = replace(message, name=names[message.tool_call_id])
        out.append(message)
    return out


def tools_of(raw: Mapping[str, Any], columns: Columns) -> list[dict[str, Any]] | None:
    """The tools of a row (`functions`, as they were once called): a list or JSON text of one; a
    bare function is put into the form of chat templates."""
    name = "functions" if "functions" in raw and not peek(raw, "tools") else "tools"
    if raw.get(name) is None:
        return None
    tools = own(raw[name], name, columns) or None
    if isinstance(tools, dict):
        tools = [tools]
    if tools is None:
        return None
    if isinstance(tools, list):
        tools = [json_cell(tool, "tools", columns) for tool in tools]
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowFault("wrong_type", "tools")
    tools = with_plain_numbers(tools, columns)
    _plain(tools, "tools", columns)
    return [
        {"type": "function", "function": tool}
        if "name" in tool and "function" not in tool and "type" not in tool
        else tool
        for tool in tools
    ]


def _plain(value: Any, name: str, columns: Columns) -> None:
    """Raises RowFault for what cannot be written as JSON; counts a carriage return in it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        check_unicode(text, name)
        if "\\r" in text and _return.search(text):
            columns.notes["carriage_returns"] += 1
    except (TypeError, ValueError) as error:
        raise RowFault("wrong_type", name) from error


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
