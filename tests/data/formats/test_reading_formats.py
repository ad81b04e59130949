"""Rows of every format, good and bad: a row or a reason, never an exception."""

from __future__ import annotations

import pytest

from tunewright.core.errors import DataError
from tunewright.core.registry import formats
from tunewright.core.types import Origin
from tunewright.data.files.source import RawRow
from tunewright.data.formats.common import Columns, Unusable
from tunewright.data.formats.shaping import shape

HERE = Origin("f.json", 1, 1)


def made(name, raw, columns=None):
    return formats.get(name).function(raw, HERE, columns if columns is not None else Columns())


def turns(row):
    return [(m.role, m.content) for m in row.messages]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def test_alpaca_puts_the_input_on_a_line_under_the_instruction():
    assert turns(made("alpaca", {"instruction": "i", "input": "x", "output": "o"})) == [
        ("user", "i\nx"),
        ("assistant", "o"),
    ]
    assert turns(made("alpaca", {"instruction": "i", "input": "", "output": "o"})) == [
        ("user", "i"),
        ("assistant", "o"),
    ]
    assert turns(made("alpaca", {"instruction": "i", "output": "o"})) == [
        ("user", "i"),
        ("assistant", "o"),
    ]
    assert turns(made("alpaca", {"instruction": "", "input": "x", "output": "o"})) == [
        ("user", "x"),
        ("assistant", "o"),
    ]
    row = made(
        "alpaca",
        {"instruction": "i", "output": "o", "system": "s", "history": [["a", "b"]], "weight": 2},
    )
    assert (
        turns(row)
        == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "i"), ("assistant", "o")]
        and row.weight == 2
    )


@pytest.mark.parametrize(
    ("answer", "text"), [(1, "1"), (0, "0"), (0.5, "0.5"), (True, "true"), (False, "false")]
)
def test_numbers_are_legal_answers_and_counted(answer, text):
    columns = Columns()
    assert made("alpaca", {"instruction": "i", "output": answer}, columns).answer() == text
    assert (
        made("prompt_completion", {"prompt": "i", "completion": answer}, columns).answer() == text
    )
    assert made("messages", {"messages": [user("q"), assistant(answer)]}, columns).answer() == text
    assert columns.notes["number_as_text"] == 3


def test_messages_keep_weights_tools_and_text_parts():
    calls = [{"function": {"name": "f", "arguments": {}}}]
    raw = {
        "messages": [
            {"role": "developer", "content": "s"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            assistant(None, tool_calls=calls, weight=0),
            {"role": "tool", "content": "t", "name": "f"},
            assistant("end", weight=0.5),
        ],
        "tools": [{"type": "function"}],
    }
    row = made("messages", raw)
    assert turns(row) == [
        ("system", "s"),
        ("user", "ab"),
        ("assistant", ""),
        ("tool", "t"),
        ("assistant", "end"),
    ]
    assert [m.weight for m in row.messages] == [1, 1, 0, 1, 0.5]
    assert row.messages[2].tool_calls == calls and row.tools == raw["tools"]


def test_sharegpt_roles_are_translated():
    raw = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ]
    }
    assert turns(made("sharegpt", raw)) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    raw = {
        "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}],
        "system": "t",
    }
    assert turns(made("sharegpt", raw)) == [("system", "t"), ("user", "q"), ("assistant", "a")]


def test_prompt_lists_of_messages_are_context_and_only_the_completion_is_learnt():
    raw = {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]}
    row = made("prompt_completion", raw)
    assert [m.weight for m in row.messages] == [1, 0, 1, 1] and row.answer() == "d"
    assert turns(made("prompt_completion", {"question": "q", "answer": "a"})) == [
        ("user", "q"),
        ("assistant", "a"),
    ]


