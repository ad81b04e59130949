"""A turn that any tool's mark calls not to be learnt is not learnt, and the report says so; a mark
that cannot be honoured drops the row."""

from __future__ import annotations

import json

import pytest
from helpers.rows import encode

from tunewright.core.config import DataConfig
from tunewright.core.types import Conversation, Judged, Origin, Preference
from tunewright.data import inspect
from tunewright.data.catalogue.rows import Attributes, converter
from tunewright.data.files.source import RawRow
from tunewright.data.formats.common import Columns
from tunewright.data.formats.shaping import shape

NAMES = ["loss", "train", "training", "trainable", "loss_mask", "learn"]
OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": None,
    "system_tag": "system",
}
CALL = {"name": "f", "arguments": {"x": 1}}


def said(role, text, **more):
    return {"role": role, "content": text, **more}


def turn(role, text, **more):
    return {"from": role, "value": text, **more}


def shaped(value, **more):
    return shape([RawRow(value, Origin("f.jsonl", 1, 1))], **more)


def weights(value, **more):
    found = shaped(value, **more)
    assert not found.dropped, found.dropped
    row = found.rows[0]
    turns = (
        [*row.prompt, *row.chosen, *row.rejected] if isinstance(row, Preference) else row.messages
    )
    return [m.weight for m in turns if m.role == "assistant"]


def reason(value, **more):
    return shaped(value, **more).dropped[0].reason


def dialogue(**mark):
    return [
        said("user", "q"),
        said("assistant", "bad", **mark),
        said("user", "again"),
        said("assistant", "good"),
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (False, 0),
        (0, 0),
        (0.0, 0),
        ("false", 0),
        ("0", 0),
        ("No", 0),
        (True, 1),
        (1, 1),
        ("true", 1),
        (None, 1),
        ("", 1),
        (0.25, 0.25),
    ],
)
def test_a_mark_on_a_turn_is_its_share_of_the_loss(name, value, weight):
    assert weights({"messages": dialogue(**{name: value})}) == [weight, 1]
    sharegpt = [
        turn("human", "q"),
        turn("gpt", "bad", **{name: value}),
        turn("human", "r"),
        turn("gpt", "good"),
    ]
    assert weights({"conversations": sharegpt}) == [weight, 1]


def test_masked_says_the_opposite():
    assert weights({"messages": dialogue(masked=True)}) == [0, 1] and weights(
        {"messages": dialogue(masked=False)}
    ) == [1, 1]


def test_a_mark_and_a_weight_both_count_and_not_to_learn_wins():
    assert weights({"messages": dialogue(weight=2, loss=True)}) == [2, 1]
    assert weights({"messages": dialogue(weight=2, loss=False)}) == [0, 1]
    assert weights({"messages": dialogue(train=True, loss_mask=0)}) == [0, 1]


def test_calls_are_marked_like_other_turns():
    called = [
        turn("human", "q"),
        turn("function_call", json.dumps(CALL), loss=False),
        turn("observation", "r"),
        turn("gpt", "good"),
    ]
    assert weights({"conversations": called}) == [0, 1]
    openai = [
        said("user", "q"),
        said("tool_call", json.dumps(CALL), loss=False),
        said("tool", "r"),
        said("assistant", "good"),
    ]
    assert weights({"messages": openai}) == [0, 1]
    openai[1] = said(
        "assistant", "", tool_calls=[{"type": "function", "function": CALL}], train=False
    )
    assert weights({"messages": openai}) == [0, 1]
    # Words and a call that are marked otherwise stay two turns, each with its own mark.
    assert weights(
        {
            "conversations": [
                turn("human", "q"),
                turn("gpt", "words"),
                turn("function_call", json.dumps(CALL), loss=False),
            ]
        }
    ) == [1, 0]


@pytest.mark.parametrize("name", [*NAMES, "weights", "weight"])
def test_a_list_on_the_row_marks_its_turns_or_its_answers(name):
    assert weights({"messages": dialogue(), name: [0, 0, 0, 1]}) == [0, 1]
    assert weights({"messages": dialogue(), name: [0, 1]}) == [0, 1]
    assert weights({"messages": [said("system", "s"), *dialogue()], name: [0, 0, 0, 1]}) == [0, 1]
    assert weights({"messages": json.dumps(dialogue()), name: "[0, 1]"}) == [0, 1]
    assert weights({"conversations": [turn("human", "q"), turn("gpt", "a")], name: [1, 0]}) == [0]
    alpaca = {"instruction": "i", "output": "o", "history": [["q", "a"]]}
    assert weights(alpaca | {name: [0, 1]}) == [0, 1] and weights(
        alpaca | {"system": "s", name: [0, 0, 0, 1]}
    ) == [0, 1]
    assert reason({"messages": dialogue(), name: [0, 1, 1]}) == "bad_mark"
    assert reason(alpaca | {name: [1, 1, 1]}) == "bad_mark"


