"""Thoughts, on templates of the shapes that know thinking, against what the stock
`apply_chat_template` writes."""

from __future__ import annotations

import pytest
from helpers import families

from tunewright.core.types import Message
from tunewright.text.proof import prove
from tunewright.text.renderer import Renderer
from tunewright.text.thinking import Thinking
from tunewright.text.tokenizer import Light

THINKING, tokenizer_of = families.THINKING, families.tokenizer_of
ASK = "what is it"
# Per family: (the question with thinking, the question without, how an answer-only row is written,
# how a thought and its answer are learnt)
SHAPES = {
    "qwen3": (
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        {"enable_thinking": False},
    ),
    "qwen3_thinking": (
        "<|im_start|>assistant\n<think>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        {},
    ),
    "qwen3.5": (
        "<|im_start|>assistant\n<think>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        {"enable_thinking": False},
    ),
    "qwen3.5_small": (
        "<|im_start|>assistant\n<think>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        {"enable_thinking": False},
    ),
    "glm4.5": (
        "<|assistant|>",
        "/nothink<|assistant|>\n<think></think>",
        {"enable_thinking": False},
    ),
    "glm4.7": ("<|assistant|><think>", "<|assistant|></think>", {"enable_thinking": False}),
    "r1_distill": ("<|Assistant|><think>\n", "<|Assistant|>", {}),
    "smollm3": (
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n",
        {"enable_thinking": False},
    ),
}
LEARNT = {
    "qwen3": "<think>\nhm so\n</think>\n\nA lamp.<|im_end|>",
    "qwen3_thinking": "hm so\n</think>\n\nA lamp.<|im_end|>",
    "qwen3.5": "hm so\n</think>\n\nA lamp.<|im_end|>",
    "qwen3.5_small": "hm so\n</think>\n\nA lamp.<|im_end|>",
    "glm4.5": "\n<think>hm so</think>\nA lamp.<|endoftext|>",
    "glm4.7": "hm so</think>A lamp.<|endoftext|>",
    "r1_distill": "hm so\n</think>\n\nA lamp.<|finish|>",
    "smollm3": "<think>\nhm so\n</think>\n\nA lamp.<|im_end|>",
}
BARE = {
    name: ("\n" if name == "glm4.5" else "") + "A lamp." + THINKING[name].stop for name in THINKING
}
THOUGHT = "<think>\nhm so\n</think>\n\n"


def renderer_of(name, **thinking):
    return Renderer(tokenizer_of(name, THINKING), thinking=Thinking(**thinking))


def dialogue(*answers):
    return [m for answer in answers for m in (Message("user", ASK), Message("assistant", answer))]


def stock(renderer, messages, **variables):
    raw = [{"role": m.role, "content": m.content} for m in messages]
    return renderer.tokenizer.apply_chat_template(raw, tokenize=False, **variables)


def learnt(renderer, rendered, k=-1):
    first, after = rendered.spans[k]
    return renderer.decode(rendered.ids[first:after])


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("mode", ["auto", "learn", "keep", "off"])
def test_a_row_without_thoughts_takes_the_form_without_thinking_and_learns_no_empty_thought(
    name, mode
):
    renderer = renderer_of(name, mode=mode)
    messages = dialogue("A lamp.")
    rendered = renderer.render(messages)
    written = stock(renderer, messages, **SHAPES[name][2])
    assert rendered.text == written + (
        "" if "<|user|>" not in THINKING[name].special else "<|endoftext|>"
    )
    assert learnt(renderer, rendered) == BARE[name]
    asked = renderer.decode(rendered.ids[: rendered.spans[0][0]])
    assert asked.endswith(SHAPES[name][1]) and "prompt_differs" not in rendered.notes
    assert rendered.notes.count("empty_thought") == (0 if name == "r1_distill" else 1)
    if SHAPES[name][2]:
        assert asked == stock(
            renderer, messages[:1], add_generation_prompt=True, enable_thinking=False
        )


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("mode", ["auto", "learn"])
@pytest.mark.parametrize("thought", [THOUGHT, "<think>hm so</think>"])
def test_a_thought_is_learnt_behind_the_question_with_thinking(name, mode, thought):
    renderer = renderer_of(name, mode=mode)
    messages = dialogue(thought + "A lamp.")
    rendered = renderer.render(messages)
    said = "".join(learnt(renderer, rendered).split())
    assert said == "".join(LEARNT[name].split())
    if thought == THOUGHT:
        assert learnt(renderer, rendered) == LEARNT[name]
    asked = renderer.decode(rendered.ids[: rendered.spans[0][0]])
    on = {"enable_thinking": True} if name == "qwen3.5_small" else {}
    assert asked == stock(
        renderer, messages[:1], add_generation_prompt=True, **on
    ) and asked.endswith(SHAPES[name][0])
    assert "empty_thought" not in rendered.notes and "prompt_differs" not in rendered.notes
    if name != "r1_distill":
        assert rendered.text.removesuffix("<|endoftext|>") == stock(renderer, messages, **on)
    closing = rendered.ids.index(renderer.tokenizer.convert_tokens_to_ids("</think>"))
    assert renderer.thought_tokens(rendered, 0) == closing + 1 - rendered.spans[0][0]