def test_question_after_the_last_answer_is_left_out_and_counted():
    columns = Columns()
    row = made("messages", {"messages": [user("q"), assistant("a"), user("r")]}, columns)
    assert (
        row.answer() == "a"
        and len(row.messages) == 2
        and columns.notes["question_after_last_answer"] == 1
    )


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("alpaca", [1], "not_an_object"),
        ("alpaca", "text", "not_an_object"),
        ("alpaca", {"instruction": "i"}, "no_answer"),
        ("alpaca", {"instruction": "i", "output": None}, "empty_answer"),
        ("alpaca", {"instruction": "i", "output": " \n"}, "empty_answer"),
        ("alpaca", {"instruction": "", "output": "o"}, "empty_question"),
        ("alpaca", {"instruction": {"a": 1}, "output": "o"}, "wrong_type"),
        ("alpaca", {"instruction": "i", "output": "o", "history": "h"}, "wrong_type"),
        ("alpaca", {"instruction": "i", "output": "\ud83d"}, "bad_unicode"),
        ("alpaca", {"instruction": "i", "output": "o", "weight": -1}, "bad_weight"),
        ("alpaca", {"instruction": "i", "output": "o", "weight": "x"}, "bad_weight"),
        ("messages", {"messages": "x"}, "wrong_type"),
        ("messages", {"messages": ["x"]}, "wrong_type"),
        ("messages", {"messages": []}, "no_answer"),
        ("messages", {"messages": [{"role": "system", "content": "s"}]}, "no_answer"),
        ("messages", {"messages": [user("q")]}, "no_answer"),
        ("messages", {"messages": [{"role": "narrator", "content": "q"}]}, "unknown_role"),
        ("messages", {"messages": [{"content": "q"}]}, "unknown_role"),
        (
            "messages",
            {"messages": [user("q"), {"role": "tool", "content": "r"}, assistant("a")]},
            "bad_order",
        ),
        ("messages", {"messages": [{"role": "tool", "content": "r"}, assistant("a")]}, "bad_order"),
        ("messages", {"messages": [user("q"), assistant("")]}, "empty_answer"),
        ("messages", {"messages": [user("q"), assistant([{"type": "image_url"}])]}, "wrong_type"),
        ("sharegpt", {"x": 1}, "no_answer"),
        ("prompt_completion", {"prompt": "p"}, "no_answer"),
        ("text", {"x": 1}, "no_text"),
        ("text", {"text": ""}, "empty_text"),
    ],
)
def test_unusable_rows_have_a_reason(name, raw, reason):
    row = made(name, raw)
    assert isinstance(row, Unusable) and row.reason == reason


SYSTEM = {"role": "system", "content": "s"}
ORDERS = [
    [assistant("hello"), user("q"), assistant("a")], [SYSTEM, assistant("hello"), user("q"), assistant("a")], [user("q"), user("r"), assistant("a")],
    [user("q"), assistant("a"), assistant("b")], [user("q"), assistant("a"), SYSTEM, user("r"), assistant("b")], [user("q"), SYSTEM, assistant("a")],
]  # fmt: skip


@pytest.mark.parametrize("messages", ORDERS)
def test_turns_in_an_unusual_order_are_kept_as_they_stand_and_counted(messages):
    columns = Columns()
    assert turns(made("messages", {"messages": messages}, columns)) == [
        (m["role"], m["content"]) for m in messages
    ]
    assert columns.notes["unusual_order"] == 1
    made(
        "messages",
        {"messages": [SYSTEM, user("q"), assistant("a"), user("r"), assistant("b")]},
        columns,
    )
    assert columns.notes["unusual_order"] == 1


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("messages", {"messages": [{"role": "system", "content": ""}, user("q"), assistant("a")]}),
        ("messages", {"messages": [user("q"), assistant("a")], "system": ""}),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system_prompt": "",
            },
        ),
        ("alpaca", {"instruction": "q", "output": "a", "system": ""}),
        ("prompt_completion", {"prompt": "q", "completion": "a", "system": ""}),
        ("kto", {"prompt": "q", "completion": "a", "label": True, "system": ""}),
    ],
)
def test_an_empty_system_prompt_is_an_empty_turn_and_null_is_none(name, raw):
    columns = Columns()
    assert (
        turns(made(name, raw, columns)) == [("system", ""), ("user", "q"), ("assistant", "a")]
        and columns.notes["system_empty"] == 1
    )
    missing = {key: None if key.startswith("system") else value for key, value in raw.items()}
    assert ("system", "") not in turns(made(name, missing)) or (
        "system" not in raw and "system_prompt" not in raw
    )