def test_a_call_that_is_joined_with_its_words_keeps_the_place_of_its_mark():
    turns = [
        turn("human", "q"),
        turn("gpt", "words"),
        turn("function_call", json.dumps(CALL)),
        turn("observation", "r"),
        turn("gpt", "good"),
    ]
    assert weights({"conversations": turns, "loss_mask": [0, 0, 0, 0, 1]}) == [0, 1]


@pytest.mark.parametrize("value", ["maybe", 2, -1, 1.5, [1], {"a": 1}, "nan"])
def test_a_value_that_is_no_mark_drops_the_row_with_what_stands_there(value):
    found = shaped({"messages": dialogue(loss=value)})
    assert found.dropped[0].reason == "bad_mark" and found.dropped[0].detail.startswith("loss: ")


@pytest.mark.parametrize(
    "mark",
    [
        {"mask": True},
        {"mask": 0},
        {"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]},
    ],
)
def test_a_mark_that_tools_read_differently_drops_the_row(mark):
    assert reason({"messages": dialogue(**mark)}) == "unclear_mark"


def test_lists_whose_turns_are_unknown_drop_the_row():
    assert reason({"messages": dialogue(), "mask": [0, 1]}) == "unclear_mark"
    assert reason({"messages": dialogue(), "loss": [0, 1], "train": [1, 1]}) == "unclear_mark"
    assert (
        reason({"prompt": "q", "chosen": "a", "rejected": "b", "loss_mask": [1, 0]})
        == "unclear_mark"
    )


def test_a_mark_of_the_whole_row_is_its_weight_in_every_format():
    rows = [
        {"messages": dialogue()},
        {"instruction": "i", "output": "o"},
        {"text": "t"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]
    for row in rows:
        assert (
            shaped(row | {"train": False}).rows[0].weight
            == 0
            == shaped(row | {"loss_mask": "0"}).rows[0].weight
        )
        # A measured loss and the name of a split are no marks.
        assert shaped(row | {"loss": 0.31, "train": "train"}).rows[0].weight == 1


def test_marks_of_pairs_and_judgements_are_honoured(renderer):
    pair = {
        "prompt": "q",
        "chosen": [said("assistant", "a", loss=False)],
        "rejected": [said("assistant", "b")],
    }
    judged = {"messages": dialogue(), "label": True, "train": None}
    judged["messages"][-1] = said("assistant", "good", loss=False)
    for row, kind in ((pair, Preference), (judged, Judged)):
        found = shaped(row)
        assert type(found.rows[0]) is kind and found.notes["not_learnt:loss"] == 1
        assert [d.reason for d in encode(found.rows, renderer, max_tokens=None).dropped] == [
            "nothing_learnt"
        ]


@pytest.mark.parametrize("form", ["sharegpt", "openai", "alpaca"])
def test_rows_of_a_dataset_info_entry_are_marked_like_others(form):
    about = Attributes(
        form=form,
        columns=Attributes().columns | {"history": "history"},
        tags=Attributes().tags if form == "sharegpt" else OPENAI,
    )
    named = Columns()
    row = (
        {"instruction": "i", "input": "", "output": "o", "history": [["q", "a"]]}
        if form == "alpaca"
        else {"conversations": dialogue(loss=False)}
    )
    if form == "sharegpt":
        row = {
            "conversations": [
                turn("human", "q"),
                turn("gpt", "bad", loss=False),
                turn("human", "r"),
                turn("gpt", "good"),
            ]
        }
    made = converter(about, named)(
        row | ({"loss": [0, 1]} if form == "alpaca" else {}), Origin("f.json", 1, 1)
    )
    assert [m.weight for m in made.messages if m.role == "assistant"] == [0, 1] and named.notes[
        "not_learnt:loss"
    ] == 1
    assert converter(about, named)(row | {"trainable": False}, Origin("f.json", 1, 1)).weight == 0
    wrong = converter(about, named)(row | {"loss_mask": [1, 1, 1]}, Origin("f.json", 1, 1))
    assert wrong.reason == "bad_mark"


def test_the_report_counts_what_is_not_learnt_and_marks_without_effect(write, renderer):
    rows = [
        {"messages": dialogue(loss=False)},
        {
            "messages": dialogue(loss=False)
            + [said("user", "x", loss=True), said("assistant", "y", train=0)]
        },
    ]
    rows.append({"messages": [said("user", "q"), said("assistant", "a", loss=False)]})
    data = inspect(DataConfig(train=write("a.jsonl", rows)), renderer)
    notes = data.report["notes"]
    assert (notes["not_learnt:loss"], notes["not_learnt:train"], notes["marks_on_questions"]) == (
        3,
        1,
        1,
    )
    assert data.report["reasons"]["nothing_learnt"]["count"] == 1
    said_of = " ".join(data.report["warnings"])
    assert (
        "3 turns are read but not learnt, because `loss` says so" in said_of
        and "1 turns that are not answers" in said_of
    )
    assert data.report["score"] < 100
    learnt = "".join(
        renderer.decode([b.tokens[i] for i in b.learnt]) for s in data.train for b in s.branches
    )
    assert "bad" not in learnt and learnt.count("good") == 2
    assert all(isinstance(row, Conversation) for row in data.train_rows)
