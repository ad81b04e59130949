"""The shapes of real sets: each is told for what it is, and its rows say what the set's card says
they say."""

from __future__ import annotations

import json

import pytest

from tunewright.core.errors import DataError
from tunewright.core.registry import formats
from tunewright.core.types import (
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Prompt,
)
from tunewright.data.files.source import RawRow
from tunewright.data.formats.common import Columns, Unusable
from tunewright.data.formats.shaping import Shaper, shape


def said(role, text):
    return {"role": role, "content": text}


def turn(role, text):
    return {"from": role, "value": text}


def shaped(*values, **more):
    return shape(
        [RawRow(value, Origin("f.json", i, i)) for i, value in enumerate(values, 1)], **more
    )


def only(value, **more):
    found = shaped(value, **more)
    assert not found.dropped, found.dropped
    return found.rows[0]


def turns(messages):
    return [(m.role, m.content) for m in messages]


DIALOGUE = [said("user", "q"), said("assistant", "a")]
HH = {
    "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a joke?\n\nAssistant: good one",
    "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a joke?\n\nAssistant: no",
}
# (name, row, format, kind of row), with the columns the sets have on the hub.
SHAPES = [
    ("stanford_alpaca", {"instruction": "i", "input": "", "output": "o", "text": "Below is ..."}, "alpaca", Conversation),
    ("dolly", {"instruction": "i", "context": "c", "response": "r", "category": "closed_qa"}, "alpaca", Conversation),
    ("ultrachat", {"prompt": "q", "prompt_id": "x", "messages": DIALOGUE}, "messages", Conversation),
    ("openhermes", {"conversations": [turn("human", "q"), turn("gpt", "a")], "source": "s", "category": None}, "sharegpt", Conversation),
    ("slimorca", {"conversations": [{**turn("human", "q"), "weight": 0}, {**turn("gpt", "a"), "weight": 1}]}, "sharegpt", Conversation),
    ("openorca", {"id": "1", "system_prompt": "s", "question": "q", "response": "r"}, "prompt_completion", Conversation),
    ("gsm8k", {"question": "q", "answer": "a\n#### 1"}, "prompt_completion", Conversation),
    ("metamath", {"query": "q", "original_question": "p", "response": "r", "type": "t"}, "prompt_completion", Conversation),
    ("numina", {"problem": "p", "solution": "s", "messages": DIALOGUE}, None, None),
    ("guanaco", {"text": "### Human: hi### Assistant: hello"}, "text", PlainText),
    ("c4", {"text": "t", "timestamp": "2020", "url": "u"}, "text", PlainText),
    ("cnn", {"document": "d", "id": "1"}, "documents", PlainText),
    ("squad", {"id": "1", "title": "t", "context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}, "question_context", Conversation),
    ("imdb", {"text": "t", "label": 0}, "classification", Conversation),
    ("sst2", {"idx": 0, "sentence": "t", "label": 1}, "classification", Conversation),
    ("setfit", {"text": "t", "label": 1, "label_text": "positive"}, "classification", Conversation),
    ("hh_rlhf", HH, "preference", Preference),
    ("orca_dpo", {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "preference", Preference),
    ("kto_mix", {"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:], "label": True}, "kto", Judged),
    ("grpo", {"prompt": DIALOGUE[:1], "ground_truth": "72"}, "prompts", Prompt),
    ("oasst_flat", {"message_id": "1", "parent_id": None, "text": "t", "role": "prompter", "lang": "en"}, None, None),
    ("prompt_and_answer", {"prompt": "q", "answer": "a"}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "format_name", "kind"), SHAPES, ids=[s[0] for s in SHAPES])
def test_a_known_set_is_told_for_what_it_is(name, row, format_name, kind):
    if format_name is None:
        with pytest.raises(DataError, match="E-DATA-08|E-DATA-09"):
            shaped(row)
        return
    found = shaped(row)
    assert found.format == format_name and type(found.rows[0]) is kind


def test_the_parts_of_dolly_orca_and_squad_stand_where_they_belong():
    assert turns(only(SHAPES[1][1]).messages) == [("user", "i\nc"), ("assistant", "r")]
    assert turns(only(SHAPES[5][1]).messages) == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "r"),
    ]
    squad = shaped(next(s[1] for s in SHAPES if s[0] == "squad"))
    assert (
        turns(squad.rows[0].messages) == [("user", "c\n\nq"), ("assistant", "a")]
        and squad.notes["several_answers"] == 1
    )


def test_the_three_shapes_of_preferences_and_whole_dialogues_say_the_same():
    expected = ([("user", "q")], [("assistant", "a")], [("assistant", "b")])
    shapes = [
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {
            "conversations": [turn("human", "q")],
            "chosen": turn("gpt", "a"),
            "rejected": turn("gpt", "b"),
        },
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {
            "prompt": [said("user", "q")],
            "chosen": [said("assistant", "a")],
            "rejected": [said("assistant", "b")],
        },
        {
            "messages": [said("user", "q")],
            "chosen": said("assistant", "a"),
            "rejected": said("assistant", "b"),
        },
        {
            "messages": [said("user", "q")],
            "chosen": [said("assistant", "a")],
            "rejected": [said("assistant", "b")],
        },
        {
            "chosen": [said("user", "q"), said("assistant", "a")],
            "rejected": [said("user", "q"), said("assistant", "b")],
        },
        {
            "prompt": "q",
            "messages": DIALOGUE,
            "chosen": DIALOGUE,
            "rejected": [said("user", "q"), said("assistant", "b")],
            "score_chosen": 8.5,
            "score_rejected": 6,
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"},
        {
            "chosen": json.dumps(DIALOGUE),
            "rejected": json.dumps([said("user", "q"), said("assistant", "b")]),
        },
    ]
    for raw in shapes:
        row = only(raw)
        assert (turns(row.prompt), turns(row.chosen), turns(row.rejected)) == expected, raw
    assert (
        only(shapes[7]).margin == 2.5
        and only({**shapes[2], "margin": "0.5", "weight": "2"}).margin == 0.5
    )


def test_the_common_beginning_of_two_dialogues_ends_with_a_question():
    row = only(HH)
    assert turns(row.prompt) == [("user", "hi"), ("assistant", "hello"), ("user", "a joke?")]
    assert turns(row.chosen) == [("assistant", "good one")] and turns(row.rejected) == [
        ("assistant", "no")
    ]
    start = [said("system", "s"), *DIALOGUE, said("user", "r")]
    row = only(
        {
            "chosen": [*start, said("assistant", "x"), said("user", "y"), said("assistant", "z")],
            "rejected": [*start, said("assistant", "w")],
        }
    )
    assert (
        len(row.prompt) == 4
        and turns(row.chosen) == [("assistant", "x"), ("user", "y"), ("assistant", "z")]
        and len(row.rejected) == 1
    )
    row = only(
        {
            "prompt": "q",
            "system": "s",
            "chosen": "a",
            "rejected": "b",
            "tools": '[{"name": "f", "parameters": {}}]',
        }
    )
    assert turns(row.prompt) == [("system", "s"), ("user", "q")] and row.tools == [
        {"type": "function", "function": {"name": "f", "parameters": {}}}
    ]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "no_question"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "no_rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "same_answers"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty_answer"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty_question"),
        ({"prompt": DIALOGUE, "chosen": "a", "rejected": "b"}, "no_question"),
        (
            {"chosen": DIALOGUE, "rejected": [said("user", "other"), said("assistant", "b")]},
            "no_question",
        ),
        (
            {"prompt": "q", "chosen": [said("user", "x")], "rejected": [said("assistant", "b")]},
            "no_answer",
        ),
    ],
)
def test_preferences_that_cannot_be_used_have_a_reason(raw, reason):
    (dropped,) = shaped(raw, format_name="preference").dropped
    assert dropped.reason == reason


@pytest.mark.parametrize("tag", [True, "true", "True", 1, "1", 1.0])
def test_judgements_are_read_as_files_write_them(tag):
    for raw in (
        {"messages": DIALOGUE, "kto_tag": tag},
        {"conversations": [turn("human", "q"), turn("gpt", "a")], "kto_tag": tag},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": tag},
        {"prompt": "q", "completion": "a", "label": tag},
    ):
        row = only(raw)
        assert (
            isinstance(row, Judged)
            and row.good
            and turns(row.messages) == [("user", "q"), ("assistant", "a")]
        )
    assert not only({"prompt": "q", "completion": "a", "label": 0}).good
    assert (
        shaped({"prompt": "q", "completion": "a", "kto_tag": "perhaps"}).dropped[0].reason
        == "bad_label"
    )


def test_a_label_beside_a_prompt_that_is_no_judgement_is_no_judgement():
    assert (
        shaped({"prompt": "q", "completion": "a", "label": "sport"}).format == "prompt_completion"
    )
    assert shaped({"messages": DIALOGUE, "label": 1}).format == "messages"


def test_prompts_keep_the_other_columns_as_facts():
    found = shaped(
        {
            "prompt": "q",
            "system": "s",
            "solution": "72",
            "n": [1],
            "bad": "\ud83d",
            "weight": 2,
            "tools": None,
        }
    )
    row = found.rows[0]
    assert (
        turns(row.messages) == [("system", "s"), ("user", "q")]
        and row.facts == {"solution": "72", "n": [1]}
        and row.weight == 2
    )
    assert found.notes["fact_left_out"] == 1
    row = only({"messages": [*DIALOGUE, said("user", "r")], "answer": "x"})
    assert row.answer() == "x" and [m.weight for m in row.messages] == [1, 0, 1]
    assert shaped({"prompt": "q", "answer": "a"}, format_name="prompts").rows[0].facts == {
        "answer": "a"
    }
    assert shaped({"messages": DIALOGUE}, format_name="prompts").dropped[0].reason == "not_a_prompt"


def test_dialogues_are_prompts_only_where_most_of_them_end_with_a_question():
    open_end = {"messages": [*DIALOGUE, said("user", "r")]}
    assert shaped(*[{"messages": DIALOGUE}] * 5, open_end).format == "messages"
    assert shaped(*[open_end] * 5, {"messages": DIALOGUE}).format == "prompts"


def test_sharegpt_calls_become_tool_calls_and_results_follow_them():
    raw = {
        "conversations": [
            turn("human", "weather?"),
            turn("gpt", "I look."),
            turn("function_call", '{"name": "weather", "arguments": {"city": "Paris"}}'),
            turn("observation", '{"degrees": 20}'),
            turn("gpt", "20 degrees."),
        ],
        "tools": '[{"name": "weather", "description": "d", "parameters": {"type": "object"}}]',
    }
    found = shaped(raw)
    row = found.rows[0]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    assert turns(row.messages) == [
        ("user", "weather?"),
        ("assistant", "I look."),
        ("tool", '{"degrees": 20}'),
        ("assistant", "20 degrees."),
    ]
    assert row.messages[1].tool_calls == [call] and found.notes["turns_joined"] == 1
    assert row.tools == [
        {
            "type": "function",
            "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}},
        }
    ]
    both = [
        turn("human", "q"),
        turn("function_call", json.dumps([call["function"]] * 2)),
        turn("observation", "o"),
        turn("gpt", "a"),
    ]
    assert only({"conversations": both}).messages[1].tool_calls == [call, call]
    for value in (
        "weather(Paris)",
        "[]",
        '{"arguments": {}}',
        '{"name": "f", "arguments": "x"}',
        "{",
        None,
    ):
        row = formats.get("sharegpt").function(
            {"conversations": [turn("human", "q"), turn("function_call", value)]},
            Origin("f", 1, 1),
            Columns(),
        )
        assert isinstance(row, Unusable) and row.reason == "bad_tool_call", value


def test_openai_calls_results_and_reasoning_are_kept():
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
    }
    raw = {
        "messages": [
            said("user", "weather?"),
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "20", "tool_call_id": "c1"},
            {
                "role": "assistant",
                "content": "20 degrees.",
                "reasoning_content": "It says 20.",
                "weight": 1,
            },
        ]
    }
    found = shaped(raw)
    user, asked, result, answer = found.rows[0].messages
    assert asked.tool_calls == [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Paris"}},
        }
    ]
    assert asked.content == "" and asked.weight == 0 and answer.weight == 1 and user.weight == 1
    assert (result.tool_call_id, result.name) == ("c1", "weather")
    assert (
        answer.content == "<think>\nIt says 20.\n</think>\n\n20 degrees."
        and found.notes["reasoning_kept"] == 1
    )
    own = {
        "messages": [
            said("user", "q"),
            {**said("assistant", "<think>x</think>a"), "reasoning_content": "x"},
        ]
    }
    assert only(own).answer() == "<think>x</think>a"
    old = {
        "messages": [
            said("user", "q"),
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "f", "arguments": "{}"},
            },
            {"role": "function", "name": "f", "content": "1"},
            said("assistant", "a"),
        ]
    }
    assert (
        only(old).messages[1].tool_calls
        == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
        and only(old).messages[2].name == "f"
    )


