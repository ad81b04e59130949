"""Thoughts, text and calls of tools are told apart, and streaming changes nothing of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tunewright.serve.speech import Parts, calls_in

TOOLS = frozenset({"f", "weather"})
HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TEXTS = [
    ("hello", False, ("", "hello")),
    ("  hello \n\n there \n", False, ("", "hello \n\n there")),
    ("<think>\nhm, so\n</think>\n\nParis", False, ("hm, so", "Paris")),
    ("\n<think></think>Paris", False, ("", "Paris")),
    ("hm, so\n</think>\n\nParis", True, ("hm, so", "Paris")),
    ("<think>hm</think>Paris", True, ("hm", "Paris")),
    ("never closed", True, ("never closed", "")),
    ("<think>never closed", False, ("never closed", "")),
    ("a <think>b</think> c", False, ("", "a <think>b</think> c")),
    ("<thin ice", False, ("", "<thin ice")),
    ("a < b </think", False, ("", "a < b </think")),
    ("", False, ("", "")),
]


def told(text: str, seed: int, **how: Any) -> tuple[str, str]:
    """The parts of a text that comes in pieces of any size."""
    draw, parts, found = random.Random(seed), Parts(**how), []
    while text:
        n = draw.randint(1, 5)
        found += parts.add(text[:n])
        text = text[n:]
    found += parts.end()
    return tuple("".join(t for kind, t in found if kind == k) for k in ("thought", "text"))  # type: ignore[return-value]


@pytest.mark.parametrize(("text", "opened", "expected"), TEXTS)
def test_a_thought_is_told_apart_however_it_comes(
    text: str, opened: bool, expected: tuple[str, str]
) -> None:
    for seed in range(12):
        assert told(text, seed, opened=opened) == expected
    assert told(text, 0, opened=opened, bare=True) == ("", text)


@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        (HERMES, [("f", {"a": 1})], ""),
        (f"Let me see.\n{HERMES}\n{HERMES}", [("f", {"a": 1})] * 2, "Let me see."),
        ('<tool_call>{"name": "g", "arguments": "{\\"a\\": 1}"}', [("g", {"a": 1})], ""),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {}}]', [("f", {})], ""),
        ('{"name": "f", "parameters": {"x": [1, 2]}}', [("f", {"x": [1, 2]})], ""),
        ('```json\n{"name": "f", "arguments": {}}\n```', [("f", {})], ""),
        ('<|python_tag|>{"name": "f", "parameters": {}}', [("f", {})], ""),
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            [("weather", {"city": "Paris", "days": 3})],
            "",
        ),
        ('<function=f>{"a": 1}</function>', [("f", {"a": 1})], ""),
        ('{"name": "Bob", "age": 3}', [], '{"name": "Bob", "age": 3}'),
        ("<tool_call>not json</tool_call>", [], "<tool_call>not json</tool_call>"),
        ('{"name": "f", "arguments": 7}', [], '{"name": "f", "arguments": 7}'),
        ("no call [1] at all", [], "no call [1] at all"),
        ("[" * 5000, [], "[" * 5000),
    ],
)
def test_calls_are_found_in_every_form(text: str, calls: list[Any], rest: str) -> None:
    found, left = calls_in(text, TOOLS)
    assert [(c["name"], c["arguments"]) for c in found] == calls and left == rest
    for seed in range(8):
        assert told(text, seed, tools=TOOLS) == ("", rest)
    thought = f"<think>hm</think>{text}"
    assert told(thought, 1, tools=TOOLS) == ("hm", rest)
