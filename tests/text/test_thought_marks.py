"""Thoughts that a template takes in a field of its own: Harmony's channels and other marks. Every
learnt span is compared with the texts of its tokens, written here by hand."""

from __future__ import annotations

import pytest
from helpers import families

from tunewright.core.errors import DataError
from tunewright.core.types import Message
from tunewright.text.proof import prove
from tunewright.text.renderer import Renderer
from tunewright.text.thinking import Thinking, parted
from tunewright.text.tokenizer import Light

THOUGHT = "<think>\nhm so\n</think>\n\n"
ASK = "what is it"
FINAL, ANALYSIS = "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"
TURN = "<|start|>assistant"
SYSTEM = (
    "<|start|>system<|message|>You are a helpful model.\nReasoning: medium\n\n"
    "# Valid channels: analysis, commentary, final.<|end|>"
)
USER = f"<|start|>user<|message|>{ASK}<|end|>"
WITH = f"{ANALYSIS}hm so<|end|>{TURN}{FINAL}"


def renderer_of(name="harmony", arguments=None, **thinking):
    made = families.tokenizer_of(name, families.MARKED)
    return Renderer(made, thinking=Thinking(**thinking, arguments=arguments or {}))


def dialogue(*answers):
    return [m for answer in answers for m in (Message("user", ASK), Message("assistant", answer))]


def learnt(renderer, rendered):
    return [renderer.decode(rendered.ids[a:b]) for a, b in rendered.spans]


def before(renderer, rendered, k=-1):
    return renderer.decode(rendered.ids[: rendered.spans[k][0]])


