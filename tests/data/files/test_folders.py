"""A folder as a data set: what its names say is what happens to its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import data_files

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.data import describe, inspect
from tunewright.data.checks.showing import describe_row, show_row
from tunewright.data.converting import convert
from tunewright.data.files.folders import part_of
from tunewright.data.files.reading import find_parts


def rows(first: int, count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"Colour of door {i}?", "completion": f"Door {i} is green."}
        for i in range(first, first + count)
    ]


def put(path: Path, first: int, count: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".parquet", ".arrow"):
        import pyarrow as arrow
        import pyarrow.parquet

        table = arrow.Table.from_pylist(rows(first, count))
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, path)
            return
        with (
            arrow.OSFile(str(path), "wb") as out,
            arrow.ipc.new_stream(out, table.schema) as writer,
        ):
            writer.write_table(table)
        return
    path.write_text("\n".join(map(json.dumps, rows(first, count))), encoding="utf-8")


def doors(found: Any) -> list[int]:
    return sorted(int(row.messages[0].content.split()[-1][:-1]) for row in found)


def looked_at(folder: Path, **keys: Any) -> Any:
    return inspect(DataConfig(train=str(folder), **keys), None, needs_tokens=False, check=False)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train.jsonl", "train"), ("training.csv", "train"), ("train-00000-of-00003.parquet", "train"), ("alpaca_train.json", "train"),
        ("alpaca.train.json.gz", "train"), ("train_sft-00000-of-00001.parquet", "train"), ("trainset.json", "train"), ("Train", "train"),
        ("训练集.jsonl", "train"), ("客服_训练数据.json", "train"), ("train_1_of_3.jsonl", "train"), ("test_suite_train.json", "train"),
        ("valid.jsonl", "valid"), ("validation", "valid"), ("val.json", "valid"), ("dev", "valid"), ("my-eval.tsv", "valid"), ("验证集.csv", "valid"),
        ("validation_matched-00000-of-00001.parquet", "valid"), ("test.jsonl", "test"), ("test_sft", "test"), ("held_out.jsonl", "test"), ("测试.json", "test"),
        ("rows.jsonl", None), ("latest.json", None), ("contest.csv", None), ("validated.json", None), ("trainer.json", None), ("00000.parquet", None),
        ("a.b.jsonl", None), ("2024-01-02.jsonl", None), (".jsonl", None),
    ],
)  # fmt: skip
def test_the_first_or_last_word_of_a_name_says_its_part(name: str, part: str | None) -> None:
    assert part_of(name) == part


LAYOUTS = {
    "files": ("train.jsonl", "valid.jsonl", "test.jsonl"),
    "named": ("doors_train.jsonl", "doors_dev.jsonl", "doors_test.jsonl"),
    "folders": ("train/0.jsonl", "validation/0.jsonl", "test/0.jsonl"),
    "deep": ("train/a/b.jsonl", "val/c.jsonl", "test/d/e.jsonl"),
    "hub": (
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
    ),
    "cache": ("doors-train.arrow", "doors-validation.arrow", "doors-test.arrow"),
    "mixed": ("train/0.jsonl", "eval.jsonl", "heldout.jsonl"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_train_is_trained_on_valid_is_measured_and_test_is_left_alone(
    tmp_path: Path, layout: str
) -> None:
    for number, name in enumerate(LAYOUTS[layout]):
        put(tmp_path / "set" / name, 100 * number, 30 if not number else 4)
    (tmp_path / "set" / "README.md").write_text(
        "---\nlicense: mit\n---\n\n# Doors", encoding="utf-8"
    )
    found = looked_at(tmp_path / "set")
    assert doors(found.train_rows) == [*range(30)] and doors(found.held_out_rows) == [
        100,
        101,
        102,
        103,
    ]
    text = describe(found.report)
    train, valid, test = LAYOUTS[layout]
    assert (
        f"trained on: {train}" in text
        and f"used for measuring: {valid}" in text
        and f"the name says test set: {test}" in text
        and "README.md" in text
    )


def test_held_out_rows_that_a_person_chose_win_over_the_valid_part(tmp_path: Path) -> None:
    put(tmp_path / "set" / "train.jsonl", 0, 30)
    put(tmp_path / "set" / "valid.jsonl", 100)
    put(tmp_path / "mine.jsonl", 200)
    by_count = looked_at(tmp_path / "set", held_out=3)
    assert (
        len(by_count.held_out_rows) == 3
        and max(doors([*by_count.train_rows, *by_count.held_out_rows])) == 29
    )
    assert "rows to measure on: valid.jsonl" in describe(by_count.report)
    assert doors(
        looked_at(tmp_path / "set", held_out=str(tmp_path / "mine.jsonl")).held_out_rows
    ) == [200, 201, 202, 203]
    assert not len(looked_at(tmp_path / "set", held_out=0).held_out_rows)


def test_a_folder_that_is_held_out_gives_its_valid_part_else_its_test_part(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", 0, 30)
    for name, first in (("train.jsonl", 50), ("test.jsonl", 200)):
        put(tmp_path / "set" / name, first)
    assert doors(
        looked_at(tmp_path / "rows.jsonl", held_out=str(tmp_path / "set")).held_out_rows
    ) == [200, 201, 202, 203]
    put(tmp_path / "set" / "dev.jsonl", 100)
    assert doors(
        looked_at(tmp_path / "rows.jsonl", held_out=str(tmp_path / "set")).held_out_rows
    ) == [100, 101, 102, 103]


def test_rows_left_out_of_the_valid_part_are_told_with_their_reason(tmp_path: Path) -> None:
    put(tmp_path / "set" / "train.jsonl", 0, 6)
    (tmp_path / "set" / "valid.jsonl").write_text(
        "\n".join(map(json.dumps, [*rows(100, 2), {"prompt": "Hm?", "completion": ""}])),
        encoding="utf-8",
    )
    found = looked_at(tmp_path / "set")
    assert len(found.held_out_rows) == 2 and found.report["held_out_dropped"] == 1
    (reason,) = found.report["held_out_reasons"].values()
    assert (
        f"held out, 1 left out: {reason['what']} ({tmp_path / 'set' / 'valid.jsonl'}:3)"
        in describe(found.report)
    )


def test_valid_parts_of_several_folders_are_measured_together(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        put(tmp_path / name / "train.jsonl", 1000 * number, 6)
        put(tmp_path / name / "valid.jsonl", 1000 * number + 100, 2)
    found = inspect(
        DataConfig(train=[str(tmp_path / "a"), str(tmp_path / "b")]),
        None,
        needs_tokens=False,
        check=False,
    )
    assert doors(found.held_out_rows) == [100, 101, 1100, 1101] and len(found.train_rows) == 12


def test_a_folder_with_parts_to_measure_with_only_is_refused(tmp_path: Path) -> None:
    for name in ("test.jsonl", "dev.jsonl"):
        put(tmp_path / name, 0)
    with pytest.raises(DataError) as caught:
        data_files(str(tmp_path))
    (problem,) = caught.value.problems
    assert (
        problem.code == "E-DATA-95"
        and "dev.jsonl, test.jsonl" in problem.what()
        and str(tmp_path / "dev.jsonl") in problem.remedy()
    )
    assert [path.name for path in data_files(str(tmp_path / "test.jsonl"))] == [
        "test.jsonl"
    ]  # who names it means it


def test_files_without_a_part_are_trained_on_unless_another_is_named_train(tmp_path: Path) -> None:
    put(tmp_path / "questions.jsonl", 0)
    put(tmp_path / "test.jsonl", 100)
    assert [path.name for path in data_files(str(tmp_path))] == ["questions.jsonl"]
    put(tmp_path / "train.jsonl", 200)
    assert [path.name for path in data_files(str(tmp_path))] == ["train.jsonl"]
    assert "named as the training set: questions.jsonl" in find_parts(str(tmp_path)).said([])


def test_texts_beside_data_are_no_lessons_and_a_folder_of_texts_is(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "LICENSE.txt"):
        (tmp_path / name).write_text("Some words.", encoding="utf-8")
    assert [path.name for path in data_files(str(tmp_path))] == ["LICENSE.txt", "a.txt", "b.md"]
    put(tmp_path / "rows.jsonl", 0)
    assert [path.name for path in data_files(str(tmp_path))] == ["rows.jsonl"]
    assert "text files beside data files: LICENSE.txt, a.txt, b.md" in find_parts(
        str(tmp_path)
    ).said([])


def test_a_readme_above_subfolders_is_no_lesson(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Doors", encoding="utf-8")
    for name in ("en", "zh"):
        put(tmp_path / name / "0.jsonl", 0)
    with pytest.raises(DataError) as caught:
        data_files(str(tmp_path))
    (problem,) = caught.value.problems
    assert (
        problem.code == "E-DATA-96"
        and "en, zh" in problem.what()
        and str(tmp_path / "en") in problem.remedy()
    )


def test_other_subfolders_are_named_and_hidden_files_and_checkpoints_are_not_data(
    tmp_path: Path,
) -> None:
    put(tmp_path / "rows.jsonl", 0)
    put(tmp_path / "old" / "rows.jsonl", 100)
    for name in (
        ".cache/rows.jsonl",
        "checkpoint-5/trainer_state.json",
        ".rows.jsonl",
        "config.json",
        "tokenizer.json",
        "dataset_infos.json",
    ):
        put(tmp_path / name, 200)
    found = find_parts(str(tmp_path))
    assert (
        [path.name for path in found.train] == ["rows.jsonl"]
        and "subfolders: old" in found.said([])
        and "checkpoint" not in found.said([])
    )


def saved(folder: Path, first: int, split: str) -> None:
    """A folder as `Dataset.save_to_disk` of datasets 4 lays it out."""
    put(folder / "data-00000-of-00001.arrow", first)
    put(folder / "cache-1a2b3c.arrow", first + 500)
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
        "_fingerprint": "f",
        "_format_columns": None,
        "_split": split,
    }
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}), encoding="utf-8")


def test_a_set_saved_by_the_datasets_library_is_what_its_state_lists(tmp_path: Path) -> None:
    saved(tmp_path / "one", 0, "train")
    assert doors(looked_at(tmp_path / "one").train_rows) == [0, 1, 2, 3]
    for name, first in (("train", 10), ("test", 20), ("validation", 30)):
        saved(tmp_path / "many" / name, first, name)
    (tmp_path / "many" / "dataset_dict.json").write_text(
        '{"splits": ["train", "test", "validation"]}', encoding="utf-8"
    )
    found = looked_at(tmp_path / "many")
    assert doors(found.train_rows) == [10, 11, 12, 13] and doors(found.held_out_rows) == [
        30,
        31,
        32,
        33,
    ]


def test_show_and_convert_say_which_part_they_took(tmp_path: Path) -> None:
    put(tmp_path / "set" / "train.jsonl", 0)
    put(tmp_path / "set" / "test.jsonl", 100)
    shown = show_row(DataConfig(train=str(tmp_path / "set"), held_out=0), None, 1)
    assert "the name says test set: test.jsonl" in describe_row(shown)
    made = convert(str(tmp_path / "set"), tmp_path / "out.jsonl", "messages")
    assert made.rows_written == 4 and "the name says test set: test.jsonl" in "\n".join(
        made.lines()
    )


def test_a_measurement_of_a_folder_takes_what_is_named_for_it(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", 0)
    put(tmp_path / "test.jsonl", 100)
    found = inspect(
        DataConfig(train=str(tmp_path), held_out=0), None, needs_tokens=False, to_train=False
    )
    assert doors(found.train_rows) == [
        100,
        101,
        102,
        103,
    ] and "used for measuring: test.jsonl" in describe(found.report)
    assert "the name says training set: train.jsonl" in describe(found.report)


# ---- a file that is one object around its rows


def wrapped(path: Path, value: Any, indent: int | None = None) -> str:
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "key", ["data", "train", "rows", "examples", "Items", "instances", "whatever"]
)
def test_rows_under_a_key_are_read_and_the_key_is_said(
    tmp_path: Path, key: str, indent: int | None
) -> None:
    about = {} if key == "whatever" else {"version": "1.1", "info": {"by": ["a"]}}
    place = wrapped(tmp_path / "w.json", {**about, key: rows(0, 3)}, indent)
    found = looked_at(Path(place))
    assert doors(found.train_rows) == [0, 1, 2] and f"under its key `{key}`" in describe(
        found.report
    )
    if indent:
        assert [row.origin.line for row in found.train_rows] == [
            line + (6 if about else 0) for line in (3, 7, 11)
        ]


def test_lists_of_a_file_that_are_named_as_parts_are_parts(tmp_path: Path) -> None:
    place = wrapped(
        tmp_path / "w.json",
        {"train": rows(0, 30), "validation": rows(100, 4), "test": rows(200, 4)},
    )
    found = looked_at(Path(place))
    assert doors(found.train_rows) == [*range(30)] and doors(found.held_out_rows) == [
        100,
        101,
        102,
        103,
    ]
    text = describe(found.report)
    assert (
        "under its key `train`; other lists of rows in it: validation, test" in text
        and "used for measuring: the rows of" in text
    )
    assert doors(looked_at(Path(place), held_out=0).train_rows) == [*range(30)]
    put(tmp_path / "rows.jsonl", 300)
    assert doors(looked_at(tmp_path / "rows.jsonl", held_out=place).held_out_rows) == [
        100,
        101,
        102,
        103,
    ]
    with pytest.raises(DataError, match="E-DATA-95"):
        looked_at(Path(wrapped(tmp_path / "t.json", {"test": rows(0, 3), "dev": rows(3, 3)})))


def test_two_lists_that_could_be_meant_are_asked_about(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        looked_at(Path(wrapped(tmp_path / "w.json", {"data": rows(0, 3), "examples": rows(5, 3)})))
    (problem,) = caught.value.problems
    assert (
        problem.code == "E-DATA-97"
        and "`data`" in problem.what()
        and "`examples`" in problem.what()
    )


def test_an_object_that_is_a_row_is_no_wrapper(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Yes."}]
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    for row in (
        {"messages": turns},
        {"messages": turns, "tools": tools},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ):
        found = looked_at(Path(wrapped(tmp_path / "r.json", row)))
        assert len(found.train_rows) == 1 and found.report["parts"] == []


@pytest.mark.parametrize(
    "table",
    [
        {"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": None}},
        {"prompt": ["a", "b"], "completion": ["c", "d"]},
    ],
    ids=["pandas", "lists"],
)
def test_a_table_written_column_by_column_is_refused_with_the_way_to_write_rows(
    tmp_path: Path, table: dict[str, Any]
) -> None:
    with pytest.raises(DataError) as caught:
        looked_at(Path(wrapped(tmp_path / "t.json", table)))
    (problem,) = caught.value.problems
    assert (
        problem.code == "E-DATA-98"
        and "prompt, completion" in problem.what()
        and "records" in problem.remedy()
    )


def test_what_the_datasets_library_saves_is_read_as_it_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sets = {
        name: datasets.Dataset.from_list(rows(first, count))
        for name, first, count in (("train", 0, 30), ("test", 100, 4), ("validation", 200, 4))
    }
    datasets.DatasetDict(sets).save_to_disk(str(tmp_path / "many"))
    sets["train"].save_to_disk(str(tmp_path / "one"), num_shards=3)
    again = datasets.load_from_disk(str(tmp_path / "one"))
    again.map(
        lambda row: {"prompt": row["prompt"].replace("door ", "door 9")}
    )  # leaves a cache beside the data
    assert (
        doors(looked_at(tmp_path / "one", held_out=0).train_rows)
        == [*range(30)]
        == sorted(int(row["prompt"].split()[-1][:-1]) for row in again)
    )
    found = looked_at(tmp_path / "many")
    assert doors(found.train_rows) == [*range(30)] and doors(found.held_out_rows) == [
        200,
        201,
        202,
        203,
    ]
