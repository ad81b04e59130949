"""Lists as Python and numpy print them are read as the values they were; whatever else stands there
is refused and never run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.core.config import DataConfig
from tunewright.core.types import Origin
from tunewright.data import DataSet, inspect
from tunewright.data.files.source import RawRow
from tunewright.data.formats import literals
from tunewright.data.formats.common import Columns, RowFault, json_cell, looked_into
from tunewright.data.formats.literals import MOST_CHARACTERS, NotLiteral, python_value
from tunewright.data.formats.shaping import shape

TURNS = [
    {"role": "user", "content": 'What\'s "in" it?\n'},
    {"role": "assistant", "content": "It's plums.", "loss": True, "tool_calls": None},
]
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(plain, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=12)


@given(st.lists(values) | st.dictionaries(st.text(), values))
def test_what_python_prints_is_read_back(value):
    assert python_value(repr(value)) == value


@pytest.mark.parametrize("form", [repr, str])
def test_what_numpy_prints_is_read_back(form):
    numpy = pytest.importorskip("numpy")
    array = numpy.empty(2, dtype=object)
    array[:] = TURNS
    assert python_value(form(array)) == TURNS
    assert python_value(form(numpy.array(["a", "it's"], dtype=object))) == ["a", "it's"]


@pytest.mark.parametrize(
    "text",
    [
        "[__import__('os').system('true')]", "[open('x')]", "[a]", "[1 + 1]", "[{1: 2}]", "[{'a': 1, 'a': 2}]", "[b'x']", "[f'{x}']", "[...]", "[1j]", "['a'",
        "[" * 300 + "]" * 300, "['a' # x\n]", "[1, 2\x00]", "[1 if 1 else 2]", "[array.x([1])]", "array()",
    ],
)  # fmt: skip
def test_what_is_no_plain_value_is_refused(text):
    with pytest.raises(NotLiteral):
        python_value(text)


def test_a_long_text_is_refused_before_it_is_read(monkeypatch):
    read = []
    monkeypatch.setattr(literals.ast, "parse", lambda *text, **how: read.append(text))
    monkeypatch.setattr(literals.tokenize, "generate_tokens", lambda line: read.append(line) or [])
    with pytest.raises(NotLiteral):
        python_value("[" + "1," * MOST_CHARACTERS + "]")
    assert not read


def test_every_column_that_holds_lists_may_be_in_pythons_spelling(write):
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"strict": True, "x": None}}}
    ]
    rows = [
        ({"messages": repr(TURNS), "tools": repr(tools)}, "messages"),
        (
            {
                "conversations": repr(
                    [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
                )
            },
            "sharegpt",
        ),
        ({"instruction": "i", "output": "o", "history": repr([["it's", "b"]])}, "alpaca"),
        (
            {
                "prompt": repr(TURNS[:1]),
                "chosen": repr(TURNS[1:]),
                "rejected": repr([{"role": "assistant", "content": "no"}]),
            },
            "preference",
        ),
        (
            {"prompt": "q", "completions": repr(["a", "it's"]), "labels": "[True, False]"},
            "stepwise",
        ),
        (
            {
                "question": "q",
                "context": "c",
                "answers": repr({"text": ["it's"], "answer_start": [1]}),
            },
            "question_context",
        ),
    ]
    for row, name in rows:
        parsed = {key: python_value(cell) if cell[0] in "[{" else cell for key, cell in row.items()}
        found, wanted = (shape([RawRow(value, Origin("f", 1, 1))]) for value in (row, parsed))
        assert found.format == wanted.format == name
        assert found.rows == wanted.rows and found.rows and found.notes["python_lists"] >= 1, name


def test_a_cell_that_is_neither_is_named_with_what_stands_there(write):
    with pytest.raises(RowFault) as told:
        json_cell("[{'role': 'user' 'x'}]", "tools", Columns())
    assert told.value.unusable.reason == "not_json" and told.value.unusable.detail.startswith(
        "tools: [{'role': 'user' 'x'}]"
    )
    broken = {"prompt": "[{'role': 'user', 'content': 'it's'}]", "completion": "a"}
    assert shape([RawRow(broken, Origin("f", 1, 1))]).dropped[0].reason == "not_json"
    assert looked_into("[{'role' oh") == "[{'role' oh" and looked_into("['a', 'b']") == "['a', 'b']"


def test_the_report_counts_such_cells(write, renderer):
    cell = repr(TURNS).replace('"', '""')
    data: DataSet = inspect(DataConfig(train=write("a.csv", f'messages\n"{cell}"\n')), renderer)
    assert data.report["notes"]["python_lists"] == 1 and "in Python's notation" in " ".join(
        data.report["warnings"]
    )
    assert [m.content for m in data.train_rows[0].messages] == [t["content"] for t in TURNS]