def test_a_blank_cell_of_a_table_is_no_system_prompt():
    raw = {"instruction": "q", "output": "a", "system": ""}
    row = formats.get("alpaca").function(raw, Origin("a.csv", 2, 1), Columns())
    assert turns(row) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("text", "found", "key"),
    [("a\r\nb", "a\nb", "line_ends"), ("a\rb", "a\rb", "carriage_returns"), ("a\nb", "a\nb", None)],
)
def test_line_ends_of_windows_become_one_character_everywhere_and_lone_returns_are_told(
    text, found, key
):
    rows = {
        "alpaca": {"instruction": text, "output": text, "history": [[text, text]]},
        "messages": {"messages": [user([{"type": "text", "text": text}]), assistant(text)]},
        "sharegpt": {
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}]
        },
        "classification": {"text": text, "label": text},
        "text": {"text": text},
        "documents": {"document": text},
        "preference": {"prompt": text, "chosen": text, "rejected": "no"},
        "stepwise": {"prompt": text, "completions": [text], "labels": [True]},
        "prompts": {"prompt": text, "answer": text},
    }
    for name, raw in rows.items():
        columns = Columns()
        row = made(name, raw, columns)
        said = (
            [row.text]
            if name in ("text", "documents")
            else [*(m.content for m in getattr(row, "prompt", None) or row.messages), row.answer()]
        )
        assert all(found in one for one in said), name
        assert not key or columns.notes[key] >= 1, name
        assert sum(columns.notes[k] for k in ("line_ends", "carriage_returns") if k != key) == 0


GOOD = {
    "alpaca": {"instruction": "i", "output": "o", "text": "all of it"},
    "messages": {"messages": [user("q"), assistant("a")], "prompt": "q"},
    "prompt_completion": {"question": "q", "answer": "a"},
}


def raw_rows(*values):
    return [RawRow(value, Origin("f.json", i, i)) for i, value in enumerate(values, 1)]


def test_conversations_with_role_and_content_are_messages():
    assert shape(raw_rows({"conversations": [user("q"), assistant("a")]})).format == "messages"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (({"a1": 1, "b1": 2},), "`a1` (1), `b1` (2)"),
        (([1, 2],), "(list)"),
        ((3,), "(int)"),
        (
            ({"frage": "Wer?", "dinge": [{"x": 1}]},),
            '`frage` ("Wer?"), `dinge` (a list of an object with x)',
        ),
    ],
)
def test_unknown_columns_are_listed_with_an_example_each(values, shown):
    with pytest.raises(DataError) as caught:
        shape(raw_rows(*values))
    line = caught.value.problems[0].line()
    assert "E-DATA-08" in line and shown in line


def test_two_possible_formats_are_an_error_until_one_is_named():
    both = raw_rows(GOOD["messages"] | GOOD["alpaca"])
    with pytest.raises(DataError, match="E-DATA-09.*alpaca, messages"):
        shape(both)
    assert shape(both, "alpaca").rows[0].answer() == "o"


def test_unknown_format_and_column_names_get_a_guess():
    with pytest.raises(DataError, match="Did you mean `alpaca`"):
        shape(raw_rows(GOOD["alpaca"]), "alpacca")
    with pytest.raises(DataError, match="closest: question"):
        shape(raw_rows(GOOD["prompt_completion"]), "auto", {"instruction": "questoin"})


def test_renamed_columns_decide_the_format():
    shaped = shape(
        raw_rows({"frage": "q", "antwort": 1}),
        "auto",
        {"instruction": "frage", "output": "antwort"},
    )
    assert shaped.format == "alpaca" and turns(shaped.rows[0]) == [
        ("user", "q"),
        ("assistant", "1"),
    ]
