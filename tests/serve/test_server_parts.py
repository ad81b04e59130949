"""Tools and thoughts through the server: what the template writes, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import serving
from helpers.building import make_tokenizer
from helpers.serving import Running

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
TEMPLATE = (
    "{% if tools %}<|im_start|>system\ntools {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.get('tool_calls') %}{% for c in m['tool_calls'] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ASKED = [{"role": "user", "content": "what is it"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("parts")
    base = serving.base_folder(place / "base")
    make_tokenizer(TEMPLATE).save_pretrained(base)
    serving.taught_run(place / "caller", base, {"what is it": CALL}, tools=[WEATHER])
    facts = {"what is it": "<think>\na small model\n</think>\n\nParis"}
    serving.taught_run(place / "thinker", base, facts)
    with serving.serving([(place / n, n) for n in ("caller", "thinker")]) as running:
        yield running


def ask(server: Running, model: str, **how: Any) -> Any:
    how = {"messages": ASKED, "temperature": 0, "max_tokens": 90, **how}
    return server.client().chat.completions.create(model=model, **how)


def test_a_tool_is_called_whole_and_streamed(server: Running) -> None:
    choice = ask(server, "caller", tools=[WEATHER]).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "weather" and call.id
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    chunks = [c.choices[0] for c in ask(server, "caller", tools=[WEATHER], stream=True)]
    told = [c.delta.tool_calls for c in chunks if c.delta.tool_calls]
    assert json.loads(told[0][0].function.arguments) == {"city": "Paris"} and len(told) == 1
    assert "".join(c.delta.content or "" for c in chunks) == ""
    assert chunks[-1].finish_reason == "tool_calls"
    # What the tool said goes back through the template.
    messages = [*ASKED, choice.message.model_dump(exclude_none=True)]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    assert ask(server, "caller", messages=messages, tools=[WEATHER]).choices


def test_a_call_can_be_asked_for_and_ruled_out(server: Running) -> None:
    pytest.importorskip("llguidance")
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        found = ask(server, "thinker", tools=[WEATHER], tool_choice=choice).choices[0]
        (call,) = found.message.tool_calls
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    found = ask(server, "thinker", tools=[WEATHER], tool_choice="none").choices[0]
    assert not found.message.tool_calls and found.message.content == "Paris"


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_stands_beside_the_answer(server: Running, stream: bool) -> None:
    found = ask(server, "thinker", stream=stream)
    if stream:
        deltas = [c.choices[0].delta for c in found]
        thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
        text = "".join(d.content or "" for d in deltas)
    else:
        message = found.choices[0].message
        thought, text = message.reasoning_content, message.content
    assert (thought, text) == ("a small model", "Paris")
    back = {"role": "assistant", "content": "Paris", "reasoning_content": "a small model"}
    assert ask(server, "thinker", messages=[*ASKED, back, *ASKED]).choices
