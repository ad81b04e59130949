"""dataset_info.json read to the letter. What LLaMA-Factory keeps of each table below was found by
running its own 0.9.5 parser, converter and processors over the same rows; where Tunewright keeps
fewer, the reason stands in OURS."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.types import (
    Conversation,
    Judged,
    Message,
    Origin,
    PlainText,
    Preference,
    Prompt,
)
from tunewright.data import inspect
from tunewright.data.catalogue.names import chosen_rows, resolve
from tunewright.data.formats.common import Unusable

ROLE_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
}
OPENAI_TAGS = {
    **ROLE_TAGS,
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "function",
}
CALL = json.dumps({"name": "sum", "arguments": {"a": 1}})
TOOLS = json.dumps([{"name": "sum", "parameters": {}}])


def talk(*turns: str) -> list[dict[str, str]]:
    """`h:hello` -> {"from": "human", "value": "hello"}; the letters are those of WORDS."""
    return [{"from": WORDS[turn[0]], "value": turn[2:]} for turn in turns]


def chat(*turns: str) -> list[dict[str, str]]:
    """The same with role and content."""
    words = {"h": "user", "g": "assistant", "s": "system", "o": "tool"}
    return [{"role": words[turn[0]], "content": turn[2:]} for turn in turns]


WORDS = {"h": "human", "g": "gpt", "s": "system", "o": "observation", "f": "function_call"}

ALPACA = [
    {"instruction": "a", "input": "b", "output": "c"},
    {"instruction": "a", "input": "", "output": "c"},
    {"instruction": "a", "input": "  ", "output": "c"},
    {"instruction": "", "input": "b", "output": "c"},
    {"instruction": "", "input": "", "output": "c"},
    {"instruction": "a", "input": "b", "output": ""},
    {"instruction": "a", "input": "b", "output": None},
]
HISTORY = [
    {"q": "now", "a": "yes", "past": [["before", "then"], ["and", "so"]], "sys": "be kind"},
    {"q": "now", "a": "yes", "past": [], "sys": ""},
    {"q": "now", "a": "yes", "past": None, "sys": None},
]
SHAREGPT = [
    {"conversations": talk("h:q", "g:a")},
    {"conversations": talk("s:be kind", "h:q", "g:a", "h:r", "g:b")},
    {"conversations": talk("h:q", "g:a", "h:r")},
    {"conversations": talk("h:q", "h:r", "g:a", "g:b")},
    {"conversations": talk("h:q", "s:late", "h:r", "g:a")},
    {"conversations": talk("g:a", "h:q")},
    {"conversations": talk("h:q", "f:" + CALL, "o:3", "g:it is 3")},
    {"conversations": talk("o:3", "g:three")},
    {"conversations": []},
    {"conversations": talk("h:q", "g:")},
]
RANKED = [
    {"conversations": talk("h:q"), "chosen": talk("g:good")[0], "rejected": talk("g:bad")[0]},
    {
        "conversations": talk("h:q", "g:a"),
        "chosen": talk("g:good")[0],
        "rejected": talk("g:bad")[0],
    },
    {
        "conversations": talk("s:s", "h:q", "g:a", "h:r"),
        "chosen": talk("g:good")[0],
        "rejected": talk("g:bad")[0],
    },
    {"conversations": talk("h:q"), "chosen": None, "rejected": talk("g:bad")[0]},
    {"conversations": talk("h:q"), "chosen": talk("h:good")[0], "rejected": talk("g:bad")[0]},
]
JUDGED = [
    {"messages": chat("h:q", "g:a"), "label": True},
    {"messages": chat("h:q", "g:a"), "label": False},
    {"messages": chat("h:q", "g:a"), "label": None},
    {"messages": chat("h:q"), "label": True},
    {"messages": chat("h:q", "g:a", "h:r", "g:b"), "label": False},
    {"messages": chat("s:be kind", "h:q", "g:a"), "label": True},
]
ASKED = [{"id": "1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}]
OPENAI: list[dict[str, Any]] = [
    {"messages": [{**turn, "tool_calls": None} for turn in chat("h:q", "g:a")], "tools": None},
    {
        "messages": [{**turn, "tool_calls": None} for turn in chat("s:be kind", "h:q", "g:a")],
        "tools": None,
    },
    {
        "messages": [
            {"role": "user", "content": "q", "tool_calls": None},
            {"role": "assistant", "content": "", "tool_calls": ASKED},
            *[{**turn, "tool_calls": None} for turn in chat("o:3", "o:4", "g:seven")],
        ],
        "tools": [{"type": "function", "function": {"name": "sum"}}],
    },
    {
        "messages": [
            {"role": "user", "content": "q", "tool_calls": None},
            {"role": "assistant", "content": "", "tool_calls": ASKED},
            {"role": "tool", "content": "3", "tool_calls": None},
        ],
        "tools": None,
    },
    {
        "messages": [{**turn, "tool_calls": None} for turn in chat("h:q", "s:late", "h:r", "g:a")],
        "tools": None,
    },
    {
        "messages": [
            {**turn, "tool_calls": None} for turn in chat("s:detailed thinking on", "h:q", "g:a")
        ],
        "tools": None,
    },
]
PAIRS = [
    {"instruction": "q", "input": "", "good": "a", "bad": "b"},
    {"instruction": "q", "input": "", "good": "a", "bad": None},
]
DOCUMENTS = [{"text": "one"}, {"text": ""}, {"text": None}, {"text": "two"}]

TABLES: dict[str, tuple[dict[str, Any], str, list[Any]]] = {
    "alpaca": ({}, "sft", ALPACA),
    "history": ({"columns": {"prompt": "q", "response": "a", "history": "past", "system": "sys"}}, "sft", HISTORY),
    "sharegpt": ({"formatting": "sharegpt"}, "sft", SHAREGPT),
    "untagged": ({"formatting": "sharegpt", "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}}, "sft", SHAREGPT),
    "ranked": (
        {"formatting": "sharegpt", "ranking": True, "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}}, "rm", RANKED,
    ),
    "judged": ({"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}, "tags": ROLE_TAGS}, "kto", JUDGED),
    "openai": ({"formatting": "openai", "columns": {"messages": "messages", "tools": "tools"}, "tags": OPENAI_TAGS}, "sft", OPENAI),
    "pairs": ({"ranking": True, "columns": {"prompt": "instruction", "query": "input", "chosen": "good", "rejected": "bad"}}, "rm", PAIRS),
    "documents": ({"columns": {"prompt": "text"}}, "pt", DOCUMENTS),
}  # fmt: skip
"""Name -> entry without its file, LLaMA-Factory's stage, rows."""
THEIRS = {
    "alpaca": [0, 1, 2, 3, 4, 5], "history": [0, 1, 2], "sharegpt": [0, 1, 6, 7, 9], "untagged": [0, 9], "ranked": [0, 2, 4], "judged": [0, 1, 4],
    "openai": [0, 1, 2, 3, 5], "pairs": [0], "documents": [0, 1, 2, 3],
}  # fmt: skip
"""The rows that LLaMA-Factory 0.9.5 trains on, by running it."""
OURS = {
    "alpaca": {4: "empty_question", 5: "empty_answer"}, "sharegpt": {9: "empty_answer"}, "untagged": {9: "empty_answer"},
    "ranked": {4: "turn_order"}, "documents": {1: "empty_text", 2: "empty_text"},
}  # fmt: skip
"""The rows that LLaMA-Factory would train on and Tunewright does not, with the reason in the
report."""


