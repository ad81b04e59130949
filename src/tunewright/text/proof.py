"""Does our rendering of a dialogue equal what the model's own chat template writes? Compared byte
for byte on a set of dialogues.

Other programs ask a model through its template. So what was trained on must be the same text and
the same ids: one to eight turns, with and without a system prompt, with tools, tool calls and
results, and with thinking before the last answer. Where we write more than the template does (an
end token that it forgets, a system prompt that it refuses) the dialogue counts as `completed`,
never as equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunewright.core.types import Message
from tunewright.text.rendered import CannotRender, Rendered
from tunewright.text.thinking import Form
from tunewright.text.thought_marks import FIELDS, in_fields

if TYPE_CHECKING:
    from tunewright.text.renderer import Renderer

MOST_TURNS = 8
SHOWN = 40
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]


@dataclass
class Proof:
    """How many of `checked` dialogues came out `equal` or `completed`; which ones the template
    refuses, and where we differ from it."""

    checked: int = 0
    equal: int = 0
    completed: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Name of a dialogue -> the template's or our reason for not rendering it."""
    differences: dict[str, str] = field(default_factory=dict)
    """Name of a dialogue -> both texts around the first difference."""

    @property
    def holds(self) -> bool:
        """Nothing that both render comes out different."""
        return not self.differences and self.equal + self.completed > 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "holds": self.holds}


def dialogues() -> dict[str, tuple[list[Message], list[dict[str, Any]] | None]]:
    """The dialogues of the proof, by name."""
    found: dict[str, tuple[list[Message], list[dict[str, Any]] | None]] = {}
    system = Message("system", "You answer in one sentence.")
    for count in range(1, MOST_TURNS + 1):
        turns = [
            m
            for k in range(count)
            for m in (
                Message("user", f"Question {k + 1}: what is {k} + {k}?"),
                Message("assistant", f"It is {2 * k}."),
            )
        ]
        found[f"{count} turns"] = (turns, None)
        found[f"{count} turns, system"] = ([system, *turns], None)
    asks = [Message("user", "How is the weather in Oslo?")]
    answer = Message("assistant", "It rains in Oslo.")
    found["tools offered"] = ([*asks, answer], TOOLS)
    found["tools offered, system"] = ([system, *asks, answer], TOOLS)
    called = [
        *asks,
        Message("assistant", "", tool_calls=CALLS),
        Message("tool", '{"weather": "rain"}', name="weather"),
        answer,
    ]
    found["tool call and result"] = (called, TOOLS)
    found["tool call and result, system, second question"] = (
        [system, *called, Message("user", "Thanks!"), Message("assistant", "Any time.")],
        TOOLS,
    )
    thought = Message("assistant", "<think>\nOslo lies in Norway.\n</think>\n\nIt rains.")
    found["thinking"] = ([*asks, thought], None)
    found["thinking in the first turn"] = (
        [*asks, thought, Message("user", "And now?"), Message("assistant", "The sun shines.")],
        None,
    )
    return found


def prove(renderer: Renderer) -> Proof:
    """Compare every dialogue. Never raises for a template's own faults: they are the result."""
    proof = Proof()
    named = dialogues()
    rendered = renderer.render_many(list(named.values()))
    for (name, (messages, tools)), ours in zip(named.items(), rendered, strict=True):
        form = renderer.form_of([m.content for m in messages if m.role == "assistant"])
        theirs = _theirs(renderer, renderer.shaped(messages)[0], tools, form)
        if isinstance(ours, CannotRender):
            proof.refused[name] = str(ours)
            continue
        proof.checked += 1
        if isinstance(theirs, Exception):
            if "system_merged" in ours.notes:
                proof.completed += 1
            else:
                proof.refused[name] = f"{theirs}"
                proof.checked -= 1
            continue
        text, ids = theirs
        if ours.text == text and ours.ids == ids:
            proof.equal += 1
        elif _completed(renderer, ours, text, messages):
            proof.completed += 1
        else:
            proof.differences[name] = (
                _difference(ours.text, text)
                if ours.text != text
                else f"ids {ours.ids[:SHOWN]} != {ids[:SHOWN]}"
            )
    return proof


def _theirs(
    renderer: Renderer, messages: Sequence[Message], tools: Any, form: Form
) -> tuple[str, list[int]] | Exception:
    """Text and ids as another program gets them from the tokenizer."""
    template = renderer.template
    raw = [
        {"role": m.role, **_said(m.content, template.marks is not None)}
        | ({"tool_calls": m.tool_calls} if m.tool_calls else {})
        | ({"name": m.name} if m.name else {})
        for m in messages
    ]
    try:
        text = str(
            renderer.tokenizer.apply_chat_template(
                raw, tools=tools, tokenize=False, **template.arguments(), **template.variables(form)
            )
        )
    except Exception as error:  # a template is somebody's program
        return error
    return text, [*renderer.lead, *renderer.tokenizer.encode(text, add_special_tokens=False)]


def _said(content: str, fields: bool) -> dict[str, str]:
    """The content, and a thought apart where the template takes it in a field."""
    apart = in_fields(content) if fields else None
    if apart is None:
        return {"content": content}
    return {"content": apart[1], **dict.fromkeys(FIELDS, apart[0])}


def _completed(renderer: Renderer, ours: Rendered, text: str, messages: list[Message]) -> bool:
    """We wrote the same and then the end token, merged a system prompt that the template would have
    left out, or kept the last answer's thought, which it leaves out."""
    if "thought_restored" in ours.notes:
        return ours.text.startswith(
            text[: text.rindex(renderer.without_thoughts(messages[-1].content).strip())].rstrip()
        )
    if "system_merged" in ours.notes:
        return messages[0].role == "system" and messages[0].content not in text
    return ours.text == text.rstrip() + renderer.end_text or ours.text == text + renderer.end_text


def _difference(ours: str, theirs: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    begin = max(0, at - SHOWN // 2)
    return f"{ours[begin : begin + SHOWN]!r} != {theirs[begin : begin + SHOWN]!r}"
