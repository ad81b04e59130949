"""A form that cannot hold a row does not get a part of it; what it can hold comes back the same."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError
from tunewright.core.registry import formats
from tunewright.core.types import Origin, Row
from tunewright.data.converting import convert
from tunewright.data.files.writing import WRITERS as FILES
from tunewright.data.formats.common import Columns, Unusable

# A text that is JSON may be read as what it says, because cells of tables hold such. Letters beyond
# ASCII, line ends, quotes and separators: everything a cell of a file may trip over. No lone
# surrogates, which no file can hold.
WORDS = st.text(st.sampled_from("abc ,;\"'\\\n\t{}[]中文é\u2028"), min_size=1, max_size=12).filter(
    lambda text: text.strip()[:1] not in ("", "[", "{")
)
ALPACA = st.fixed_dictionaries(
    {"instruction": WORDS, "input": st.one_of(st.just(""), WORDS), "output": WORDS},
    optional={
        "system": WORDS,
        "history": st.lists(st.tuples(WORDS, WORDS).map(list), max_size=2),
        "weight": st.sampled_from([0.5, 2.0]),
    },
)
SHARE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rows_of(path: str | Path, name: str) -> list[Row]:
    """The rows of a file by the reader of the form itself, without where they came from."""
    made = [
        formats.get(name).function(row.value, row.origin, Columns())
        for row in read(Path(path)).rows
    ]
    assert not any(isinstance(row, Unusable) for row in made), made
    return [replace(row, origin=Origin("", 0, 0)) for row in made]


@given(
    rows=st.lists(ALPACA, min_size=1, max_size=4),
    middle=st.sampled_from(["messages", "sharegpt"]),
    ending=st.sampled_from([".json", ".jsonl"]),
)
@SHARE
def test_alpaca_comes_back_equal_from_other_forms(tmp_path, rows, middle, ending):
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    there, back = tmp_path / f"there{ending}", tmp_path / f"back{ending}"
    done = convert(str(tmp_path / "a.json"), there, middle, data_format="alpaca", force=True)
    convert(str(there), back, "alpaca", data_format=middle, force=True)
    assert done.rows_read == done.rows_written == len(rows)
    assert (
        rows_of(back, "alpaca") == rows_of(there, middle) == rows_of(tmp_path / "a.json", "alpaca")
    )


@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": WORDS, "completion": WORDS}, optional={"system": WORDS}),
        min_size=1,
        max_size=4,
    )
)
@SHARE
def test_one_question_and_answer_comes_back_equal_from_a_table(tmp_path, rows):
    (tmp_path / "p.json").write_text(json.dumps(rows), encoding="utf-8")
    for ending in (".csv", ".parquet"):
        if ending == ".parquet":
            pytest.importorskip("pyarrow")
        out = tmp_path / f"t{ending}"
        convert(
            str(tmp_path / "p.json"),
            out,
            "prompt_completion",
            data_format="prompt_completion",
            force=True,
        )
        assert rows_of(out, "prompt_completion") == rows_of(
            tmp_path / "p.json", "prompt_completion"
        )


def test_a_table_has_a_header_and_is_read_by_the_standard_library(write, tmp_path):
    source = write(
        "a.json",
        [
            {"instruction": 'q, "x"\ny', "output": "a"},
            {"instruction": "r", "output": "b", "system": "s"},
        ],
    )
    convert(source, tmp_path / "o.csv", "alpaca")
    with open(tmp_path / "o.csv", encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["instruction"] for row in found] == ['q, "x"\ny', "r"] and [
        row["system"] for row in found
    ] == ["", "s"]


DIALOGUE = {
    "messages": [
        {"role": r, "content": c}
        for r, c in (("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    ]
}
CALLING = {
    "messages": [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "three"},
    ],
    "tools": [{"type": "function", "function": {"name": "sum", "parameters": {}}}],
    "weight": 2.0,
}
WEIGHTED = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "weight": 0.5},
    ]
}
GIVEN = {
    "messages": [
        *DIALOGUE["messages"][:1],
        {**DIALOGUE["messages"][1], "weight": 0},
        *DIALOGUE["messages"][2:],
    ]
}


@pytest.mark.parametrize(
    "row", [DIALOGUE, CALLING, WEIGHTED, GIVEN], ids=["dialogue", "calling", "weighted", "given"]
)
@pytest.mark.parametrize("to", ["messages", "sharegpt"])
def test_tools_calls_and_weights_are_kept_where_turns_are(write, tmp_path, row, to):
    source = write("m.jsonl", [row])
    convert(source, tmp_path / "o.jsonl", to)
    assert rows_of(tmp_path / "o.jsonl", to) == rows_of(source, "messages")


@pytest.mark.parametrize(
    ("row", "to", "ending", "reason"),
    [
        (DIALOGUE, "prompt_completion", ".jsonl", "turns"),
        (CALLING, "alpaca", ".jsonl", "tool_turns"),
        (CALLING, "prompt_completion", ".jsonl", "tool_turns"),
        (CALLING, "messages", ".parquet", "no_tools_in_parquet"),
        (WEIGHTED, "alpaca", ".jsonl", "turn_weights"),
        (WEIGHTED, "prompt_completion", ".jsonl", "turn_weights"),
        (GIVEN, "alpaca", ".jsonl", "turn_weights"),
        (DIALOGUE, "alpaca", ".csv", "only_text_in_csv"),
        ({"text": "words", "weight": 0.5}, "text", ".csv", "only_text_in_csv"),
        (DIALOGUE, "text", ".jsonl", "kind_conversation"),
        (DIALOGUE, "preference", ".jsonl", "kind_conversation"),
        (DIALOGUE, "kto", ".jsonl", "kind_conversation"),
        ({"text": "words"}, "messages", ".jsonl", "kind_text"),
    ],
)
def test_what_a_target_cannot_hold_is_refused_and_with_drop_counted(
    write, tmp_path, row, to, ending, reason
):
    good: Any = {"text": {"text": "x"}, "preference": None, "kto": None}.get(
        to, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    )
    rows = [row] if good is None or ("text" in good) != ("text" in row) else [good, row]
    source, out = write("m.jsonl", rows), tmp_path / f"o{ending}"
    with pytest.raises(DataError) as caught:
        convert(source, out, to)
    (found,) = caught.value.problems
    assert found.code == "E-DATA-49" and f"m.jsonl:{len(rows)}" in found.line() and not out.exists()
    if len(rows) == 2:
        done = convert(source, out, to, drop=True).as_dict()
        assert (done["rows_read"], done["rows_written"], done["rows_dropped"]) == (2, 1, 1)
        assert done["reasons"][reason]["count"] == 1 and len(done["reasons"][reason]["what"]) > len(
            reason
        )


def test_answers_given_in_the_question_fit_into_prompt_completion(write, tmp_path):
    convert(write("m.jsonl", [GIVEN]), tmp_path / "o.jsonl", "prompt_completion")
    (row,) = read(tmp_path / "o.jsonl").rows
    assert [m["content"] for m in row.value["prompt"]] == ["q", "a", "r"] and row.value[
        "completion"
    ] == [{"role": "assistant", "content": "b"}]
    assert rows_of(tmp_path / "o.jsonl", "prompt_completion") == rows_of(
        tmp_path / "m.jsonl", "messages"
    )


def test_a_row_that_would_be_read_back_otherwise_is_left_out(write, tmp_path, monkeypatch):
    monkeypatch.setitem(
        formats.get("messages").facts,
        "write",
        lambda row: {
            "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        },
    )
    with pytest.raises(DataError) as caught:
        convert(
            write("a.json", [{"instruction": "q", "output": "a"}]), tmp_path / "o.json", "messages"
        )
    assert "reading it back" in caught.value.problems[0].line()


def test_preferences_and_judged_answers_of_a_catalogue_are_written_as_trl_names_them(tmp_path):
    turns = [{"from": "human", "value": "q"}]
    pair = {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    judged = {"conversations": [*turns, {"from": "gpt", "value": "a"}], "label": False}
    entry = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
    info = {
        "pairs": {
            **entry,
            "file_name": "pairs.json",
            "ranking": True,
            "columns": {**entry["columns"], "chosen": "chosen", "rejected": "rejected"},
        },
        "judged": {
            **entry,
            "file_name": "judged.json",
            "columns": {**entry["columns"], "kto_tag": "label"},
            "num_samples": 3,
        },
    }
    for name, content in (("pairs", [pair]), ("judged", [judged]), ("dataset_info", info)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    convert("pairs", tmp_path / "p.jsonl", "preference", data_dir=str(tmp_path))
    convert("judged", tmp_path / "k.jsonl", "kto", data_dir=str(tmp_path))
    (found,) = [row.value for row in read(tmp_path / "p.jsonl").rows]
    assert found == {
        "prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}],
    }  # fmt: skip
    rows = [row.value for row in read(tmp_path / "k.jsonl").rows]
    assert rows == 3 * [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
            "label": False,
        }
    ]


def test_rows_that_cannot_be_read_are_counted_and_do_not_stop_the_rest(write, tmp_path):
    source = write("a.json", [{"instruction": "q", "output": "a"}, {"instruction": "q"}, 7])
    done = convert(source, tmp_path / "o.jsonl", "messages").as_dict()
    assert (done["rows_written"], done["rows_dropped"]) == (1, 2) and set(done["reasons"]) == {
        "no_answer",
        "not_an_object",
    }


def test_columns_are_renamed_on_the_way(write, tmp_path):
    source = write("a.json", [{"frage": "q", "antwort": "a"}])
    convert(
        source,
        tmp_path / "o.jsonl",
        "messages",
        columns={"instruction": "frage", "output": "antwort"},
    )
    assert [m.content for m in rows_of(tmp_path / "o.jsonl", "messages")[0].messages] == ["q", "a"]


def test_nothing_is_overwritten_without_force(write, tmp_path):
    source, out = write("a.json", [{"instruction": "q", "output": "a"}]), tmp_path / "o.json"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        convert(source, out, "messages")
    assert (
        caught.value.problems[0].code == "E-DATA-47" and out.read_text(encoding="utf-8") == "mine"
    )
    convert(source, out, "messages", force=True)
    assert json.loads(out.read_text(encoding="utf-8"))[0]["messages"][0]["content"] == "q"


@pytest.mark.parametrize(
    ("out", "to"), [("o.xlsx", "messages"), ("o.json", "chatml"), ("o", "messages")]
)
def test_an_unknown_target_lists_the_known_ones(write, tmp_path, out, to):
    with pytest.raises(DataError) as caught:
        convert(write("a.json", [{"instruction": "q", "output": "a"}]), tmp_path / out, to)
    known = caught.value.problems[0].fields["known"]
    assert caught.value.problems[0].code == "E-DATA-48" and (
        "messages" in known or ".jsonl" in known
    )


@pytest.mark.parametrize("ending", sorted(set(FILES) - {".parquet"}))
def test_a_text_stays_as_it_is_in_every_kind_of_file(write, tmp_path, ending):
    rows = [
        {"text": 'one\n\ntwo, "three"'},
        {"text": "中文", **({"weight": 0.5} if ending != ".csv" else {})},
    ]
    source = write("t.jsonl", rows)
    convert(source, tmp_path / f"o{ending}", "text")
    assert rows_of(tmp_path / f"o{ending}", "text") == rows_of(source, "text")


def test_a_file_that_holds_other_rows_than_were_written_never_takes_its_place(
    write, tmp_path, monkeypatch
):
    monkeypatch.setitem(FILES, ".jsonl", lambda rows: b'{"text": "other"}\n' * len(rows))
    with pytest.raises(DataError) as caught:
        convert(write("t.json", [{"text": "one"}]), tmp_path / "o.jsonl", "text")
    assert caught.value.problems[0].code == "E-DATA-49" and not (tmp_path / "o.jsonl").exists()
