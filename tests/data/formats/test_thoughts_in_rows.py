"""A thought in every place where rows keep one comes out between <think> and </think>."""

from __future__ import annotations

import pytest

from tunewright.core.types import Origin
from tunewright.data.formats.common import Columns
from tunewright.data.formats.messages import messages

USER = {"role": "user", "content": "q"}
WHOLE = "<think>\nhm so\n</think>\n\na."


def said(*turns: object) -> list[str]:
    row = messages({"messages": [USER, *turns]}, Origin("rows", 1, 1), Columns())
    return [m.content for m in row.messages if m.role == "assistant"]


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": WHOLE}],
        [{"role": "assistant", "content": "a.", "reasoning_content": "hm so"}],
        [{"role": "assistant", "content": "a.", "thinking": " hm so\n"}],
        [
            {
                "role": "assistant",
                "content": "<|channel|>analysis<|message|>hm so<|end|><|start|>assistant"
                "<|channel|>final<|message|>a.<|return|>",
            }
        ],
        [
            {"role": "assistant", "channel": "analysis", "content": "hm so"},
            {"role": "assistant", "channel": "final", "content": "a."},
        ],
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm so"},
                    {"type": "text", "text": "a."},
                ],
            }
        ],
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "hm so"}]},
                    {"type": "text", "text": "a."},
                ],
            }
        ],
    ],
)
def test_a_thought_is_found_wherever_a_row_keeps_it(turns: list[object]) -> None:
    assert said(*turns) == [WHOLE]


def test_answers_without_a_thought_stay_as_they_are() -> None:
    final = {"role": "assistant", "content": "<|channel|>final<|message|>a.<|return|>"}
    assert said(final) == ["a."]
    speaks = {"role": "assistant", "content": "Harmony writes <|channel|>analysis first."}
    assert said(speaks) == ["Harmony writes <|channel|>analysis first."]
    empty = {"role": "assistant", "content": "a.", "reasoning_content": "  "}
    assert said(empty) == ["a."]


def test_two_turns_with_a_thought_in_each() -> None:
    pair = [
        {"role": "assistant", "channel": "analysis", "content": "hm so"},
        {"role": "assistant", "channel": "final", "content": "a."},
    ]
    assert said(*pair, USER, *pair) == [WHOLE, WHOLE]