# (answers, mode) -> (what stands before the last learnt span, every learnt span)
HARMONY = {
    ("a.", "auto"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("a.", "learn"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("a.", "keep"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("a.", "off"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("Ta.", "auto"): (SYSTEM + USER + TURN, [WITH + "a.<|return|>"]),
    ("Ta.", "learn"): (SYSTEM + USER + TURN, [WITH + "a.<|return|>"]),
    ("Ta.", "keep"): (SYSTEM + USER + TURN + WITH, ["a.<|return|>"]),
    ("Ta.", "off"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("Ea.", "auto"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("Ea.", "learn"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("Ea.", "keep"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
    ("Ea.", "off"): (SYSTEM + USER + TURN + FINAL, ["a.<|return|>"]),
}
EARLIER = f"{SYSTEM}{USER}{TURN}{FINAL}a.<|end|>{USER}{TURN}"


def written(short):
    """T: with a thought, E: with an empty one."""
    marks = {"T": THOUGHT, "E": "<think>\n\n</think>\n\n"}
    return marks.get(short[0], "") + short[-2:]


@pytest.mark.parametrize(("short", "mode"), HARMONY)
def test_an_answer_in_channels_is_learnt_exactly_as_it_is_to_be_written(short, mode):
    renderer = renderer_of(mode=mode)
    rendered = renderer.render(dialogue(written(short)))
    asked, spans = HARMONY[short, mode]
    assert before(renderer, rendered) == asked and learnt(renderer, rendered) == spans
    assert rendered.stop_index == [len(rendered.ids) - 1]
    form = renderer.form_of([written(short)])
    prompt = renderer.prompt(dialogue(written(short))[:-1], form=form)
    assert rendered.ids[: len(prompt)] == prompt
    assert mode == "keep" or rendered.spans[0][0] == len(prompt)


@pytest.mark.parametrize("mode", ["auto", "learn", "keep", "off"])
@pytest.mark.parametrize("second", ["b.", "Tb."])
@pytest.mark.parametrize("first", ["a.", "Ta."])
def test_earlier_turns_are_as_the_template_has_them_and_never_teach_its_end_of_a_turn(
    first, second, mode
):
    renderer = renderer_of(mode=mode)
    rows = dialogue(written(first), written(second))
    rendered = renderer.render(rows)
    thinks = "T" in first + second and mode != "off"
    header = TURN + ("" if thinks and "T" in second else FINAL)
    shown = WITH if mode == "keep" and "T" in second else ""
    assert before(renderer, rendered) == EARLIER.removesuffix(TURN) + header + shown
    last = WITH + "b.<|return|>" if thinks and "T" in second and mode != "keep" else "b.<|return|>"
    # <|end|> is the template's: a model that learnt it would never end its answer.
    assert learnt(renderer, rendered) == ["a.", last]
    assert rendered.stop_index == [None, len(rendered.ids) - 1]
    assert ("thinking_stripped" in rendered.notes) == ("T" in first and mode != "off")
    prompt = renderer.prompt(rows[:-1], form=renderer.form_of([rows[1].content, rows[3].content]))
    assert rendered.ids[: len(prompt)] == prompt


def test_the_effort_is_an_argument_and_part_of_the_proof():
    renderer = renderer_of(arguments={"reasoning_effort": "high"})
    assert "Reasoning: high" in renderer.render(dialogue("a.")).text
    assert "Reasoning: high" in renderer.decode(renderer.prompt(dialogue("a.")[:1]))
    proof = prove(renderer)
    assert proof.holds and not proof.differences, proof
    light = Renderer(Light.of(renderer.tokenizer), thinking=renderer.thinking)
    assert light.prompt(dialogue("a.")[:1]) == renderer.prompt(dialogue("a.")[:1])


@pytest.mark.parametrize(
    ("given", "code"),
    [({"effort": "high"}, "E-THINK-02"), ({"enable_thinking": True}, "E-THINK-01")],
)
def test_an_argument_that_would_do_nothing_is_refused(given, code):
    with pytest.raises(DataError) as caught:
        renderer_of(arguments=given)
    assert caught.value.problems[0].code == code


@pytest.mark.parametrize("name", families.MARKED)
def test_proof_and_many_at_once(name):
    for mode in ("auto", "off", "keep"):
        renderer = renderer_of(name, mode=mode)
        proof = prove(renderer)
        assert proof.holds and not proof.differences, proof
        rows = [dialogue(*answers) for answers in (["a."], [THOUGHT + "a."], [THOUGHT + "a.", "b"])]
        light = Renderer(Light.of(renderer.tokenizer), thinking=renderer.thinking)
        many = light.render_many([(row, None) for row in rows])
        assert [vars(m) for m in many] == [vars(renderer.render(row)) for row in rows]


def test_marks_of_its_own_are_learnt_with_the_thought():
    renderer = renderer_of("own_marks")
    rendered = renderer.render(dialogue(THOUGHT + "a.", THOUGHT + "b."))
    thought = "<seed:think>hm so</seed:think>"
    assert learnt(renderer, rendered) == [f"{thought}a.<|im_end|>", f"{thought}b.<|im_end|>"]
    kept = renderer_of("own_marks", mode="keep").render(dialogue(THOUGHT + "a.", "b."))
    assert learnt(renderer, kept) == ["a.<|im_end|>", "b.<|im_end|>"]


@pytest.mark.parametrize("name", families.MARKED)
@pytest.mark.parametrize("answer", ["a.", THOUGHT + "a.", "<think>\nhm\n\nso\n</think>\n\n42"])
def test_what_the_model_writes_is_read_back_as_rows_have_it(name, answer):
    renderer = renderer_of(name)
    rendered = renderer.render(dialogue(answer))
    first, after = rendered.spans[0]
    assert renderer.read(rendered.ids[first : after - 1]) == answer
    assert renderer.has_thought(answer) is (renderer.thought_tokens(rendered, 0) > 0)
    raw, said = "", ""
    for token in rendered.ids[first : after - 1]:  # what has been said never changes
        raw += renderer.decode([token])
        now = renderer.read_marks(raw, whole=False)
        assert now.startswith(said)
        said = now
    assert renderer.read_marks(raw) == answer


def test_an_unfinished_channel_is_a_thought_without_an_answer():
    renderer = renderer_of()
    ids = renderer.piece("x") and renderer.tokenizer.encode(
        ANALYSIS + "hm 5", add_special_tokens=False
    )
    assert renderer.read(ids) == "<think>\nhm 5"
    assert parted(renderer.read(ids), opened=False, finished=False) == ("hm 5", "")


def test_a_tool_call_behind_a_channel():
    renderer = renderer_of()
    call = [{"type": "function", "function": {"name": "look", "arguments": {"at": "lamp"}}}]
    rows = [
        Message("user", ASK),
        Message("assistant", "", tool_calls=call),
        Message("tool", "on", name="look"),
        Message("assistant", "It is on."),
    ]
    said = learnt(renderer, renderer.render(rows))
    assert said[0].endswith('<|channel|>commentary json<|message|>{"at": "lamp"}<|call|>')
    assert said[1] == "It is on.<|return|>"


@pytest.mark.parametrize(
    ("text", "opened", "finished", "found"),
    [
        ("<think>\na\n</think>\n\nb", False, True, ("a", "b")),
        ("a\n</think>\n\nb", True, True, ("a", "b")),
        ("a </think> b", False, True, ("", "a </think> b")),
        ("<think>\na 5", False, False, ("a 5", "")),
        ("a 5", True, False, ("a 5", "")),
        ("a 5", True, True, ("", "a 5")),
        ("b", False, False, ("", "b")),
        ("<think></think>b", False, True, ("", "b")),
    ],
)
def test_a_thought_is_told_from_the_answer(text, opened, finished, found):
    assert parted(text, opened=opened, finished=finished) == found


@pytest.mark.parametrize("name", families.MARKED)
def test_pieces_of_a_streamed_answer_make_up_the_whole_and_never_change(name):
    from tunewright.engine.decoding.answers import Pieces

    renderer = renderer_of(name)
    for answer in (THOUGHT + "a.\n\nb", "a.", "<think>\nhm\n\n5\n</think>\n\n什么是"):
        rendered = renderer.render(dialogue(answer))
        first, after = rendered.spans[0]
        said = []
        pieces = Pieces(renderer, frozenset(renderer.stop_ids), said.append)
        for token in rendered.ids[first:after]:
            pieces.take(token)
        pieces.end()
        assert "".join(said) == answer == pieces.text


def test_a_stop_text_ends_an_answer_behind_a_channel():
    from tunewright.engine.decoding.answers import Pieces

    renderer = renderer_of()
    rendered = renderer.render(dialogue(THOUGHT + "a. STOP b"))
    said = []
    pieces = Pieces(renderer, frozenset(renderer.stop_ids), said.append, ["STOP"])
    going = [pieces.take(token) for token in rendered.ids[rendered.spans[0][0] :]]
    assert not all(going) and "".join(said) == THOUGHT + "a. " == pieces.text
