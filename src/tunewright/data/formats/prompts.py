"""Prompts only, where rollouts start: `prompt`, or messages that end with a question. All other
columns are kept as facts for reward functions."""

from __future__ import annotations

import json
from typing import Any

from tunewright.core.config import Section
from tunewright.core.types import Message, Origin, Prompt
from tunewright.data.formats.common import (
    Columns,
    RowFault,
    first_of,
    row_format,
    weight_of,
    with_line_ends,
)
from tunewright.data.formats.dialogue import (
    BESIDE,
    TURN_COLUMNS,
    as_context,
    keys_of,
    last_role,
    messages_of,
    ordered,
    turn_column,
    turns_or_text,
    with_system,
)
from tunewright.data.formats.ledger import Seen
from tunewright.data.formats.naming import refuse_prompt_with_answer
from tunewright.data.formats.tool_calls import tools_of

ANSWERS = ("completion", "response", "output", "chosen", "rejected")
ASKS = ("prompt", "question", "instruction")
USED = frozenset(BESIDE)


class Prompts(Section):
    """Rows with a question and no answer to learn."""


def looks_like(raw: dict[str, Any]) -> int:
    """3 with messages that end with a question, 2 with a prompt and no column that answers it.

    A `prompt` beside an `answer` could be either, so that both formats come out alike and the run
    has to say which.
    """
    name = turn_column(raw)
    if name is not None:
        is_pair = "chosen" in raw or "rejected" in raw
        return 3 if last_role(raw[name]) in ("user", "tool") and not is_pair else 0
    return 2 if "prompt" in raw and first_of(raw, ANSWERS) is None else 0


@row_format(
    "prompts",
    Prompts,
    needs="prompt | messages that end with a question",
    reads=(*TURN_COLUMNS, *ASKS, *BESIDE),
    looks_like=looks_like,
    refuse=refuse_prompt_with_answer,
)
def prompts(raw: dict[str, Any], origin: Origin, columns: Columns) -> Prompt:
    """A question to answer."""
    name = turn_column(raw) or first_of(raw, ASKS)
    if name is None:
        raise RowFault("no_question")
    found = _turns(raw, name, columns)
    if not found or found[-1].role not in ("user", "tool"):
        raise RowFault("not_a_prompt", found[-1].role if found else "")
    found = ordered(as_context(with_system(found, raw, columns)), columns)
    facts: dict[str, Any] = {}
    for key in raw:
        if key != name and key not in USED and _can_be_kept(value := raw[key], columns):
            value = with_line_ends(value, columns) if isinstance(value, str) else value
            facts[_own(raw, key)] = value
    return Prompt(found, origin, tools_of(raw, columns), weight_of(raw), facts)


def _own(raw: dict[str, Any], key: str) -> str:
    """What a reward function calls a column: as the file writes it, unless the run named it."""
    return raw.theirs(key) if isinstance(raw, Seen) and raw.theirs(key).lower() == key else key


def _turns(raw: dict[str, Any], name: str, columns: Columns) -> list[Message]:
    if name == turn_column(raw):
        return messages_of(raw[name], *keys_of(raw[name]), columns, name)
    return turns_or_text(raw[name], name, "user", columns)


def _can_be_kept(value: Any, columns: Columns) -> bool:
    """Whether a fact can be written down again: plain values, no half characters, no endless
    numbers."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        columns.notes["fact_left_out"] += 1
        return False
    return True
