"""A first contract says what the data shows, and can be read by the gate as it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from helpers.building import codes

from tunewright.advise import first_contract
from tunewright.advise.first_contract import seen_in
from tunewright.core.errors import TunewrightError
from tunewright.core.telling import Quiet
from tunewright.evaluate.contract import Contract
from tunewright.evaluate.contract_reading import load
from tunewright.evaluate.gate import gate, tasks_of
from tunewright.evaluate.subjects import FunctionSubject


def rows_of(answers: list[str]) -> list[dict[str, str]]:
    return [{"instruction": f"question {i}", "output": a} for i, a in enumerate(answers)]


def made(folder: Path, answers: list[str], lang: str = "en") -> Contract:
    (folder / "rows.json").write_text(json.dumps(rows_of(answers)), encoding="utf-8")
    path = folder / "contract.yaml"
    first_contract.write(path, str(folder / "rows.json"), lang=lang)
    return load(path)


SENTENCES = [f"This is the answer number {i}, and it is a whole sentence of its own." for i in range(40)]  # fmt: skip
CHINESE = [f"这是第{i}个回答，它本身就是一个完整的句子。" for i in range(40)]
RECORDS = [json.dumps({"name": f"n{i}", "age": i}) for i in range(40)]
LABELS = [("positive", "negative")[i % 2] for i in range(40)]
NUMBERS = [f"{i * 3}" for i in range(40)]


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize(
    ("answers", "metric", "form"),
    [
        (SENTENCES, "f1", {"most_characters"}),
        (CHINESE, "contains", {"most_characters"}),
        (RECORDS, "json_equal", {"json_", "schema_"}),
        (LABELS, "normalised", {"one_of"}),
        (NUMBERS, "number", {"most_characters"}),
    ],
)
def test_the_form_of_the_answers_is_seen(
    tmp_path: Path, answers: list[str], metric: str, form: set[str], lang: str
) -> None:
    contract = made(tmp_path, answers, lang)
    assert contract.must_know[0].metric == metric
    found = {k for k in ("json_", "schema_", "one_of", "most_characters")
             if getattr(contract.form[0], k) not in (None, False, [])}  # fmt: skip
    assert found == form
    tasks_of(contract, tmp_path, None)


def test_languages_keys_labels_and_personal_data_are_seen() -> None:
    assert seen_in(SENTENCES).language == "en" and seen_in(CHINESE).language == "zh"
    assert seen_in(RECORDS).keys == ("age", "name") and set(seen_in(LABELS).labels) == set(LABELS)
    assert seen_in([*SENTENCES, *CHINESE]).language == ""
    assert seen_in(["call lee.wong@hotmail.com"] * 3).personal


def test_held_out_rows_are_those_that_a_run_keeps_apart(tmp_path: Path) -> None:
    from tunewright.core.config import DataConfig
    from tunewright.data import inspect

    contract = made(tmp_path, SENTENCES)
    data = DataConfig(train=str(tmp_path / "rows.json"))
    held = inspect(data, None, needs_tokens=False).held_out_rows
    wanted = {row.answer() for row in held}  # type: ignore[union-attr]
    text = (tmp_path / "contract-rows.jsonl").read_text(encoding="utf-8")
    asked = [json.loads(line)["messages"] for line in text.splitlines()]
    assert {messages[-1]["content"] for messages in asked} == wanted
    assert contract.must_know[0].data == "contract-rows.jsonl"
    assert "keeps apart" in (tmp_path / "contract.yaml").read_text(encoding="utf-8")


def test_small_data_is_asked_whole_and_said_to_be_learnt(tmp_path: Path) -> None:
    made(tmp_path, SENTENCES[:6])
    text = (tmp_path / "contract-rows.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 6
    assert "all 6 rows" in (tmp_path / "contract.yaml").read_text(encoding="utf-8")


def test_a_model_that_answers_as_the_rows_do_keeps_it(tmp_path: Path) -> None:
    answers = [f"{text} It says {i}." for i, text in enumerate(SENTENCES * 10)]
    contract = made(tmp_path, answers)  # 40 rows are kept apart: four would show nothing
    rows = rows_of(answers)
    known = {row["instruction"]: row["output"] for row in rows}
    known |= dict(first_contract.EVERYDAY["en"])

    def answer(messages: Any, seed: int) -> str:
        return known[messages[-1].content]

    good, other = (FunctionSubject(name, answer) for name in "ab")
    assert gate(contract, good, against=other, folder=tmp_path, tell=Quiet())["passed"]
    dumb = FunctionSubject("dumb", lambda messages, seed: "嗯" * 400)
    found = gate(contract, dumb, against=other, folder=tmp_path, tell=Quiet())
    assert {"rows", "everyday", "form"} <= set(found["failed"])


def test_the_command_writes_both_files_and_overwrites_none(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows_of(SENTENCES)), encoding="utf-8")
    words = ["init", str(tmp_path / "rows.json"), "--file", str(tmp_path / "run.yaml")]
    words += ["--contract", str(tmp_path / "c.yaml")]
    done = story.tunewright(*words)
    assert done.returncode == 0 and "tunewright gate" in done.stdout
    assert "# gate: " in (tmp_path / "run.yaml").read_text(encoding="utf-8")
    again = story.tunewright(*words)
    assert again.returncode == 2 and "E-INIT-01" in again.stderr
    words[-1] = str(tmp_path / "other.yaml")
    before = (tmp_path / "run.yaml").read_bytes()
    assert story.tunewright(*words).returncode == 0  # the run file stays
    assert (tmp_path / "run.yaml").read_bytes() == before


def test_rows_without_answers_make_no_contract(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([{"text": "once upon"}] * 3), encoding="utf-8")
    with pytest.raises(TunewrightError) as e:
        first_contract.write(tmp_path / "c.yaml", str(tmp_path / "t.json"))
    assert codes(e.value) == ["E-INIT-02"] and not (tmp_path / "c.yaml").exists()
