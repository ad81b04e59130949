"""Answers in the channels of Harmony (gpt-oss), as rows hold them: as text with its marks, or as
turns with a field `channel`. Here a thought stands between <think> and </think>."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tunewright.core.types import Message

MARK = "<|channel|>"
_end = r"(?:<\|end\|>|<\|return\|>|<\|start\|>|<\|channel\|>|\Z)"
_said = re.compile(rf"<\|channel\|>\s*(analysis|final)[^<]*<\|message\|>(.*?)(?={_end})", re.DOTALL)
_whole = re.compile(r"\s*(?:<\|start\|>assistant)?\s*<\|channel\|>\s*(?:analysis|final)\b")


def thought(text: str) -> str:
    """A thought as it stands before an answer; nothing for an empty one."""
    return f"<think>\n{text.strip()}\n</think>\n\n" if text.strip() else ""


def without_channels(content: str) -> str:
    """An answer written with the marks of channels as thought and answer; any other as it is."""
    if MARK not in content or not _whole.match(content):
        return content
    parts = _said.findall(content)
    thoughts = "\n\n".join(text.strip() for name, text in parts if name == "analysis")
    answers = "\n\n".join(text.strip() for name, text in parts if name == "final")
    return thought(thoughts) + answers


def is_analysis(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is the thought of the next one."""
    channel = turn.get("channel")
    return isinstance(channel, str) and channel.strip().lower() == "analysis"


def goes_before(before: Message, message: Message) -> bool:
    """Whether `before` is a thought alone, which belongs to the answer after it."""
    return (
        before.role == message.role == "assistant"
        and before.weight == message.weight
        and not before.tool_calls
        and before.content.startswith("<think>")
        and before.content.endswith("</think>\n\n")
    )
