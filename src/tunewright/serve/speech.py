"""An answer as the parts that a client shows apart: the thought, the text, and calls of tools.

What has come so far is read anew with every piece, and what is new of each part is told: the same
text comes out whether it is streamed or not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.text.thinking import CLOSE, OPEN

Kind = Literal["thought", "text"]
_marked = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_function = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_parameter = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
MARKS = ("<tool_call>", "[TOOL_CALLS]", "<function=", "<|python_tag|>", "functools[")
"""What stands before calls that are not the whole answer."""


def split(text: str, *, opened: bool, whole: bool) -> tuple[str, str]:
    """(thought, the rest). `opened`: the question ended inside a thought. What may still become a
    mark is left out unless the text is `whole`."""
    rest = text.lstrip()
    if rest.startswith(OPEN):
        rest = rest.removeprefix(OPEN)
    elif not opened:
        return ("", "") if not whole and OPEN.startswith(rest) else ("", text)
    elif not whole and rest and OPEN.startswith(rest):
        return "", ""
    thought, closed, rest = rest.partition(CLOSE)
    if not closed and not whole:
        thought = _without_start_of(thought, (CLOSE,))
    return thought, rest


def _without_start_of(text: str, marks: tuple[str, ...]) -> str:
    """The text without what may be the beginning of a mark at its end."""
    longest = max(
        (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0
    )
    return text[: len(text) - longest]


@dataclass
class Parts:
    """The parts of an answer that grows. `tools`: names of those that it may call. `bare`: the text
    is told as it is, thoughts and white space too."""

    opened: bool = False
    tools: frozenset[str] = frozenset()
    bare: bool = False
    text: str = ""
    _said: dict[Kind, int] = field(default_factory=lambda: {"thought": 0, "text": 0})

    def add(self, piece: str) -> list[tuple[Kind, str]]:
        """What is new of each part."""
        self.text += piece
        return self._new(whole=False)

    def end(self) -> list[tuple[Kind, str]]:
        """The same once the answer has ended."""
        return self._new(whole=True)

    def view(self, *, whole: bool = True) -> tuple[str, str]:
        """(thought, text) that may be shown so far."""
        if self.bare:
            return "", self.text
        thought, text = split(self.text, opened=self.opened, whole=whole)
        text = text.lstrip()
        if self.tools:
            if whole:
                text = calls_in(text, self.tools)[1]
            else:
                first = min((i for i in (text.find(m) for m in MARKS) if i >= 0), default=None)
                text = text[:first] if first is not None else _without_start_of(text, MARKS)
                text = "" if text[:1] in ("{", "[", "`") else text
        return thought.strip(), text.rstrip()

    def calls(self) -> list[dict[str, Any]]:
        """The calls of tools in the whole answer."""
        if not self.tools:
            return []
        return calls_in(split(self.text, opened=self.opened, whole=True)[1], self.tools)[0]

    def _new(self, *, whole: bool) -> list[tuple[Kind, str]]:
        found: list[tuple[Kind, str]] = []
        thought, text = self.view(whole=whole)
        kinds: tuple[tuple[Kind, str], ...] = (("thought", thought), ("text", text))
        for kind, now in kinds:
            if len(now) > self._said[kind]:
                found.append((kind, now[self._said[kind] :]))
                self._said[kind] = len(now)
        return found


def calls_in(text: str, tools: frozenset[str]) -> tuple[list[dict[str, Any]], str]:
    """(calls of tools as {"name", "arguments"}, the text around them): the forms of Hermes, Qwen,
    Mistral and Llama, and JSON that is the whole answer and names one of `tools`."""
    calls: list[dict[str, Any]] = []
    if "<tool_call>" in text or "<function=" in text:
        source = _marked.findall(text) if "<tool_call>" in text else [text]
        for inner in source:
            calls += _xml(inner) if "<function=" in inner else _json(inner)
        rest = _function.sub("", _marked.sub("", text))
        return (calls, rest.strip()) if calls else ([], text)
    before, rest = "", text
    for mark in MARKS[1:]:
        if mark in text:
            before, _, rest = text.partition(mark)
            rest = "[" + rest if mark.endswith("[") else rest
    calls = _json(rest)
    if rest is text and any(call["name"] not in tools for call in calls):
        return [], text
    return (calls, before.strip()) if calls else ([], text)


def _json(text: str) -> list[dict[str, Any]]:
    """The calls that a JSON text is, one or several; empty where it is none."""
    text = re.sub(r"^```(?:json)?\s*(.*?)\s*```$", r"\1", text.strip(), flags=re.DOTALL)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for one in found if isinstance(found, list) else [found]:
        inner = one.get("function", one) if isinstance(one, dict) else None
        if isinstance(inner, str):
            inner = {**one, "name": inner}
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            return []
        arguments = inner.get("arguments", inner.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return []
        if not isinstance(arguments, dict):
            return []
        calls.append({"name": inner["name"], "arguments": arguments})
    return calls


def _xml(text: str) -> list[dict[str, Any]]:
    """Calls as <function=name><parameter=key>value</parameter></function>, or with JSON inside."""
    calls = []
    for name, inner in _function.findall(text):
        pairs = _parameter.findall(inner)
        if pairs or not inner.strip():
            arguments: Any = {key: _value(value) for key, value in pairs}
        else:
            arguments = _value(inner.strip())
        if isinstance(arguments, dict):
            calls.append({"name": name, "arguments": arguments})
    return calls


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
