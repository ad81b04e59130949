"""What a turn of a dialogue is called in files, and how one is told from a row."""

from __future__ import annotations

from typing import Any

CALL = "function_call"
ROLES = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
    **dict.fromkeys((CALL, "tool_call"), CALL),
}
"""Words for who speaks and the role they mean; CALL is an assistant's turn that calls a tool."""


def is_turn(value: Any) -> bool:
    """Whether an object is one turn: a role that is known, and what it says or calls."""
    if type(value) is not dict:
        return False
    role = None
    if "content" in value or "tool_calls" in value:
        role = value.get("role")
    elif "value" in value:
        role = value.get("from")
    return isinstance(role, str) and role.strip().lower() in ROLES


def are_turns(value: Any) -> bool:
    """Whether a value is a whole dialogue."""
    return type(value) is list and bool(value) and all(map(is_turn, value))
