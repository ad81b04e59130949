"""Texts that are tokenised together, piece by piece, have the ids that the library gives each of
them alone."""

from __future__ import annotations

from functools import cache

import pytest
from helpers import families
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import NAMES
from tokenizers import AddedToken

from tunewright.core.types import Message
from tunewright.text.rendered import CannotRender
from tunewright.text.renderer import Renderer
from tunewright.text.spelling import Pieces, Speller, Written

words = st.text(
    alphabet=st.sampled_from(list("ab \n\t.é你🙂<|>{}'\u00a0\uf8a0")), min_size=1, max_size=12
).filter(lambda t: t.strip())
contents = words | st.sampled_from(
    ["</think>x", "<think>a</think>b", " <|im_end|>", "</s>", "hello world", "[INST]", "x\n\n"]
)
MARKS = ("\uf8b0", "\uf8b1")


@cache
def renderer_of(name):
    return Renderer(families.tokenizer_of(name))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_pieces_have_the_ids_of_the_whole_text(name, data):
    tokenizer = families.tokenizer_of(name)
    control = st.sampled_from([str(t.content) for t in tokenizer.added_tokens_decoder.values()])
    parts = st.lists(contents | control | st.sampled_from(["", " ", "\n"]), max_size=7)
    texts = ["".join(data.draw(parts)) for _ in range(3)]
    found = Pieces.of(tokenizer).ids(texts)
    assert found == {text: list(tokenizer.encode(text, add_special_tokens=False)) for text in texts}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_ids_up_to_a_cut_are_those_of_the_text_up_to_it(name, data):
    renderer = renderer_of(name)
    speller = Speller(renderer.tokenizer, renderer.template.control)
    text = "".join(data.draw(st.lists(contents, min_size=1, max_size=5)))
    cut = data.draw(st.integers(0, len(text)))
    (made,) = speller.many([Written(text, [cut], MARKS)])
    asked = speller.ids(text[:cut], MARKS)
    assert made.ids[: made.edges[cut]] == asked and made.edges[len(text)] == len(made.ids)
    whole = speller.ids(text, MARKS)
    if whole[: len(asked)] == asked:
        assert made.ids == whole
    else:
        assert made.ids == asked + speller.ids(text[cut:], MARKS, inside=True)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_many_dialogues_come_out_as_one_at_a_time(name, data):
    renderer = renderer_of(name)
    dialogues = []
    pairs = st.lists(st.tuples(contents, contents), min_size=1, max_size=8)
    for turns in data.draw(st.lists(pairs, min_size=1, max_size=5)):
        messages = [Message("system", data.draw(contents))] if data.draw(st.booleans()) else []
        for ask, answer in turns:
            messages += [Message("user", ask), Message("assistant", answer)]
        dialogues.append((messages, None))
    assert together(renderer, dialogues) == [alone(renderer, *one) for one in dialogues]


@pytest.mark.parametrize("name", NAMES)
def test_tools_and_names_come_out_so_too(name):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    dialogue = [
        Message("user", "q"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", "r", name="f"),
        Message("assistant", "a"),
    ]
    asked = [
        (dialogue, tools),
        (dialogue[:1] + dialogue[3:], tools),
        ([Message("user", "q", name="n"), dialogue[3]], None),
    ]
    renderer = renderer_of(name)
    assert together(renderer, asked) == [alone(renderer, *one) for one in asked]


def together(renderer, dialogues):
    made = renderer.render_many(dialogues)
    return [str(one) if isinstance(one, CannotRender) else one for one in made]


def alone(renderer, messages, tools):
    try:
        return renderer.render(messages, tools)
    except CannotRender as error:
        return str(error)


def test_control_tokens_that_overlap_are_no_places_to_cut():
    tokenizer = families.tokenizer_of("chatml")
    tokenizer.backend_tokenizer.add_tokens(
        [
            AddedToken("\n<|im_start|>", normalized=False),
            AddedToken("<|im_end|>x", normalized=False),
        ]
    )
    pieces = Pieces.of(tokenizer)
    assert not {"<|im_start|>", "<|im_end|>"} & pieces.controls.keys()
    assert "<|endoftext|>" in pieces.controls
    text = "a\n<|im_start|>user\nb<|im_end|>xy<|endoftext|>"
    assert pieces.ids([text])[text] == tokenizer.encode(text, add_special_tokens=False)


def test_an_answer_whose_tokens_spell_something_else_is_refused(monkeypatch):
    renderer = Renderer(families.tokenizer_of("chatml"))
    other = renderer.tokenizer.encode("x", add_special_tokens=False)[-1]
    good = [Message("user", "What do you drink?"), Message("assistant", "water")]
    bad = [Message("user", "What do you drink?"), Message("assistant", "green tea")]
    assert all(not isinstance(one, str) for one in together(renderer, [(good, None), (bad, None)]))
    right = Pieces.ids

    def wrong(self, texts):
        return {
            text: [*ids[:-3], other, *ids[-2:]] if "tea<|im_end|>" in text else ids
            for text, ids in right(self, texts).items()
        }

    monkeypatch.setattr(Pieces, "ids", wrong)
    found = together(renderer, [(good, None), (bad, None)])
    assert not isinstance(found[0], str) and "do not spell" in found[1]


def test_padding_that_somebody_left_on_is_not_tokenised():
    tokenizer = families.tokenizer_of("chatml")
    tokenizer.backend_tokenizer.enable_padding(length=30)
    tokenizer.backend_tokenizer.enable_truncation(2)
    text = "hello world hello"
    ids = Pieces.of(tokenizer).ids([text, "a"])
    assert ids[text] == tokenizer.encode(text, add_special_tokens=False) and len(ids["a"]) == 1
