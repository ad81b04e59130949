"""Column names by flag, by key and by file mean the same."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from tunewright.advise.starting import starter
from tunewright.core.config import DataConfig
from tunewright.core.errors import ConfigError
from tunewright.core.runfile import columns_of, load_run

WANTED = {"instruction": "question", "output": "answer"}


def test_a_flag_takes_pairs_with_commas_or_several_times():
    assert columns_of(["instruction=question,output=answer"]) == WANTED
    assert columns_of(["instruction=question", " output = answer"]) == WANTED
    assert columns_of(["instruction=question, please,output=a=b"]) == {
        "instruction": "question, please",
        "output": "a=b",
    }
    assert columns_of(None) is None and columns_of([]) is None
    for word in ("instruction", "=question", "instruction=", ","):
        with pytest.raises(ConfigError, match="E-CONFIG-15"):
            columns_of([word])


def test_keys_flags_and_files_make_the_same_mapping(tmp_path):
    flags = {"model": "m", "data.train": "d.json"}
    keys = load_run(
        None, ["data.columns.instruction=question", "data.columns.output=answer"], flags
    )
    assert keys.config.data.columns == WANTED and keys.source("data.columns") == "command line"
    assert (
        load_run(
            None, ["data.columns={instruction: question, output: answer}"], flags
        ).config.data.columns
        == WANTED
    )
    assert load_run(None, [], {**flags, "data.columns": WANTED}).config.data.columns == WANTED
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: m\ndata: {train: d.json, columns: {instruction: question, output: text}}\n"
    )
    assert load_run(path, ["data.columns.output=1"]).config.data.columns == {
        "instruction": "question",
        "output": "1",
    }


@pytest.mark.parametrize("command", ["train", "evaluate", "init"])
def test_the_commands_know_the_flag(command):
    from typer.testing import CliRunner

    from tunewright.cli import app

    assert (
        "--columns" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"}).output
    )


def test_init_writes_the_columns_down(write):
    text = starter(write("a.json", [{"question": "q", "answer": "a"}]), columns=WANTED)
    assert yaml.safe_load(text)["data"]["columns"] == WANTED
    assert (
        "columns"
        not in yaml.safe_load(starter(write("b.json", [{"instruction": "q", "output": "a"}])))[
            "data"
        ]
    )


def test_a_wording_without_a_place_is_refused():
    assert DataConfig(train="d", wording="{text} =>").wording == "{text} =>"
    with pytest.raises(ValidationError, match="must contain"):
        DataConfig(train="d", wording="Label:")
