"""The rendering proof holds for every family that we render right, and shows the difference where
we would not."""

from __future__ import annotations

import re

import pytest
from helpers import families
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import NAMES

from tunewright.core.types import Message
from tunewright.data.reporting import rendering_line
from tunewright.text.proof import CALLS, TOOLS, dialogues, prove
from tunewright.text.renderer import Renderer
from tunewright.text.tokenizer import Light

TOOL_FAMILIES = sorted(name for name in NAMES if families.FAMILIES[name].tools)
RENDERERS = {name: Renderer(families.tokenizer_of(name)) for name in NAMES}
plain = st.text(alphabet=st.sampled_from(list("abc é你.,{}\"'<>\n")), min_size=1, max_size=10).map(
    lambda t: f"x{t.strip()}y"
)


def test_there_are_enough_families():
    assert (
        len({f.template for f in families.FAMILIES.values() if f.template}) >= 12
        and len(TOOL_FAMILIES) >= 3
    )


@pytest.mark.parametrize("name", NAMES)
def test_our_rendering_is_the_templates_byte_for_byte(name):
    proof = prove(RENDERERS[name])
    assert proof.holds and not proof.differences and proof.equal + proof.completed == proof.checked
    assert proof.checked + len(proof.refused) == len(dialogues()) and proof.checked >= 20
    assert len(proof.refused) == (0 if families.FAMILIES[name].tools else 2) + (
        name == "mistral_v3"
    )
    assert ("byte for byte" in rendering_line(proof.as_dict())) and (
        "tool call" in rendering_line(proof.as_dict())
    ) == bool(proof.refused)
    assert proof.as_dict() == prove(Renderer(Light.of(families.tokenizer_of(name)))).as_dict()


def test_what_we_add_is_not_called_equal():
    assert prove(RENDERERS["gemma"]).completed == 9  # a system prompt that the template refuses
    assert prove(RENDERERS["header_is_stop"]).equal == 0  # no stop token after the last answer


@pytest.mark.parametrize("fault", ["text", "ids"])
def test_a_difference_is_found_and_shown(fault, monkeypatch):
    renderer = Renderer(families.tokenizer_of("chatml"))
    rendered = renderer.render_many

    def wrong(asked):
        made = rendered(asked)
        if fault == "text":
            made[3].text = made[3].text.replace("Question 2", "Question 3")
        else:
            made[3].ids = made[3].ids[:-1]
        return made

    monkeypatch.setattr(renderer, "render_many", wrong)
    proof = prove(renderer)
    assert not proof.holds and list(proof.differences) == ["2 turns, system"]
    assert rendering_line(proof.as_dict()).startswith("! ") and (
        "Question 3" in rendering_line(proof.as_dict())
    ) == (fault == "text")


@pytest.mark.parametrize("name", TOOL_FAMILIES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_learnt_spans_with_tools_are_the_answers_and_calls_and_their_stop_tokens(name, data):
    renderer, family = RENDERERS[name], families.FAMILIES[name]
    messages = [Message("system", "Sys " + data.draw(plain))] if data.draw(st.booleans()) else []
    answers = []
    turns = data.draw(st.integers(1, 8))
    for turn in range(turns):
        messages.append(Message("user", f"Q{turn} " + data.draw(plain)))
        # Mistral writes the tools before the last question, so calls of earlier turns stand in
        # another text than they were asked in: those rows are refused.
        if data.draw(st.booleans()) and (name != "mistral_v3" or turn == turns - 1):
            messages += [
                Message("assistant", "", tool_calls=CALLS),
                Message("tool", f"R{turn} " + data.draw(plain), name="weather"),
            ]
            answers.append(None)
        answers.append(f"A{turn} " + data.draw(plain))
        messages.append(Message("assistant", answers[-1]))
    rendered = renderer.render(messages, TOOLS)
    stop = renderer.tokenizer.convert_tokens_to_ids(family.stop)
    outside, at = "", 0
    for (first, after), end, answer in zip(
        rendered.spans, rendered.stop_index, answers, strict=True
    ):
        said = renderer.decode(rendered.ids[first:after])
        assert (
            end == after - 1 and rendered.ids[end] == stop and stop not in rendered.ids[first:end]
        )
        assert (
            said.removeprefix(" " if name == "mistral_v3" else "") == answer + family.stop
            if answer
            else ("weather" in said and "Oslo" in said and said.endswith(family.stop))
        )
        outside += renderer.decode(rendered.ids[at:first])
        at = after
    outside += renderer.decode(rendered.ids[at:])
    assert all(answer is None or answer not in outside for answer in answers)
    assert all(
        m.content in outside or m.content.replace('"', '\\"').replace("\n", "\\n") in outside
        for m in messages
        if m.role != "assistant"
    )


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"deepseek"}))
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_learnt_spans_of_one_to_eight_turns_are_the_answers_and_their_stop_tokens(name, data):
    renderer, family = RENDERERS[name], families.FAMILIES[name]
    tools = TOOLS if family.tools and data.draw(st.booleans()) else None
    messages = [Message("system", "Sys " + data.draw(plain))] if data.draw(st.booleans()) else []
    answers = [f"A{turn} " + data.draw(plain) for turn in range(data.draw(st.integers(1, 8)))]
    for turn, answer in enumerate(answers):
        messages += [Message("user", f"Q{turn} " + data.draw(plain)), Message("assistant", answer)]
    rendered = renderer.render(messages, tools)
    special = {renderer.tokenizer.convert_tokens_to_ids(s) for s in family.special}
    for (first, after), end, answer in zip(
        rendered.spans, rendered.stop_index, answers, strict=True
    ):
        assert (
            end == after - 1
            and rendered.ids[end] in special
            and not special & set(rendered.ids[first:end])
        )
        said = "".join(renderer.decode(rendered.ids[first:end]).split())
        assert said.removeprefix("<think></think>") == "".join(answer.split()) or "<unk>" in said
    learnt = {i for first, after in rendered.spans for i in range(first, after)}
    rest = renderer.decode([t for i, t in enumerate(rendered.ids) if i not in learnt])
    assert not any(f"A{turn} x" in rest for turn in range(len(answers)))


def test_a_dialogue_of_the_proof_has_a_chinese_name(monkeypatch):
    monkeypatch.setenv("TUNEWRIGHT_LANG", "zh")
    told = {"checked": 0, "equal": 0, "completed": 0, "differences": {}, "refused": [*dialogues()]}
    names = rendering_line(told).partition("无法渲染：")[2]
    assert names.count("；") == len(dialogues()) - 1
    assert not re.search("[A-Za-z]", names), names