def registry(folder: Path, **entries: Any) -> str:
    """A dataset_info.json in `folder`; returns the folder."""
    (folder / "dataset_info.json").write_text(
        json.dumps(entries, ensure_ascii=False), encoding="utf-8"
    )
    return str(folder)


def lay_out(folder: Path) -> str:
    """All tables as files with their registry."""
    for name, (_, _, rows) in TABLES.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return registry(
        folder,
        **{name: {"file_name": f"{name}.json", **entry} for name, (entry, _, _) in TABLES.items()},
    )


def convert(entry: Any, rows: list[Any]) -> list[Any]:
    return [
        entry.convert(row, Origin("rows.json", number, number)) for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("name", TABLES)
def test_the_same_rows_are_kept_as_by_llama_factory_or_the_reason_is_said(tmp_path, name):
    (entry,) = resolve(name, lay_out(tmp_path))
    made = convert(entry, TABLES[name][2])
    kept = [i for i, row in enumerate(made) if not isinstance(row, Unusable)]
    ours = OURS.get(name, {})
    assert kept == [i for i in THEIRS[name] if i not in ours]
    assert {i: made[i].reason for i in ours} == ours
    assert [file.name for file in entry.files] == [f"{name}.json"] and entry.name == name


def reference(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The turns of an alpaca row, written from the description in LLaMA-Factory's data README."""
    turns = [("system", row["sys"])] if row["sys"] else []
    for question, answer in row["past"] or []:
        turns += [("user", question), ("assistant", answer)]
    return [*turns, ("user", row["q"]), ("assistant", row["a"])]


def test_alpaca_history_stands_before_the_question_and_its_answers_are_learnt(tmp_path):
    (entry,) = resolve("history", lay_out(tmp_path))
    for made, row in zip(convert(entry, HISTORY), HISTORY, strict=True):
        assert isinstance(made, Conversation)
        assert [(m.role, m.content) for m in made.messages] == reference(row)
        assert all(m.weight == 1 for m in made.messages)


def test_alpaca_question_joins_prompt_and_query_with_a_line_break_and_a_blank_counts(tmp_path):
    (entry,) = resolve("alpaca", lay_out(tmp_path))
    assert [row.messages[0].content for row in convert(entry, ALPACA)[:4]] == [
        "a\nb",
        "a",
        "a\n  ",
        "b",
    ]


def test_sharegpt_tool_turns_become_calls_and_tool_messages(tmp_path):
    rows = [
        {**SHAREGPT[6], "tools": TOOLS},
        {**SHAREGPT[6], "tools": "[{"},
        {"conversations": talk("h:q", "f:no json"), "tools": ""},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows), encoding="utf-8")
    folder = registry(
        tmp_path,
        t={
            "file_name": "t.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "tools": "tools"},
        },
    )
    good, bad_tools, bad_call = convert(resolve("t", folder)[0], rows)
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
    assert [(m.role, m.content, m.tool_calls) for m in good.messages] == [
        ("user", "q", None), ("assistant", "", [call]), ("tool", "3", None), ("assistant", "it is 3", None),
    ]  # fmt: skip
    assert good.tools == [{"type": "function", "function": {"name": "sum", "parameters": {}}}]
    assert (bad_tools.reason, bad_call.reason) == ("bad_tools", "bad_tool_call")


def test_ranking_gives_preferences_and_kto_tag_gives_judged_answers(tmp_path):
    folder = lay_out(tmp_path)
    pair = convert(resolve("ranked", folder)[0], RANKED)[2]
    assert isinstance(pair, Preference)
    assert [m.role for m in pair.prompt] == ["system", "user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == (
        [Message("assistant", "good")],
        [Message("assistant", "bad")],
    )
    judged = convert(resolve("judged", folder)[0], JUDGED)
    assert [(row.good, row.messages[-1].content) for row in judged if isinstance(row, Judged)] == [
        (True, "a"),
        (False, "a"),
        (False, "b"),
    ]
    assert judged[2] == Unusable("kto_tag_no_bool", "None")


def test_openai_sentence_about_thinking_is_reported_and_not_copied(tmp_path):
    (entry,) = resolve("openai", lay_out(tmp_path))
    rows = convert(entry, OPENAI)
    assert [m.content for m in rows[0].messages] == ["q", "a"]
    assert rows[1].messages[0] == Message("system", "be kind")
    assert (
        entry.notes.notes["thinking_off_left_out"] == 3
    )  # not where tools are given, nor where the system prompt says it already
    assert entry.notes.notes["tool_answer_at_end"] == 1
    assert [m.role for m in rows[2].messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert rows[2].messages[1].tool_calls == [
        {"type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}
    ]


def test_a_block_replaces_all_its_defaults(tmp_path):
    (entry,) = resolve("documents", lay_out(tmp_path))
    made = convert(entry, [{"text": "words", "output": "not an answer", "input": "not a question"}])
    assert isinstance(made[0], PlainText) and made[0].text == "words"


@pytest.mark.parametrize(
    ("entry", "role"),
    [
        ({"formatting": "sharegpt", "columns": {"tools": "tools"}}, "messages"),
        (
            {
                "formatting": "sharegpt",
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user"},
            },
            "assistant_tag",
        ),
        ({"columns": {"response": "answer"}}, "prompt"),
        ({"ranking": True}, "chosen"),
    ],
)
def test_a_default_lost_to_a_block_is_named(tmp_path, entry, role):
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        resolve("x", registry(tmp_path, x={"file_name": "a.json", **entry}))
    assert "E-DATA-45" in {p.code for p in caught.value.problems}
    assert role in {p.fields["role"] for p in caught.value.problems}


@pytest.mark.parametrize(
    ("entry", "key", "code"),
    [
        ({"om_hub_url": "a/b"}, "om_hub_url: a/b", "E-DATA-42"),
        ({"hf_hub_url": "a/b", "folder": "part"}, "folder: part", "E-DATA-42"),
        ({"hf_hub_url": "a/b", "split": "train[:10]"}, "split: 'train[:10]'", "E-DATA-42"),
        ({"script_url": "s"}, "script_url: s", "E-DATA-42"),
        ({"cloud_file_name": "s3://b/f.json"}, "cloud_file_name: s3://b/f.json", "E-DATA-42"),
        ({}, "file_name", "E-DATA-42"),
        ({"file_name": "a.json", "formatting": "chatml"}, "formatting: 'chatml'", "E-DATA-42"),
        ({"file_name": "a.json", "split": "validation"}, "split: 'validation'", "E-DATA-42"),
        ({"file_name": "a.json", "ranking": "yes"}, "ranking: 'yes'", "E-DATA-42"),
        ({"file_name": "a.json", "num_samples": 0}, "num_samples: 0", "E-DATA-42"),
        (
            {"file_name": "a.json", "columns": {"prompt": "p", "images": "pictures"}},
            "columns.images",
            "E-DATA-42",
        ),
        ({"file_name": "a.json", "columns": "p"}, "columns", "E-DATA-42"),
        (
            {"file_name": "a.json", "columns": {"instruction": "p"}},
            "columns.instruction",
            "E-DATA-44",
        ),
        ({"file_name": "a.json", "formating": "sharegpt"}, "formating", "E-DATA-44"),
    ],
)
def test_what_an_entry_asks_and_cannot_have_is_refused_by_name(tmp_path, entry, key, code):
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        resolve("x", registry(tmp_path, x=entry))
    (found,) = caught.value.problems
    assert (found.code, found.fields["key"]) == (code, key)
    assert len(found.line()) > 60 and "{" not in found.line()


def test_all_that_is_wrong_with_an_entry_comes_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        resolve(
            "x",
            registry(
                tmp_path,
                x={"script_url": "a/b", "formatting": "no", "colums": {}, "num_samples": True},
            ),
        )
    assert [p.code for p in caught.value.problems] == [
        "E-DATA-44",
        "E-DATA-42",
        "E-DATA-42",
        "E-DATA-42",
    ]


def test_subset_and_a_changed_file_are_reported(tmp_path):
    body = b'[{"instruction": "a", "output": "b"}]'
    (tmp_path / "a.json").write_bytes(body)
    right = {
        "file_name": "a.json",
        "file_sha1": hashlib.sha1(body, usedforsecurity=False).hexdigest(),
    }
    folder = registry(
        tmp_path, right=right, wrong={**right, "file_sha1": "0" * 40, "subset": "s", "folder": "f"}
    )
    assert +resolve("right", folder)[0].notes.notes == {}
    assert +resolve("wrong", folder)[0].notes.notes == {
        "file_changed": 1,
        "entry_key_without_effect": 2,
    }


def test_an_unknown_name_lists_close_ones_and_where_was_looked(tmp_path):
    folder = lay_out(tmp_path)
    with pytest.raises(DataError) as caught:
        resolve("alpacca", folder)
    (found,) = caught.value.problems
    assert (
        found.code == "E-DATA-40"
        and found.fields["close"].startswith("alpaca")
        and found.fields["looked"] == str(Path(folder, "dataset_info.json"))
    )


def test_a_missing_file_of_an_entry_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        resolve("x", registry(tmp_path, x={"file_name": "gone.json"}))
    assert (
        caught.value.problems[0].code == "E-DATA-43"
        and "gone.json" in caught.value.problems[0].line()
    )


def test_names_with_commas_and_lists_and_paths_mix(tmp_path, monkeypatch):
    folder = lay_out(tmp_path)
    found = resolve({"file": "alpaca, sharegpt", "weight": 2}, folder)
    assert [(e.name, e.weight) for e in found] == [("alpaca", 2.0), ("sharegpt", 2.0)]
    (path,) = resolve(
        {"file": "judged.json", "format": "messages", "columns": {"messages": "m"}}, folder
    )
    assert (path.name, path.convert, path.format, path.columns) == (
        "",
        None,
        "messages",
        {"messages": "m"},
    )
    (tmp_path / "a,b.json").write_text("[1]", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert [e.files for e in resolve("a,b.json")] == [[Path("a,b.json")]]


def test_without_data_dir_the_registry_of_data_or_of_here_is_used_and_a_path_goes_first(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    assert resolve("alpaca")[0].name == "alpaca"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.json").write_text(
        '[{"instruction": "a", "output": "b"}]', encoding="utf-8"
    )
    registry(tmp_path / "data", alpaca={"file_name": "rows.json"})
    assert resolve("alpaca")[0].files == [Path("data/rows.json")]
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca" / "x.json").write_text("[1]", encoding="utf-8")
    assert resolve("alpaca")[0].name == ""
    assert (
        resolve("alpaca", str(tmp_path))[0].name == "alpaca"
    )  # a folder that was named goes before a path


def test_form_and_columns_are_the_entry_s_but_text_and_prompts_may_be_asked_for(tmp_path):
    folder = lay_out(tmp_path)
    for more in ({"columns": {"instruction": "q"}}, {"format": "messages"}):
        with pytest.raises(DataError):
            resolve({"file": "alpaca", **more}, folder)
    texts = convert(resolve({"file": "alpaca", "format": "text"}, folder)[0], ALPACA[:1])
    asked = convert(resolve({"file": "alpaca", "format": "prompts"}, folder)[0], ALPACA[:1])
    assert isinstance(texts[0], PlainText) and texts[0].text == "a\nb"
    assert isinstance(asked[0], Prompt) and asked[0].facts == {"answer": "c"}


def test_text_files_hold_a_row_a_line_and_a_folder_all_its_files(tmp_path):
    (tmp_path / "t.txt").write_bytes("one\r\n\r\ntwo\n".encode("utf-8-sig"))
    (tmp_path / "many").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / "many" / name).write_text(
            '{"instruction": "q", "output": "a"}\n', encoding="utf-8"
        )
    folder = registry(
        tmp_path,
        t={"file_name": "t.txt", "columns": {"prompt": "text"}},
        many={"file_name": "many"},
    )
    (entry,) = resolve("t", folder)
    assert [(row.value["text"], row.origin.line) for row in entry.stream(entry.files[0]).rows] == [
        ("one", 1),
        ("", 2),
        ("two", 3),
    ]
    assert [file.name for file in resolve("many", folder)[0].files] == ["a.jsonl", "b.jsonl"]


def test_a_column_that_no_row_has_is_an_error(tmp_path):
    (entry,) = resolve("history", lay_out(tmp_path))
    entry.check_columns({"q", "a", "past", "sys"})
    with pytest.raises(DataError) as caught:
        entry.check_columns({"q", "a", "sys"})
    assert [(p.code, p.fields["column"]) for p in caught.value.problems] == [("E-DATA-46", "past")]


def test_num_samples_draws_without_repeats_first_and_repeats_itself_every_time():
    assert chosen_rows(4, None) == [0, 1, 2, 3]
    few = chosen_rows(100, 10, "x")
    assert (
        len(set(few)) == 10
        and few == sorted(few) == chosen_rows(100, 10, "x")
        and few != chosen_rows(100, 10, "y")
        and few[-1] > 9
    )
    more = chosen_rows(5, 12, "x")
    assert len(more) == 12 and set(more) == {0, 1, 2, 3, 4}


def test_a_run_reads_names_and_its_report_counts_every_row(tmp_path, renderer):
    folder = lay_out(tmp_path)
    report = inspect(
        DataConfig(train="alpaca, openai", dir=folder, held_out=0), None, refuse=False
    ).report
    assert (report["rows_read"], report["rows_kept"]) == (len(ALPACA) + len(OPENAI), 4 + 5)
    assert {name: entry["count"] for name, entry in report["reasons"].items()} == {
        "no_answer": 1,
        "empty_question": 1,
        "empty_answer": 1,
        "turn_order": 1,
    }
    assert report["notes"]["thinking_off_left_out"] == 3 and any(
        "detailed thinking off" in warning for warning in report["warnings"]
    )
    assert report["format"] == "alpaca (alpaca), openai (openai)"
    pairs = inspect(
        DataConfig(train=["ranked"], dir=folder, held_out="pairs"), renderer, 2000, refuse=False
    )
    assert [type(row) for row in pairs.train_rows] == [Preference] * 2 and [
        row.answer() for row in pairs.held_out_rows
    ] == ["a"]
    with pytest.raises(DataError) as caught:
        inspect(
            DataConfig(
                train="history",
                dir=registry(
                    tmp_path, history={"file_name": "alpaca.json", "columns": {"prompt": "nix"}}
                ),
            ),
            None,
        )
    assert [p.code for p in caught.value.problems] == ["E-DATA-46"]


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1}'])
def test_a_broken_registry_is_named(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        resolve("a", str(tmp_path))
    assert caught.value.problems[0].code == "E-DATA-41"


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"hf_hub_url": "a/b"}, "hf:a/b#train"),
        (
            {"hf_hub_url": "a/b", "file_name": "x.json", "split": "test", "subset": "en"},
            "hf:a/b/en#test",
        ),
        ({"ms_hub_url": "c/d", "hf_hub_url": "a/b"}, "hf:a/b#train"),
        ({"ms_hub_url": "c/d", "om_hub_url": "e/f"}, "modelscope:c/d#train"),
    ],
)
def test_a_set_of_a_hub_is_fetched_and_its_rows_converted(tmp_path, monkeypatch, entry, place):
    (tmp_path / "fetched.jsonl").write_text('{"q": "x"}', encoding="utf-8")
    asked = []
    monkeypatch.setattr(
        "tunewright.data.files.hub.fetch",
        lambda name: asked.append(name) or [tmp_path / "fetched.jsonl"],
    )
    (found,) = resolve("x", registry(tmp_path, x={**entry, "columns": {"prompt": "q"}}))
    assert asked == [place] and found.files == [tmp_path / "fetched.jsonl"]
    assert convert(found, [{"q": "x"}]) == [PlainText("x", Origin("rows.json", 0, 0))]
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    resolve("x", str(tmp_path))
    assert asked[1].startswith("modelscope:c/d") == ("ms_hub_url" in entry)
