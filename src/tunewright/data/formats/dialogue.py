"""Turns as messages, and dialogues that make sense: what the formats with several turns share.

Tool calls are kept as `tool_calls` of the assistant's message with their arguments as objects, whichever way they were written: OpenAI's arguments as
JSON text, ShareGPT's `function_call` turns, the older `function_call` field. A reasoning that stands in a field or column of its own (REASONING) goes
before the answer, between <think> and </think>, as the models that reason write it. Turns under other names are respelt first (`turn_names.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunewright.core.types import Conversation, Message, Origin
from tunewright.data.formats.common import Columns, RowFault, check_unicode, first_of, json_cell, looked_into, text_of, weight_of
from tunewright.data.formats.ledger import Seen, peek
from tunewright.data.formats.turn_names import CONTENT_KEYS, is_respellable, respelt

CALL = "function_call"
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
    CALL: CALL,
    "tool_call": CALL,
}
REASONING = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thinking_content",
    "thought",
    "thoughts",
    "think",
    "cot",
    "chain_of_thought",
    "complex_cot",
    "reasoning_trace",
    "rationale",
)
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
TOOLS = ("tools", "functions")
TURN_COLUMNS = ("messages", "conversations", "conversation")
MORE_TURN_COLUMNS = ("contents", "turns", "dialogue", "dialog", "data", "chat")
"""Also looked at where there is none of TURN_COLUMNS, and taken where they hold a list of turns: `dialogue` is a text in many sets."""
_systems, _thoughts = frozenset(SYSTEMS), frozenset((*REASONING, "solution"))
BESIDE = (*SYSTEMS, *TOOLS, "weight")
"""Columns that any row with turns may have."""
_FOLLOWS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def turn_column(raw: Mapping[str, Any]) -> str | None:
    """The column that holds the turns of a dialogue."""
    found = first_of(raw, TURN_COLUMNS)
    if found is not None:
        return found
    return next((name for name in MORE_TURN_COLUMNS if name in raw and is_respellable(looked_into(peek(raw, name)))), None)


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
    """Whether a cell is a list of turns with these two keys. A turn with tool calls may have no content."""
    value = looked_into(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and role_key in value[0] and content_key in value[0]


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


def messages_of(turns: Any, role_key: str, content_key: str, columns: Columns) -> list[Message]:
    """A list of turns as messages. Raises RowFault for anything that is no dialogue."""
    turns = json_cell(turns, "turns")
    if not isinstance(turns, list):
        raise RowFault("wrong_type", f"{type(turns).__name__}")
    turns, role_key, content_key = _spelt(turns, role_key, content_key, columns)
    found: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowFault("wrong_type", f"turn: {type(turn).__name__}")
        # Of a turn with a role and a content and nothing else nothing can be left.
        seen = None if len(turn) == 2 and role_key in turn and content_key in turn else Seen(turn)
        message = _message(turn if seen is None else seen, role_key, content_key, columns)
        for name in seen.left() if seen is not None else ():
            if (value := turn[name]) not in (None, "", [], {}):
                columns.fields[name] = value
        before = found[-1] if found else None
        if before and before.role == message.role == "assistant" and message.tool_calls and before.weight == message.weight:
            # Words and the call that follows them are one turn of the assistant; so are calls one after the other.
            joined = "\n".join(part for part in (before.content, message.content) if part)
            found[-1] = replace(before, content=joined, tool_calls=[*(before.tool_calls or []), *message.tool_calls])
            columns.notes["turns_joined"] += 1
        else:
            found.append(message)
    return _with_tool_names(found)


def _spelt(turns: list[Any], role_key: str, content_key: str, columns: Columns) -> tuple[list[Any], str, str]:
    """The turns and what they call role and content, respelt where the first one has other names."""
    first = turns[0] if turns else None
    if isinstance(first, dict) and role_key in first and (content_key in first or not any(name in first for name in CONTENT_KEYS)):
        return turns, role_key, content_key
    made = respelt(turns, columns)
    return (turns, role_key, content_key) if made is None else (made, "role", "content")


def _message(turn: Mapping[str, Any], role_key: str, content_key: str, columns: Columns) -> Message:
    role = turn.get(role_key)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise RowFault("unknown_role", repr(role)[:40])
    if known == CALL:
        return Message("assistant", "", weight_of(turn), _calls_of_text(turn.get(content_key)))
    content = text_of(turn.get(content_key), content_key, columns)
    calls = _calls(turn) if known == "assistant" else None
    if known == "assistant":
        content = _with_reasoning(turn, content, columns)
    name, call_id = turn.get("name"), turn.get("tool_call_id")
    for key, value in (("name", name), ("tool_call_id", call_id)):
        if isinstance(value, str):
            check_unicode(value, key)
    return Message(
        known, content, weight_of(turn), calls, name if isinstance(name, str) else None, call_id if isinstance(call_id, str) and call_id else None
    )


def _with_reasoning(turn: Mapping[str, Any], content: str, columns: Columns, names: Sequence[str] = REASONING) -> str:
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
    messages: list[Message], raw: Mapping[str, Any], columns: Columns, *, of_last: bool = True, names: Sequence[str] = REASONING
) -> list[Message]:
    """The messages with the reasoning that the row holds in a column before its answer: the last one, or (`of_last` False) the only one."""
    if _thoughts.isdisjoint(raw):
        return messages
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers or (len(answers) > 1 and not of_last) or not messages[answers[-1]].content.strip():
        return messages
    last = messages[answers[-1]]
    return [*messages[: answers[-1]], replace(last, content=_with_reasoning(raw, last.content, columns, names)), *messages[answers[-1] + 1 :]]


def _calls(turn: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of an assistant's message, arguments as objects."""
    calls = json_cell(turn.get("tool_calls"), "tool_calls") or None
    if calls is None and isinstance(turn.get(CALL), dict):
        calls = [{"type": "function", "function": turn[CALL]}]
    if calls is None:
        return None
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise RowFault("wrong_type", "tool_calls")
    return [_call(call) for call in calls]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"] if isinstance(call.get("function"), dict) else call
    if not isinstance(function.get("name"), str):
        raise RowFault("bad_tool_call", "name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json_cell(arguments, "arguments") or {}
        except RowFault as fault:
            raise RowFault("bad_tool_call", "arguments") from fault
    if isinstance(arguments, str):
        raise RowFault("bad_tool_call", "arguments")
    made = {k: v for k, v in function.items() if k not in ("arguments", "parameters")} | {"arguments": {} if arguments is None else arguments}
    whole = call | {"function": made} if function is not call else made
    _plain(whole, "tool_calls")
    return whole


def _calls_of_text(value: Any) -> list[dict[str, Any]]:
    """The calls of a ShareGPT turn: JSON text (or the value itself) with a name and arguments, or a list of those."""
    try:
        found = json_cell(value, CALL)
    except RowFault as fault:
        raise RowFault("bad_tool_call", "JSON") from fault
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise RowFault("bad_tool_call", type(found).__name__)
    return [{"type": "function", "function": made} if "function" not in (made := _call(call)) else made for call in calls]


def _with_tool_names(messages: list[Message]) -> list[Message]:
    """Results of tools with the name of the tool, found by the id of the call, for templates that write it."""
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


def tools_of(raw: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools of a row (`functions`, as they were once called): a list or JSON text of one; a bare function is put into the form of chat templates."""
    name = "functions" if "functions" in raw and not peek(raw, "tools") else "tools"
    tools = json_cell(raw.get(name), name) or None
    if isinstance(tools, dict):
        tools = [tools]
    if tools is None:
        return None
    if isinstance(tools, list):
        tools = [json_cell(tool, "tools") for tool in tools]
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowFault("wrong_type", "tools")
    _plain(tools, "tools")
    return [{"type": "function", "function": tool} if "name" in tool and "function" not in tool and "type" not in tool else tool for tool in tools]


def _plain(value: Any, name: str) -> None:
    """Raises RowFault for what cannot be written as JSON text."""
    try:
        check_unicode(json.dumps(value, ensure_ascii=False, allow_nan=False), name)
    except (TypeError, ValueError) as error:
        raise RowFault("wrong_type", name) from error


def with_system(messages: list[Message], raw: Mapping[str, Any], columns: Columns) -> list[Message]:
    """The messages after the row's system prompt (SYSTEMS), where they bring none."""
    if _systems.isdisjoint(raw):
        return messages
    name = first_of(raw, SYSTEMS)
    value = raw[name] if name else None
    if isinstance(value, dict) and "parts" in value:
        value = value["parts"]
    system = text_of(value, name, columns) if name else ""
    if system.strip() and not (messages and messages[0].role == "system"):
        return [Message("system", system), *messages]
    return messages


def ordered(messages: list[Message]) -> list[Message]:
    """The messages without an empty system prompt, in an order that makes a dialogue. Raises RowFault."""
    if messages and messages[0].role == "system" and not messages[0].content.strip():
        messages = messages[1:]
    before = "start"
    for message in messages:
        if message.role not in _FOLLOWS[before]:
            raise RowFault("bad_order", f"{message.role} after {before}")
        before = message.role
        if message.role == "user" and not message.content.strip():
            raise RowFault("empty_question")
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise RowFault("empty_answer")
    return messages


def up_to_last_answer(messages: list[Message], columns: Columns) -> list[Message]:
    """The messages without a question after the last answer, which is counted. Raises RowFault with `no_answer`."""
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        raise RowFault("no_answer")
    if answers[-1] + 1 < len(messages):
        columns.notes["question_after_last_answer"] += 1
    return messages[: answers[-1] + 1]


def conversation(messages: list[Message], origin: Origin, raw: Mapping[str, Any], columns: Columns) -> Conversation:
    """A dialogue in a sensible order: an optional system prompt, then user and assistant in turn, ending with an answer.

    A question after the last answer is left out and counted. Raises RowFault with `no_answer`, `empty_answer`, `empty_question` or `bad_order`.
    """
    return Conversation(ordered(up_to_last_answer(messages, columns)), origin, tools_of(raw), weight_of(raw))


def turns_or_text(value: Any, name: str, role: str, columns: Columns) -> list[Message]:
    """A cell that is a list of turns, one turn, or a text said by `role`."""
    seen = looked_into(value)
    if isinstance(seen, dict) and ("role" in seen or "from" in seen):
        seen = [seen]
    if isinstance(seen, list) and seen and isinstance(seen[0], dict) and ("role" in seen[0] or "from" in seen[0]):
        return messages_of(seen, *keys_of(seen), columns)
    # An answer such as "[1, 2]" is a text, whatever else it could be read as.
    return [Message(role, text_of(value, name, columns))]


def as_context(messages: Sequence[Message]) -> list[Message]:
    """The messages with nothing to learn: what stands in a prompt was given, not asked for."""
    return [replace(m, weight=0.0) if m.role == "assistant" else m for m in messages]
