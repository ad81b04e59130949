"""`tunewright doctor` on the command line: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_run import SUMMARY, events, write_run
from helpers.story import tunewright

FLAT = [{**event, "loss": 3.0} for event in events(40, None) if event["event"] == "step"]
WHOLE = {**SUMMARY, "skipped_steps": 0}
IDLE = {
    "summary": {k: v for k, v in WHOLE.items() if not k.startswith("held_out")},
    "events": [{**event, "learning_rate": 1e-9} for event in FLAT],
    "rows": [],
}


@pytest.fixture
def idle(tmp_path: Path) -> Path:
    """A run that learnt nothing at a tiny rate; its model and rows are gone."""
    return write_run(tmp_path / "idle", **IDLE)


def test_what_is_found_is_printed_and_is_no_failure(idle: Path) -> None:
    done = tunewright("doctor", str(idle))
    assert done.returncode == 0, done.stderr
    assert "rate_too_small" in done.stdout
    assert "engine.learning_rate=" in done.stdout
    assert not (idle / "doctor.json").exists()


def test_strict_ends_with_one_where_a_finding_is_bad(idle: Path, tmp_path: Path) -> None:
    assert tunewright("doctor", str(idle), "--strict").returncode == 1
    learnt = write_run(tmp_path / "learnt", summary=WHOLE, events=events(72, None))
    assert tunewright("doctor", str(learnt), "--strict").returncode == 0


def test_json_for_machines(idle: Path) -> None:
    told = json.loads(tunewright("doctor", str(idle), "--json").stdout)
    (found,) = told["findings"]
    assert found["code"] == "rate_too_small"
    assert found["severity"] == "bad"
    assert found["evidence"]["rate"] == 1e-9
    assert found["cause"] and found["remedy"]
    assert "labels_shifted" in told["unchecked"]


def test_the_run_file_stands_for_its_folder(idle: Path) -> None:
    assert "rate_too_small" in tunewright("doctor", str(idle / "run.yaml")).stdout


def test_in_chinese(idle: Path) -> None:
    done = tunewright("doctor", str(idle), TUNEWRIGHT_LANG="zh")
    assert "学习率过小" in done.stdout


@pytest.mark.parametrize("damage", ["summary.json", "events.jsonl", "data_report.json"])
@pytest.mark.parametrize("text", [None, "", "{", "[1, 2]", "\x00\xff"])
def test_a_damaged_run_is_examined_as_far_as_it_can_be_read(
    idle: Path, damage: str, text: str | None
) -> None:
    if text is None:
        (idle / damage).unlink()
    else:
        (idle / damage).write_text(text, encoding="latin-1")
    done = tunewright("doctor", str(idle), "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def refused(*words: str) -> list[str]:
    done = tunewright("doctor", *words, "--json")
    assert done.returncode == 2, done.stdout
    return [one["code"] for one in json.loads(done.stdout)["problems"]]


def test_what_is_no_training_is_refused(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "nowhere")) == ["E-MODEL-01"]
    assert refused("owner/name") == ["E-DOCTOR-01"]
    assert refused(str(tmp_path)) == ["E-DOCTOR-01"]
    file = tmp_path / "file.txt"
    file.write_text("x", encoding="utf-8")
    assert refused(str(file)) == ["E-DOCTOR-01"]


def describe(folder: Path, **keys: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **keys}))
    return folder


def test_an_adapter_that_names_no_base(tmp_path: Path) -> None:
    assert refused(str(describe(tmp_path / "a"))) == ["E-DOCTOR-02"]


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    folder = describe(tmp_path / "a", base_model_name_or_path="./gone")
    assert refused(str(folder)) == ["E-MODEL-01"]
    assert refused(str(folder), "--model", str(tmp_path / "none")) == ["E-MODEL-01"]