def test_a_tool_call_id_reaches_the_chat_template(renderer):
    asked = Message(
        "assistant",
        "",
        tool_calls=[{"id": "abc", "type": "function", "function": {"name": "f", "arguments": {}}}],
    )
    messages = [
        Message("user", "q"),
        asked,
        Message("tool", "1", name="f", tool_call_id="abc"),
        Message("assistant", "a"),
    ]
    assert renderer.template.prepare(messages).messages[2]["tool_call_id"] == "abc"


def test_lists_may_be_json_text_as_tables_write_them():
    row = only({"messages": json.dumps(DIALOGUE), "weight": "0.5", "tools": ""})
    assert (
        turns(row.messages) == [("user", "q"), ("assistant", "a")]
        and row.weight == 0.5
        and row.tools is None
    )
    assert (
        shaped({"conversations": json.dumps([turn("human", "q"), turn("gpt", "a")])}).format
        == "sharegpt"
    )
    assert shaped({"messages": "[{'role'"}, format_name="messages").dropped[0].reason == "not_json"


def test_labels_are_asked_for_in_a_stated_wording_and_may_be_numbers():
    found = shaped({"text": "fine {film}", "label": 1}, {"text": "bad", "label": 0})
    assert turns(found.rows[0].messages) == [("user", "fine {film}\n\nLabel:"), ("assistant", "1")]
    assert found.notes["label_as_text"] == 2 and not found.notes["number_as_text"]
    found = shaped(
        {"text": "a {label}", "label": "1"}, wording="Is this good? {text}", labels=["no", "yes"]
    )
    assert (
        turns(found.rows[0].messages) == [("user", "Is this good? a {label}"), ("assistant", "yes")]
        and found.notes["label_named"] == 1
    )
    assert only({"text": "t", "label": 1, "label_text": "positive"}).answer() == "positive"
    for value in (None, "", -1, 2):
        assert (
            shaped({"text": "t", "label": value}, labels=["no", "yes"]).dropped[0].reason
            == "no_label"
        )
    wording = "{question} ({context}) {text}"
    assert (
        only({"question": "q {context}", "context": "c", "answer": "a"}, wording=wording)
        .question()[0]
        .content
        == "q {context} (c) {text}"
    )


def test_documents_take_the_text_under_any_usual_name():
    assert only({"content": "x", "title": "t"}).text == "x"
    assert shaped({"text": "x"}, format_name="documents").rows[0].text == "x"


def test_a_shaper_gives_row_by_row_what_shape_gives():
    raw = [
        RawRow(value, Origin("f", i, i))
        for i, value in enumerate([{"prompt": "q", "completion": 1}, {"prompt": "q"}, 3], 1)
    ]
    shaper, together = Shaper(raw), shape(raw)
    assert [shaper.row(one) for one in raw] == [
        together.rows[0],
        *together.dropped,
    ] and shaper.notes == together.notes
    assert shaper.format == together.format == "prompt_completion"


def test_long_and_unprintable_names_are_shortened_in_messages():
    with pytest.raises(DataError) as caught:
        shaped({"k" * 1_000_000: 1, "\ud83d": 2, **{f"c{i}": i for i in range(1000)}})
    line = caught.value.problems[0].line()
    assert len(line) < 4000 and "\\ud83d" in line and line.encode("utf-8")
