"""Every column of a file is used or named as left: for every format, every file of the hostile
corpus, in workers and from the token cache."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from helpers.hostile import CORPUS

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.core.registry import formats
from tunewright.core.types import Origin
from tunewright.data import inspect
from tunewright.data.checks.driver import check, describe_checked
from tunewright.data.files.reading import stream
from tunewright.data.files.source import RawRow
from tunewright.data.formats.common import Columns, Unusable
from tunewright.data.formats.ledger import Ledger, Seen, is_bookkeeping
from tunewright.data.formats.shaping import shape

HERE = Origin("f.json", 1, 1)
QA = [
    {"role": "user", "content": "What is new?"},
    {"role": "assistant", "content": "Nothing at all."},
]
MORE = {"odd": "a text of its own", "id": 7, "void": None}
"""Columns that no format reads; the prompts format keeps them as facts."""
ROWS = {
    "alpaca": {
        "instruction": "i",
        "input": "n",
        "output": "o",
        "system": "s",
        "history": [["a", "b"]],
        "reasoning": "r",
        "weight": 1,
        "tools": None,
    },
    "messages": {
        "messages": QA,
        "system_prompt": "s",
        "functions": [{"name": "f"}],
        "thinking": "t",
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "cot": "c",
    },
    "prompt_completion": {
        "query": "q",
        "response": "a",
        "history": [["a", "b"]],
        "input": "n",
        "context": "c",
        "A": "x",
        "B": "y",
        "rationale": "r",
    },
    "question_context": {
        "question": "q",
        "context": "c",
        "answers": {"text": ["a"]},
        "solution": "s",
        "choices": ["x", "y"],
    },
    "classification": {"text": "t", "label": 1, "reasoning": "r"},
    "text": {"text": "t", "weight": 2},
    "documents": {"document": "d"},
    "kto": {"prompt": "q", "completion": "a", "kto_tag": True, "history": []},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1, "input": "n"},
    "stepwise": {"prompt": "q", "completions": ["a", "b"], "labels": [True, False], "context": "c"},
    "prompts": {"prompt": "q", "system": "s"},
}


def ledger_of(name: str, *rows: dict) -> Ledger:
    columns = Columns()
    for row in rows:
        formats.get(name).function(row, HERE, columns)
    return columns.ledger


def look(path: str, **more: object) -> dict:
    return inspect(
        DataConfig(train=path, held_out=0, **more), None, needs_tokens=False, refuse=False
    ).report


def test_every_format_is_here():
    assert set(ROWS) == {
        entry.name for entry in formats if entry.function.__module__.startswith("tunewright.")
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_column_is_used_exactly_where_another_value_makes_another_row(name):
    """The oracle knows nothing of the ledger: a used column changes the row when it changes, a left
    one does not."""
    row = ROWS[name] | MORE
    entry = formats.get(name)
    made = entry.function(row, HERE, Columns())
    assert not isinstance(made, Unusable), made
    used = set(ledger_of(name, row).used())
    for column in row:
        others = (
            "zzz",
            5,
            [["c", "d"]],
            ["z", "w"],
            [{"name": "g"}],
            False,
            None,
            [{"role": "user", "content": "z"}, {"role": "assistant", "content": "y"}],
        )
        changed = [entry.function(row | {column: other}, HERE, Columns()) for other in others]
        assert any(one != made for one in changed) == (column in used), column


@pytest.mark.parametrize("name", ROWS)
def test_used_and_left_are_all_columns(name):
    row = ROWS[name] | MORE
    ledger = ledger_of(name, row, {**ROWS[name], "late": "x"}, {"useless": 1}, 3)
    used, unused = ledger.used(), [one["name"] for one in ledger.unused()]
    assert not set(used) & set(unused)
    assert {*used, *unused} == {*row, "late", "useless"}
    if name != "prompts":
        assert {one["name"]: one["why"] for one in ledger.unused()} == {
            "odd": "lesson", "id": "bookkeeping", "void": "empty", "late": "lesson", "useless": "dropped",
        }  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_a_format_reads_is_what_it_says_it_reads(name):
    """`reads` is what messages show and what names in capitals are compared with, so it must not
    lag behind."""
    columns, raw = Columns(), dict(ROWS[name])
    seen = Seen(raw)
    formats.get(name).function.__wrapped__(seen, HERE, columns)
    known = set(formats.get(name).facts["reads"])
    assert {column for column in raw if column in seen.taken and len(column) > 1} <= known


def test_columns_left_now_and_then_are_counted():
    ledger = ledger_of(
        "alpaca",
        {"instruction": "i", "output": "a", "response": "b"},
        {"instruction": "i", "response": "c"},
    )
    assert set(ledger.used()) == {"instruction", "output", "response"}
    (one,) = ledger.unused()
    assert (one["name"], one["rows"], one["of"], one["example"]) == ("response", 1, 2, "b")


def test_a_ledger_in_parts_is_the_whole_ledger():
    rows = [
        {"prompt": f"q{i}", "completion": "a", "note": f"n{i // 3}", "same": "s"} for i in range(9)
    ]
    whole, parts = ledger_of("prompt_completion", *rows), Ledger()
    for start in range(0, 9, 2):
        parts.merge(
            json.loads(json.dumps(ledger_of("prompt_completion", *rows[start : start + 2]).plain()))
        )
    assert parts.plain() == whole.plain() and parts.unused() == whole.unused()
    assert {one["name"]: one["why"] for one in whole.unused()} == {"note": "lesson", "same": "same"}


def test_half_characters_in_names_and_values_do_not_reach_the_report():
    ledger = ledger_of("alpaca", {"instruction": "i", "output": "o", "\ud83d": "x\ud83d"})
    (one,) = ledger.unused()
    assert (one["name"], one["example"]) == ("\\ud83d", "x\\ud83d")
    json.dumps(ledger.unused(), ensure_ascii=False).encode("utf-8")


def test_what_turns_hold_besides_is_named():
    turns = [
        {**QA[0], "mood": "glad"},
        {**QA[1], "stars": 1},
        QA[0],
        {**QA[1], "stars": 0, "id": 3},
    ]
    ledger = ledger_of("messages", {"messages": turns[:2]}, {"messages": turns[2:]})
    assert {one["name"]: one["why"] for one in ledger.unused()} == {
        "turns[].mood": "lesson",
        "turns[].stars": "lesson",
        "turns[].id": "bookkeeping",
    }


def test_a_column_that_repeats_question_and_answer_is_no_loss():
    rows = [
        {
            "instruction": f"Say the number {i}.",
            "output": f"It is {i}.",
            "text": f"### Q: Say the number {i}.\n### A: It is {i}.",
        }
        for i in range(3)
    ]
    assert [one["why"] for one in ledger_of("alpaca", *rows).unused()] == ["copy"]


def test_a_column_that_repeats_a_turn_is_no_loss():
    turns = [
        {"role": "user", "content": "What is the news from town?"},
        {"role": "assistant", "content": "None."},
    ]
    assert [
        one["why"]
        for one in ledger_of(
            "messages", {"messages": turns, "prompt": turns[0]["content"]}
        ).unused()
    ] == ["copy"]


@pytest.mark.parametrize(
    "name",
    [
        "id",
        "source_url",
        "created_at",
        "createdAt",
        "__index_level_0__",
        "num_tokens",
        "uniqueKey",
        "Lang",
        "来源",
    ],
)
def test_bookkeeping_is_told_by_its_name(name):
    assert is_bookkeeping(name)


@pytest.mark.parametrize(
    "name",
    ["explanation", "category", "title", "aspect", "note", "message", "历史", "turns[].mask"],
)
def test_other_names_are_no_bookkeeping(name):
    assert not is_bookkeeping(name)


@pytest.mark.skipif(sys.platform == "win32", reason="the corpus has pipes and links")
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (wanted, _) in CORPUS.items()
        if isinstance(wanted, int) and not name.startswith("long_")
    ],
)
def test_the_sum_holds_for_every_file_of_the_corpus(tmp_path: Path, name: str):
    path = tmp_path / name
    CORPUS[name][1](path)
    try:
        raw = [row.value for row in stream(path).rows]
        columns = look(str(path))["columns"]
    except DataError as error:
        pytest.fail(error.text())
    there = {column for value in raw if isinstance(value, dict) for column in value}
    unused = {one["name"] for one in columns["unused"]}
    assert set(columns["used"]) | unused == there and columns["found"] == len(there)


def test_workers_and_the_cache_tell_the_same(write, renderer, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "question": f"What is {i}?",
            "answer": "a number " * 40,
            "hint": f"count to {i}",
            "url": f"u{i}",
        }
        for i in range(4000)
    ]
    path = write("rows.jsonl", rows)
    assert os.path.getsize(path) > 1 << 20
    config = DataConfig(train=path, held_out=0)
    monkeypatch.setattr("tunewright.data.store.workers.BYTES_PER_WORKER", 1 << 18)
    first = inspect(config, renderer, 64, 0, workers=2, refuse=False).report
    again = inspect(config, renderer, 64, 0, workers=2, refuse=False).report
    assert first["preparation"]["workers"] == 2 and again["preparation"]["from_cache"]
    assert first["columns"] == again["columns"]
    assert [(one["name"], one["why"], one["rows"]) for one in first["columns"]["unused"]] == [
        ("hint", "lesson", 4000),
        ("url", "bookkeeping", 4000),
    ]


def test_a_catalogue_entry_has_a_ledger_too(write):
    write("dataset_info.json", json.dumps({"mine": {"file_name": "rows.json"}}))
    path = write(
        "rows.json",
        [
            {"instruction": f"i{n}", "output": "o", "history": [["a", "b"]], "hint": f"h{n}"}
            for n in range(3)
        ],
    )
    columns = look("mine", dir=str(Path(path).parent))["columns"]
    assert columns["used"] == ["instruction", "output"]
    # Without a `columns` block the entry names no history, as in LLaMA-Factory; here it is said.
    assert [one["name"] for one in columns["unused"]] == ["history", "hint"]


def test_the_check_names_what_is_left_and_takes_it_from_the_score(write):
    rows = [
        {
            "question": f"What is {n}?",
            "answer": f"It is number {n}.",
            "explanation": f"Count to {n}.",
            "id": n,
        }
        for n in range(8)
    ]
    path = write("rows.json", rows)
    checked = check(DataConfig(train=path), None)
    found = {finding.key: finding for finding in checked.findings}
    assert (found["unused_columns"].count, found["unused_columns"].total) == (
        1,
        4,
    ) and checked.score == 100 - 2 - 5
    said = describe_checked(checked)
    assert "`explanation` (for example: Count to 0.)" in said and "`id`" in said
    assert f"{path}:" in found["unused_columns"].places[0]
    quiet = check(
        DataConfig(
            train=write(
                "quiet.json", [{k: v for k, v in row.items() if k != "explanation"} for row in rows]
            )
        ),
        None,
    )
    assert (
        quiet.score == 100
        and "`id`" in describe_checked(quiet)
        and "passed_over" in [finding.key for finding in quiet.findings]
    )


def test_shape_gives_the_ledger_of_its_rows():
    found = shape([RawRow({"prompt": "q", "completion": "a", "hint": "h"}, HERE)])
    assert (
        found.ledger.used() == ["prompt", "completion"]
        and found.ledger.unused()[0]["name"] == "hint"
    )
