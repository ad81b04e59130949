"""A file of prompts: every row its answer in its place, whatever happened on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import serving, story
from helpers.serving import FACTS

from tunewright.core.errors import UsageError
from tunewright.core.telling import Quiet
from tunewright.core.types import Message
from tunewright.serve import batching
from tunewright.serve.answering import open_target
from tunewright.serve.batch_command import batch


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    base = serving.base_folder(folder / "base")
    serving.taught_run(folder / "red", base, FACTS["red"])
    return folder


def written(path: Path, rows: list[Any]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def run(place: Path, rows: list[Any], out: Path, **settings: Any) -> list[dict[str, Any]]:
    prompts = written(out.with_suffix(".prompts"), rows)
    how = {"temperature": 0, "seed": 0, "max_tokens": 12, **settings}
    batch(str(place / "red"), prompts, out, Quiet(), how, dtype="float32")
    return read(out)


def test_a_json_list_is_rows_and_an_input_belongs_to_its_instruction(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate", "input": "good day", "output": "old"}, "[a bracket",
    ]  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    found = batching.read_rows(tmp_path / "list.json", {}, "")
    assert [row.body["messages"][0]["content"] for row in found] == ["Translate\ngood day", rows[1]]


Q, A = "what is the capital", "Paris"
ASKED = {"role": "user", "content": Q}
TOLD = {"role": "system", "content": "Be brief."}
AS_DATA: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "the answer of a dialogue is not asked": (
        {"messages": [TOLD, ASKED, {"role": "assistant", "content": A}]}, [TOLD, ASKED],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}, [ASKED],
    ),
    "system and history": (
        {"instruction": Q, "output": A, "system": "Be brief.", "history": [["hello", "good day"]]},
        [TOLD, {"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}, ASKED],
    ),
    "a system prompt without an answer": ({"prompt": Q, "system": "Be brief."}, [TOLD, ASKED]),
    "a context": ({"context": "Of France.", "question": Q}, [{"role": "user", "content": f"Of France.\n\n{Q}"}]),
    "a pair": (
        {"prompt": [ASKED], "chosen": [{"role": "assistant", "content": A}], "rejected": [{"role": "assistant", "content": "no"}]},
        [ASKED],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", AS_DATA)
def test_a_row_of_data_asks_what_evaluate_asks(form: str, tmp_path: Path) -> None:
    from tunewright.evaluate.asked import read_questions

    row, wanted = AS_DATA[form]
    (found,) = batching.read_rows(written(tmp_path / "rows.jsonl", [row]), {}, "")
    assert found.body["messages"] == wanted
    if "output" in row or "conversations" in row or "messages" in row:
        (question,) = read_questions(str(tmp_path / "rows.jsonl")).questions
        assert [{"role": m.role, "content": m.content} for m in question.messages] == wanted


def test_a_table_is_rows_and_not_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'question,answer\n"{Q}",{A}\n', encoding="utf-8")
    (found,) = batching.read_rows(tmp_path / "a.csv", {}, "")
    assert found.body["messages"] == [ASKED] and found.given == {"question": Q, "answer": A}


def test_rows_of_every_form_are_answered_in_their_order(place: Path, tmp_path: Path) -> None:
    asked = "what is the capital"
    body = {"messages": [{"role": "user", "content": asked}], "max_tokens": 12}
    rows = [
        {"prompt": asked, "id": 7},
        asked,
        {"question": "who learns"},
        {"instruction": "who learns", "answer": "is kept", "usage": 3},
        {"messages": [{"role": "user", "content": asked}]},
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"prompt": "word " * 2000},
        {"messages": [{"role": "user", "content": asked}], "response_format": {"type": "odd"}},
        {"prompt": asked, "response_format": {"type": "odd"}},
        {"messages": ["not a message"]},
        {"prompt": "one \u2028 line \x85 of several"},
    ]
    found = run(place, rows, tmp_path / "out.jsonl")
    red = FACTS["red"]
    assert found.pop()["prompt"] == rows[-1]["prompt"]
    assert [row.get("answer") for row in found] == [
        *(red[asked], red[asked], red["who learns"], red["who learns"], red[asked]),
        *(None, None, None, None, None),
    ]
    assert (found[3]["given_answer"], found[3]["given_usage"]) == ("is kept", 3)
    assert found[0]["id"] == 7 and found[0]["usage"]["completion_tokens"] > 0
    openai = found[5]
    assert openai["custom_id"] == "a" and openai["error"] is None
    assert openai["response"]["body"]["choices"][0]["message"]["content"] == red[asked]
    assert "context" in found[6]["error"] and "response_format" in found[7]["error"]
    assert "response_format" in found[8]["error"] and "messages" in found[9]["error"]
    assert not list(tmp_path.glob("*.part"))
    alone = open_target(str(place / "red"), Quiet(), dtype="float32", device="cpu")
    assert found[0]["answer"] == alone.ask([Message("user", asked)], max_new_tokens=12).text


def test_draws_are_the_same_at_every_run_and_differ_by_row(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a small model"}] * 6
    how = {"temperature": 2.0, "n": 2}
    one, two = (run(place, rows, tmp_path / name, **how) for name in ("one", "two"))
    assert one == two and len({row["answer"] for row in one}) > 2
    assert all(len(row["answers"]) == 2 for row in one)
    assert run(place, rows, tmp_path / "three", **how, **{"seed": 9}) != one


def test_a_batch_that_was_stopped_goes_on_where_it_was(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"who learns {i}"} for i in range(20)]
    whole = run(place, rows, tmp_path / "whole")
    answers = batching._Work.answers

    def stops(self: Any, todo: list[Any], stop: Any) -> Any:
        for i, line in enumerate(answers(self, todo, stop)):
            if i == 7:
                raise KeyboardInterrupt
            yield line

    with monkeypatch.context() as patch:
        patch.setattr(batching._Work, "answers", stops)
        with pytest.raises(KeyboardInterrupt):
            run(place, rows, tmp_path / "out")
    part = tmp_path / "out.part"
    assert not (tmp_path / "out").exists() and len(read(part)) == 7
    # The last line was cut by whoever killed it.
    text = part.read_text(encoding="utf-8")
    part.write_text(text[:-20], encoding="utf-8")
    asked: list[int] = []

    def counts(self: Any, todo: list[Any], stop: Any) -> Any:
        asked.append(len(todo))
        return answers(self, todo, stop)

    monkeypatch.setattr(batching._Work, "answers", counts)
    assert run(place, rows, tmp_path / "out") == whole and asked == [14]


def test_answers_of_other_settings_are_not_taken_for_these(place: Path, tmp_path: Path) -> None:
    rows, out = [{"prompt": "who learns"}], tmp_path / "out"
    (tmp_path / "out.part").write_text('{"key": "of another", "reply": {}}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="E-BATCH-04"):
        run(place, rows, out)
    (tmp_path / "out.part").unlink()
    found = run(place, rows, out)
    with pytest.raises(UsageError, match="E-BATCH-03"):
        run(place, rows, out)
    assert read(out) == found
    prompts = str(out.with_suffix(".prompts"))
    same = story.tunewright("batch", str(place / "red"), prompts, prompts)
    assert same.returncode == 2 and "E-BATCH-03" in same.stderr


def test_what_asks_nothing_is_said_before_a_model_is_read(tmp_path: Path) -> None:
    prompts = written(tmp_path / "p.jsonl", [{"prompt": "x"}, {"answer": "y"}, {"prompt": ""}, 7])
    done = story.tunewright("batch", "no-such-model", str(prompts), str(tmp_path / "out"))
    assert done.returncode == 2 and "p.jsonl:2" in done.stderr and "p.jsonl:3" in done.stderr
    prompts.write_text('{"prompt": "x"}\n{"prompt": \n', encoding="utf-8")
    done = story.tunewright("batch", "no-such-model", str(prompts), str(tmp_path / "out"))
    assert "E-BATCH-02" in done.stderr and "p.jsonl:2" in done.stderr
    for text in (b"", b"\n\n", b"\xff\xfe\x00"):
        prompts.write_bytes(text)
        done = story.tunewright("batch", "no-such-model", str(prompts), str(tmp_path / "out"))
        assert done.returncode == 2 and "E-BATCH-01" in done.stderr
    done = story.tunewright("batch", "no-such-model", "none.jsonl", str(tmp_path / "out"))
    assert done.returncode == 2 and "E-DATA-01  none.jsonl: no such file" in done.stderr
    prompts.write_text("x", encoding="utf-8")
    (tmp_path / "schema").write_text("[]", encoding="utf-8")
    words = ["batch", "no-such-model", str(prompts), str(tmp_path / "out")]
    done = story.tunewright(*words, "--schema", str(tmp_path / "schema"))
    assert done.returncode == 2 and "E-BATCH-05" in done.stderr


def test_the_command_writes_answers_of_a_schema_and_says_what_failed(
    place: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance")
    schema = {"enum": ["yes", "no"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    prompts = written(tmp_path / "p.jsonl", ["who learns", {"prompt": "word " * 2000}])
    words = ["batch", str(place / "red"), str(prompts), str(tmp_path / "out"), "--json"]
    done = story.tunewright(*words, "--schema", str(tmp_path / "schema.json"))
    assert done.returncode == 1 and json.loads(done.stdout)["failed"] == 1
    assert json.loads(read(tmp_path / "out")[0]["answer"]) in ("yes", "no")


@pytest.mark.thorough
def test_a_batch_that_is_killed_leaves_no_half_file(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"who learns {i}", "max_tokens": 1} for i in range(400)]
    for row in rows:
        del row["max_tokens"]
    prompts, out = written(tmp_path / "p.jsonl", rows), tmp_path / "out.jsonl"
    words = [str(place / "red"), str(prompts), str(out), "--max-tokens", "40", "--at-once", "4"]
    env = {**os.environ, "TUNEWRIGHT_LANG": "en", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tunewright", "batch", *words]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        part, size = tmp_path / "out.jsonl.part", 0
        while process.poll() is None:
            now = part.stat().st_size if part.exists() else 0
            if size and now > size + 2000:
                process.send_signal(number)
                break
            size, _ = now or size, time.sleep(0.02)
        process.wait()
        assert not out.exists() and part.exists()
    assert subprocess.run(command, env=env, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert len(read(out)) == 400 and not part.exists()