@pytest.mark.parametrize("name", THINKING)
def test_kept_thoughts_are_shown_and_only_the_answer_behind_them_is_learnt(name):
    rendered = renderer_of(name, mode="keep").render(dialogue(THOUGHT + "A lamp."))
    renderer = renderer_of(name, mode="keep")
    assert learnt(renderer, rendered) == "A lamp." + THINKING[name].stop
    assert "hm so" in renderer.decode(rendered.ids[: rendered.spans[0][0]])
    assert rendered.text == renderer_of(name).render(dialogue(THOUGHT + "A lamp.")).text


@pytest.mark.parametrize("name", THINKING)
def test_thoughts_that_are_off_leave_the_row_as_if_it_had_none(name):
    renderer = renderer_of(name, mode="off")
    with_it, without = (
        renderer.render(dialogue(THOUGHT + "A lamp.")),
        renderer.render(dialogue("A lamp.")),
    )
    assert (with_it.text, with_it.ids, with_it.spans) == (without.text, without.ids, without.spans)
    assert "thoughts_left_out" in with_it.notes


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("mode", ["auto", "off", "keep"])
@pytest.mark.parametrize(
    "answers",
    [("one.", "two.", "three."), (THOUGHT + "one.", THOUGHT + "two."), ("one.", THOUGHT + "two.")],
)
def test_no_turn_of_a_longer_dialogue_learns_an_empty_thought(name, mode, answers):
    renderer = renderer_of(name, mode=mode)
    rendered = renderer.render(dialogue(*answers))
    for k, answer in enumerate(answers):
        said = learnt(renderer, rendered, k)
        assert said.strip().startswith(
            ("hm so", "<think>hm so", "<think>\nhm so", answer.removeprefix(THOUGHT))
        ), said
        assert not ("</think>" in said and mode != "auto")
    last = renderer.form_of(answers)
    prompt = renderer.prompt(dialogue(*answers)[:-1], form=last)
    assert rendered.ids[: len(prompt)] == prompt
    assert mode == "keep" or rendered.spans[-1][0] == len(prompt)


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("mode", ["auto", "learn", "keep", "off"])
def test_many_at_once_come_out_as_one_at_a_time(name, mode):
    light = Renderer(Light.of(tokenizer_of(name, THINKING)), thinking=Thinking(mode))
    rows = [
        dialogue(*answers)
        for answers in (
            ["one."],
            ["one.", "two."],
            [THOUGHT + "one."],
            ["a", THOUGHT + "b"],
            ["<think>\n\n</think>\n\nc"],
        )
    ]
    rows += [[Message("system", "be kind"), *row] for row in rows]
    many = light.render_many([(row, None) for row in rows])
    one = renderer_of(name, mode=mode)
    assert [vars(m) for m in many] == [vars(one.render(row)) for row in rows]


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("mode", ["auto", "learn", "keep", "off"])
def test_an_empty_thought_that_the_row_brings_is_the_templates_to_write(name, mode):
    renderer = renderer_of(name, mode=mode)
    brought, plain = (
        renderer.render(dialogue("<think>\n\n</think>\n\nA lamp.")),
        renderer.render(dialogue("A lamp.")),
    )
    assert vars(brought) == vars(plain)


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5"])
def test_a_tool_call_between_question_and_answer_is_rendered_without_thinking(name):
    renderer = renderer_of(name)
    call = [{"type": "function", "function": {"name": "look", "arguments": {"at": "lamp"}}}]
    messages = [
        Message("user", ASK),
        Message("assistant", "", tool_calls=call),
        Message("tool", "on"),
        Message("assistant", "It is on."),
    ]
    rendered = renderer.render(messages)
    assert (
        learnt(renderer, rendered, 0)
        == '<tool_call>\n{"name": "look", "arguments": {"at": "lamp"}}\n</tool_call><|im_end|>'
    )
    assert learnt(renderer, rendered, 1) == "It is on.<|im_end|>"


