"""What a row of a data set asks, read as training and `evaluate` read it: a system prompt, earlier
turns, a context and tools in columns of their own belong to the question, its answer does not.

Rows of a file of prompts need not be alike, so the format is told for each alone.
"""

from __future__ import annotations

import contextlib
from typing import Any

from tunewright.core.errors import TunewrightError
from tunewright.core.types import Message, Origin, PlainText
from tunewright.data.files.source import RawRow
from tunewright.data.formats.shaping import Dropped, Shaper

WANTS = ("conversation", "prompt", "preference", "judged")
NO_ANSWER = {"answer": "-"}
"""Stands in for the answer that most formats need and a question has not."""
COUNTED = ("role", "content", "tool_calls", "name", "tool_call_id")


def asked(given: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a request, `messages` and perhaps `tools`, that ask what the row asks; None
    where no format of data knows the row, or where it is running text."""
    origin = Origin("", 1, 1)
    for value in (given, {**given, **NO_ANSWER}):
        with contextlib.suppress(TunewrightError, ValueError, TypeError):
            raw = RawRow(value, origin)
            row = Shaper([raw], wants=WANTS).row(raw)
            if isinstance(row, Dropped | PlainText) or not row.question():
                continue
            messages = [_message(one) for one in row.question()]
            if messages[-1]["role"] in ("user", "tool"):
                return {"messages": messages} | ({"tools": row.tools} if row.tools else {})
    return None


def _message(one: Message) -> dict[str, Any]:
    found = {name: getattr(one, name) for name in COUNTED}
    return {name: value for name, value in found.items() if value is not None}
