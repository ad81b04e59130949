"""Every token of a row with its own text, learnt or not; characters spread over tokens come out
whole."""

from __future__ import annotations

import json

import pytest
from helpers.families import FAMILIES, tokenizer_of
from helpers.rows import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.types import Conversation, Message, Origin, Preference
from tunewright.data.checks.opening import Opened
from tunewright.data.checks.showing import (
    CLOSE,
    OPEN,
    describe_row,
    runs,
    show_row,
    shown,
    tokens_of,
)
from tunewright.text.renderer import Renderer


def row_of(said="你好，世界 🌍!", asked="什么？ ok"):
    return Conversation(
        [Message("user", asked), Message("assistant", said)], Origin("f.json", 3, 1)
    )


def shown_with(renderer, row):
    return shown(1, row, encode([row], renderer, max_tokens=None).samples[0], renderer)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("header_is_stop",)])
def test_texts_of_the_tokens_are_the_text_of_the_row(family):
    renderer = Renderer(tokenizer_of(family))
    row = row_of("the answer 你好é🌍 hello world", "the quick brown question 世界")
    (branch,) = shown_with(renderer, row).branches
    sample = encode([row], renderer, max_tokens=None).samples[0].branches[0]
    assert [t.id for t in branch.tokens] == sample.tokens
    assert "".join(t.text for t in branch.tokens) == renderer.decode(sample.tokens)
    assert [i for i, t in enumerate(branch.tokens) if t.learnt] == sample.learnt
    assert [t.weight for t in branch.tokens if t.learnt] == sample.weights
    # The whole characters of the answer stand in the learnt run, though each is several tokens of
    # this vocabulary.
    learnt = "".join(t.text for t in branch.tokens if t.learnt)
    assert "你好é🌍 hello world" in learnt and "quick" not in learnt


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_token_by_token(renderer, text):
    ids = renderer.tokenizer.encode(text, add_special_tokens=False)
    tokens = tokens_of(ids, {}, renderer)
    assert "".join(t.text for t in tokens) == renderer.decode(ids)
    assert all(
        t.start <= i and all(not tokens[j].text for j in range(t.start, i))
        for i, t in enumerate(tokens)
        if t.text
    )


def test_a_character_of_several_tokens_belongs_to_the_one_that_completes_it(renderer):
    ids = renderer.tokenizer.encode("鑫", add_special_tokens=False)
    assert len(ids) == 3  # three bytes that this vocabulary never joined
    assert [(t.text, t.start) for t in tokens_of(ids, {}, renderer)] == [
        ("", 0),
        ("", 0),
        ("鑫", 0),
    ]


def test_the_terminal_marks_what_is_learnt_with_and_without_colour(renderer):
    row = shown_with(renderer, row_of("yes", "is it?"))
    text = describe_row(row)
    assert f"{OPEN}yes<|im_end|>{CLOSE}" in text and "\x1b" not in text and "f.json:3" in text
    assert "\x1b[4m\x1b[32myes<|im_end|>\x1b[0m" in describe_row(row, colour=True)
    assert "\x1b" not in describe_row(shown_with(renderer, row_of("\x1b[2Jhidden", "q")))
    assert runs(row.branches[0].tokens)[-1] == (True, "yes<|im_end|>")


def test_a_preference_shows_both_branches(renderer):
    question = [Message("user", "which?")]
    row = Preference(
        question,
        [Message("assistant", "this one")],
        [Message("assistant", "that")],
        Origin("p.json", 1, 1),
    )
    found = shown_with(renderer, row)
    assert [b.role for b in found.branches] == ["chosen", "rejected"]
    assert [
        "this one" in "".join(t.text for t in b.tokens if t.learnt) for b in found.branches
    ] == [True, False]
    assert "chosen: " in describe_row(found) and "[[that<|im_end|>]]" in describe_row(found)


def test_json_holds_every_token(renderer):
    told = json.loads(json.dumps(shown_with(renderer, row_of()).as_dict()))
    assert told["kind"] == "conversation" and told["branches"][0]["length"] == len(
        told["branches"][0]["tokens"]
    )
    assert set(told["branches"][0]["tokens"][0]) == {"id", "text", "learnt", "weight", "start"}


def test_rows_are_chosen_by_number_at_random_or_not_there(renderer, write):
    rows = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(30)] + [
        {"instruction": "x", "output": ""}
    ]
    config = DataConfig(train=write("a.jsonl", rows), held_out=0)
    opened = Opened(renderer, None)
    assert "answer 6<" in describe_row(show_row(config, opened, 7))
    assert all(1 <= show_row(config, opened, None).row <= 30 for _ in range(5))
    with pytest.raises(DataError, match="E-DATA-53"):
        show_row(config, opened, 31)
    assert show_row(config, None, 7).turns == [("user", "question 6"), ("assistant", "answer 6")]
    assert "there are no tokens" in describe_row(show_row(config, None, 7))


def test_a_row_that_cannot_be_encoded_says_why(renderer, write):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "weight": 0},
            ]
        }
    ]
    with pytest.raises(DataError, match="E-DATA-57"):
        show_row(DataConfig(train=write("w.jsonl", rows), held_out=0), Opened(renderer, None), 1)