@pytest.mark.parametrize("name", THINKING)
def test_proof_holds_with_the_switch(name):
    for mode in ("auto", "off"):
        proof = prove(renderer_of(name, mode=mode))
        assert proof.holds and not proof.differences, proof


def test_asking_follows_the_switch_the_habit_and_the_mode():
    asked = {None: "default", True: "thinking", False: "answer"}
    for habit, form in asked.items():
        assert renderer_of("qwen3", habit=habit).form_of(None) == form
    assert renderer_of("qwen3", mode="learn", habit=False).form_of(None) == "thinking"
    assert renderer_of("qwen3", mode="off", habit=True).form_of(None) == "answer"
    assert renderer_of("qwen3", mode="off", asked=True).form_of(["A lamp."]) == "thinking"
    assert renderer_of("qwen3", mode="learn", asked=False).form_of([THOUGHT]) == "answer"
    assert renderer_of("qwen3", by_rows=False).form_of(["A lamp."]) == "default"


def test_an_answer_of_thoughts_alone_cannot_be_learnt_without_them():
    from tunewright.text.rendered import CannotRender

    with pytest.raises(CannotRender, match="only_thoughts"):
        renderer_of("qwen3", mode="off").render(dialogue("<think>\nhm\n</think>"))


SPANS = {
    # per family: the learnt texts of a dialogue of two answers with thoughts, `auto`
    "qwen3": ["one.<|im_end|>", "<think>\nhm so\n</think>\n\ntwo.<|im_end|>"],
    "qwen3_thinking": ["one.<|im_end|>", "hm so\n</think>\n\ntwo.<|im_end|>"],
    "qwen3.5": ["one.<|im_end|>", "hm so\n</think>\n\ntwo.<|im_end|>"],
    "qwen3.5_small": ["one.<|im_end|>", "hm so\n</think>\n\ntwo.<|im_end|>"],
    "glm4.5": ["\none.<|user|>", "\n<think>hm so</think>\ntwo.<|endoftext|>"],
    "glm4.7": ["one.<|user|>", "hm so</think>two.<|endoftext|>"],
    # The template cuts behind </think> and nothing else.
    "r1_distill": ["\n\none.<|finish|>", "hm so\n</think>\n\ntwo.<|finish|>"],
    "smollm3": [
        "<think>\nhm so\n</think>\n\none.<|im_end|>",
        "<think>\nhm so\n</think>\n\ntwo.<|im_end|>",
    ],
}


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("mode", ["auto", "learn", "keep", "off"])
def test_every_learnt_span_of_two_turns_with_thoughts(name, mode):
    renderer = renderer_of(name, mode=mode)
    rendered = renderer.render(dialogue(THOUGHT + "one.", THOUGHT + "two."))
    said = [learnt(renderer, rendered, k) for k in range(2)]
    wanted = SPANS[name]
    if mode in ("keep", "off"):
        glue = "\n" if name == "glm4.5" and mode == "off" else ""
        first = wanted[0].replace(THOUGHT, "")
        wanted = [first, f"{glue}two.{THINKING[name].stop}"]
        said[0], wanted[0] = said[0].lstrip(), wanted[0].lstrip()
    assert said == wanted
