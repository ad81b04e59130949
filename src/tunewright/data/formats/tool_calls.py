"""Calls of tools, and the tools that a row offers.

Calls are kept as `tool_calls` of the assistant's message with their arguments as objects, whichever
way they were written: OpenAI's arguments as JSON text, ShareGPT's `function_call` turns, the older
`function_call` field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunewright.core.types import Message
from tunewright.core.written import plain_numbers
from tunewright.data.files.turns import CALL
from tunewright.data.formats.common import Columns, RowFault, check_unicode, json_cell
from tunewright.data.formats.ledger import peek

TOOLS = ("tools", "functions")
CALLING = ("tool_calls", CALL, "content", "value")
_return = re.compile(r"(?<!\\)(?:\\\\)*\\r")


def calls_of(turn: Mapping[str, Any], columns: Columns) -> list[dict[str, Any]] | None:
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
        cells = turn.items() if isinstance(turn, dict) else ()
        calls = [key for key, cell in cells if key in CALLING and isinstance(cell, dict | list)]
        made = {key: own(turn[key], key, columns) for key in calls}
        found.append({**turn, **made} if calls else turn)
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


def calls_of_text(value: Any, columns: Columns) -> list[dict[str, Any]]:
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


def with_tool_names(messages: list[Message]) -> list[Message]:
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
