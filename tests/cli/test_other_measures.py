"""Exams, tasks, judges and numbers from the command line: what goes together, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from helpers.story import model_folder, rows_file, tunewright
from helpers.stub_server import chat, serving


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    model_folder(folder / "model", max_position_embeddings=1024)
    rows_file(folder / "rows.json")
    question = "what is {},Paris,2026,small,quickly,{}"
    rows = [question.format(i, "ABCD"[i % 4]) for i in range(8)]
    (folder / "own_test.csv").write_text("\n".join(rows), encoding="utf-8")
    draw = random.Random(0)
    with (folder / "machines.jsonl").open("w", encoding="utf-8") as file:
        for i in range(40):
            a, b = draw.randint(1, 99), draw.randint(1, 99)
            row = {"instruction": f"power {a}, weight {b}", "output": str(2 * a + b), "lot": i // 4}
            file.write(json.dumps(row) + "\n")
    return folder


def asked(place: Path, *words: str) -> tuple[int, str, str]:
    done = tunewright("evaluate", "model", *words, "--dtype", "float32", cwd=place)
    return done.returncode, done.stdout, done.stderr


def test_an_exam_is_taken_and_its_answers_are_kept(place: Path, tmp_path: Path) -> None:
    code, text, error = asked(place, "--exam", "own_test.csv", "--out", str(tmp_path / "kept"))
    assert code == 0, error
    assert "of 8; 95 % interval" in text
    assert len((tmp_path / "kept" / "exam.jsonl").read_text().splitlines()) == 8
    code, text, _ = asked(
        place, "--exam", "own_test.csv", "--shots", "0", "--chat", "--json", "--limit", "2"
    )
    found = json.loads(text)
    assert (code, found["exam"]["n"], found["exam"]["chat"]) == (0, 2, True)


def test_numbers_stand_beside_a_formula(place: Path, tmp_path: Path) -> None:
    code, text, error = asked(
        place, "--data", "machines.jsonl", "--max-new-tokens", "4", "--group", "lot", "--json"
    )
    assert code == 0, error
    found = json.loads(text)["numbers"]
    assert found["simple"]["formula"] == "2·power + 1·weight"
    assert found["verdict"] in ("simple", "constant")
    assert found["top_1"]["groups"] == 10
    assert found["top_1"]["simple"] == 1.0
    code, text, _ = asked(
        place, "--data", "machines.jsonl", "--max-new-tokens", "4", "--out", str(tmp_path)
    )
    page = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    assert "without a language model: a linear formula" in page
    assert "a formula gives the values to their last digit: 2·power + 1·weight" in text


def test_a_judge_is_asked_at_an_address(place: Path) -> None:
    with serving(lambda path, body: chat("[[C]]")) as stub:
        code, text, error = asked(
            place, "--data", "rows.json", "--judge", stub.url + "#j", "--limit", "2", "--max-new-tokens", "3"
        )  # fmt: skip
    assert code == 0, error
    assert "tied 2 of 2" in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "E-EXAM-08"),
        (["--data", "rows.json", "--exam", "own_test.csv"], "E-EXAM-08"),
        (["--exam", "own_test.csv", "--lm-eval", "x"], "E-EXAM-08"),
        (["--exam", "own_test.csv", "--options", "a,b"], "E-EXAM-09"),
        (["--exam", "own_test.csv", "--judge", "model"], "E-EXAM-09"),
        (["--exam", "own_test.csv", "--generate"], "E-EXAM-09"),
        (["--exam", "own_test.csv", "--metrics", "f1"], "E-EXAM-09"),
        (["--data", "rows.json", "--shots", "3"], "E-EXAM-09"),
        (["--data", "rows.json", "--against", "model"], "E-EXAM-09"),
        (["--data", "rows.json", "--lowest"], "E-EXAM-09"),
        (["--data", "rows.json", "--tasks-folder", "."], "E-EXAM-09"),
        (["--data", "rows.json", "--judge", "model", "--group", "lot"], "E-EXAM-09"),
        (["--lm-eval", "x", "--exam-language", "zh"], "E-EXAM-09"),
        (["--exam", "nowhere"], "E-DATA-01"),
        (["--exam", "rows.json"], "E-EXAM-01"),
        (["--exam", "own_test.csv", "--shots", "50"], "E-EXAM-03"),
        (["--exam", "own_test.csv", "--exam-language", "de"], "E-EXAM-04"),
        (["--data", "rows.json", "--group", "lot", "--max-new-tokens", "2"], "E-EXAM-10"),
        (["--data", "machines.jsonl", "--group", "nothing", "--max-new-tokens", "2"], "E-EXAM-10"),
    ],
)
def test_what_does_not_go_together_is_refused(place: Path, words: list[str], code: str) -> None:
    exit_code, _, error = asked(place, *words)
    assert exit_code == 2
    assert code in error
