"""The first run file: it loads, it says what was found, its settings suit the size of the data, and
it overwrites nothing."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tunewright.advise import starting
from tunewright.core.errors import DataError, UsageError
from tunewright.core.runfile import load_run
from tunewright.engine.schedule import total_steps


def data_of(
    place: Path, count: int, answer: str = "number {i} it is", name: str = "rows.jsonl"
) -> str:
    path = place / name
    rows = [
        {"instruction": f"question {i}?", "output": answer.format(i=i, label=i % 2)}
        for i in range(count)
    ]
    path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    return str(path)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("count", [1, 3, 20, 80, 700])
def test_the_text_loads_and_takes_some_hundred_steps(tmp_path: Path, lang: str, count: int) -> None:
    data = data_of(tmp_path, count)
    starting.write(tmp_path / "run.yaml", starting.starter(data, lang=lang))
    config = load_run(tmp_path / "run.yaml").config
    assert config.data.train == data and config.model == starting.MODEL
    assert config.data.held_out == (0.1 if count >= 20 else 0)
    assert 40 <= total_steps(config.engine, count) <= 1000 or count == 1


def test_three_rows_are_seen_many_times_and_many_rows_once(tmp_path: Path) -> None:
    def look(rows: int) -> starting.Look:
        return starting.Look(rows, 0, "alpaca", (), 50)

    epochs = [starting.epochs_for(look(rows)) for rows in (3, 20, 80, 500, 3000, 10_000, 50_000)]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] >= 30 and epochs[-1] == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_key_has_a_comment_above_it(tmp_path: Path, lang: str) -> None:
    lines = starting.starter(data_of(tmp_path, 30), lang=lang).splitlines()
    for before, line in pairwise(lines):
        if re.match(r"\s*(# )?[a-z_]+: \S", line):
            assert before.lstrip().startswith("#"), line
            assert bool(re.search(r"[\u4e00-\u9fff]", before)) == (lang == "zh"), before


def test_labels_are_recognised_and_shown(tmp_path: Path) -> None:
    text = starting.starter(data_of(tmp_path, 40, "{label}"))
    assert "2 short labels (0 / 1)" in text or "2 short labels (1 / 0)" in text
    assert "short labels" not in starting.starter(data_of(tmp_path, 40))


def test_long_answers_and_unusable_rows_are_said(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(
        json.dumps(
            [{"instruction": "q", "output": "word " * 300}, {"instruction": "q", "output": ""}]
        ),
        encoding="utf-8",
    )
    text = starting.starter(str(path))
    assert "answers are long" in text and "1 rows cannot be used" in text


@pytest.mark.parametrize(
    "name",
    [
        "true.jsonl",
        "a: b.jsonl",
        "# odd.jsonl",
        "数据.jsonl",
        "with space.jsonl",
        "quo\"te'.jsonl",
        "7.jsonl",
        "tab\t.jsonl",
    ],
)
def test_any_file_name_survives_the_yaml(tmp_path: Path, name: str) -> None:
    data = data_of(tmp_path, 3, name=name)
    text = starting.starter(data, "./a: #model")
    assert (
        yaml.safe_load(text)["data"]["train"] == data
        and yaml.safe_load(text)["model"] == "./a: #model"
    )


@pytest.mark.parametrize(
    "text", ["true", "null", "5", "1e3", "-x", "a b", "", "é", "\x7f", ".inf", "12:30", "~"]
)
def test_a_scalar_is_read_back_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"key: {starting.scalar(text)}") == {"key": text}


def test_labels_with_control_characters_do_not_break_the_file(tmp_path: Path) -> None:
    data = data_of(tmp_path, 40, "a\x1b[31m{label}\nx: y")
    assert yaml.safe_load(starting.starter(data))["data"]["train"] == data


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    with pytest.raises(UsageError, match="E-INIT-01"):
        starting.write(path, "new")
    assert path.read_text() == "mine"
    starting.write(tmp_path / "new" / "run.yaml", "text")
    assert (tmp_path / "new" / "run.yaml").read_text() == "text"


def test_data_that_cannot_be_read_is_refused_now(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        starting.starter(str(tmp_path / "absent.json"))
