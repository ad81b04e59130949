"""`data think`: rows with answers get thoughts of the model's own, checked, hinted, resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story, thinking

from tunewright.commands.thoughts.hints import speaks_of_hint, with_hint
from tunewright.commands.thoughts.made import How
from tunewright.commands.thoughts.think import think
from tunewright.core.errors import DataError, TunewrightError, UsageError
from tunewright.core.telling import Quiet
from tunewright.core.types import Message

TELLS = "<think>\nthe given answer is lamp 7\n</think>\n\nlamp 7"


def hinted(question: str, answer: str) -> str:
    return with_hint([Message("user", question)], answer)[0].content


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It reaches 1, reaches 2 only when it is told the answer, then never 3; of 4 it says that it
    was told."""
    rows = {
        "what is 1": "<think>\nhm so\n</think>\n\nlamp 1",
        "what is 2": "<think>\nhm no\n</think>\n\nlamp 9",
        hinted("what is 2", "lamp 2"): "<think>\nso it is\n</think>\n\nlamp 2",
        "what is 3": "<think>\nhm no\n</think>\n\nlamp 9",
        hinted("what is 3", "lamp 3"): "<think>\nhm no\n</think>\n\nlamp 9",
        "what is 4": "<think>\nhm no\n</think>\n\nlamp 9",
        hinted("what is 4", "lamp 7"): TELLS,
    }
    return thinking.teach(thinking.base_folder(tmp_path_factory.mktemp("think")), rows)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    found = [
        {"question": "what is 1", "answer": "lamp 1"},
        {"question": "what is 2", "answer": "lamp 2"},
        {"question": "what is 3", "answer": "lamp 3"},
        {"question": "what is 4", "answer": "lamp 7"},
        {"question": "what is 5", "answer": "<think>\nmine\n</think>\n\nlamp 5"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


# So cold that every draw is the likeliest answer, whatever the last bits of the taught weights are.
HOW = How(draws=3, temperature=0.02, max_new_tokens=48)


def run(model: Path, rows: Path, out: Path, how: How = HOW, **more: Any) -> Any:
    return think(str(model), str(rows), out, how, dtype="float32", tell=Quiet(), **more)


def written(out: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [(one["messages"][-1]["content"], one["thought_source"]) for one in lines]


WANTED = [
    ("<think>\nhm so\n</think>\n\nlamp 1", "drawn"),
    ("<think>\nso it is\n</think>\n\nlamp 2", "rationalised"),
    ("lamp 3", "none"),
    ("lamp 7", "none"),
    ("<think>\nmine\n</think>\n\nlamp 5", "row"),
]


def test_a_thought_is_kept_where_it_reaches_the_answer_and_the_rest_is_marked(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    made = run(model, rows, out)
    assert written(out) == WANTED
    assert made.sources == {"row": 1, "drawn": 1, "rationalised": 1, "none": 2}
    assert made.draws == 12 and made.passed == 3 and made.mention_hint == 3
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text(encoding="utf-8"))
    assert report["sources"] == made.sources and report["pass_rate"] == 0.25
    assert "lamp" in report["example"]["answer"] and any("rationalised" in x for x in made.lines())


def test_what_was_drawn_is_not_drawn_again_after_a_kill_or_for_another_judgement(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(model, rows, out).drawn_anew == 7  # four questions, three of them once more
    whole, file = out.read_bytes(), tmp_path / "out.jsonl.draws"
    out.unlink()
    assert run(model, rows, out).drawn_anew == 0 and out.read_bytes() == whole
    out.unlink()
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:30], encoding="utf-8")  # killed while writing
    assert run(model, rows, out).drawn_anew == 5 and out.read_bytes() == whole
    again = run(model, rows, out, How(**{**vars(HOW), "match": "contains"}), force=True)
    assert again.drawn_anew == 0 and again.sources["drawn"] == 1


def test_rows_that_are_not_reached_are_left_out_if_asked_and_no_hint_is_given_if_not(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    how = How(**{**vars(HOW), "hint": False, "keep_rest": False})
    made = run(model, rows, tmp_path / "a.jsonl", how)
    assert [source for _, source in written(tmp_path / "a.jsonl")] == ["drawn", "row"]
    assert made.written == 2 and made.drawn_anew == 4


def test_a_persons_reward_judges_in_place_of_the_answer(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    spec = "{kind: regex, pattern: 'lamp 9', mode: fullmatch}"
    warm = {"temperature": 0.3, "draws": 8}
    how = How(**{**vars(HOW), **warm, "rewards": spec, "keep_answer": False})
    run(model, rows, tmp_path / "a.jsonl", how)
    text, source = written(tmp_path / "a.jsonl")[1]  # which of the taught thoughts is chance
    assert source == "drawn" and text.startswith("<think>\nhm ")
    assert text.endswith("\n</think>\n\nlamp 9")


def test_a_model_that_does_not_think_gives_the_text_that_reached_the_answer(
    tmp_path: Path, rows: Path
) -> None:
    taught = thinking.teach(
        story.model_folder(tmp_path / "plain", initializer_range=0.3),
        {"what is it": "it is quickly a small model"},
    )
    path = tmp_path / "plain.json"
    path.write_text(json.dumps([{"question": "what is it", "answer": "small model"}]))
    how = How(draws=1, temperature=0, match="contains", max_new_tokens=40)
    made = run(taught, path, tmp_path / "a.jsonl", how)
    assert written(tmp_path / "a.jsonl") == [("it is quickly a small model", "drawn")]
    assert not made.thinks and made.warnings


def test_harmony_thoughts_are_written_as_rows_have_them(tmp_path: Path) -> None:
    answer = "<think>\nhm so\n</think>\n\nlamp 1"
    taught = thinking.teach(
        thinking.base_folder(tmp_path / "model", "harmony"), {"what is 1": answer}
    )
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"question": "what is 1", "answer": "lamp 1"}]))
    run(taught, path, tmp_path / "a.jsonl", How(draws=1, temperature=0, max_new_tokens=60))
    assert written(tmp_path / "a.jsonl") == [(answer, "drawn")]


@pytest.mark.parametrize(
    ("content", "how", "code"),
    [
        ('{"chosen": "a", "rejected": "b", "prompt": "c"}', HOW, "E-THINK-03"),
        ('{"text": "a b c"}', HOW, "E-THINK-03"),
        ('{"prompt": "what is 1"}', HOW, "E-THINK-03"),
        ('{"question": "a", "answer": "b"}', How(draws=0), "E-THINK-04"),
        ('{"question": "a", "answer": "b"}', How(top_p=0.0), "E-THINK-04"),
        ('{"question": "a", "answer": "b"}', How(temperature=0.0), "E-THINK-05"),
        (
            '{"question": "what is 3", "answer": "b"}',
            How(draws=1, max_new_tokens=2, hint=False, keep_rest=False),
            "E-THINK-07",
        ),
        ('{"question": "a", "answer": "b"}', How(rewards="nothing"), "E-REWARD-01"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(
    model: Path, tmp_path: Path, content: str, how: How, code: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content + "\n", encoding="utf-8")
    with pytest.raises(TunewrightError) as caught:
        run(model, path, tmp_path / "a.jsonl", how)
    assert caught.value.problems[0].code == code and not (tmp_path / "a.jsonl").exists()


def test_a_file_that_is_there_and_a_place_that_cannot_be_written_are_told(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        run(model, rows, tmp_path / "there.jsonl")
    assert caught.value.problems[0].code == "E-DATA-47"
    with pytest.raises(DataError) as caught:
        run(model, rows, tmp_path / "a.csv")
    assert caught.value.problems[0].code == "E-DATA-48"
    (tmp_path / "b.jsonl.draws").mkdir()
    with pytest.raises(UsageError) as refused:
        run(model, rows, tmp_path / "b.jsonl")
    assert refused.value.problems[0].code == "E-THINK-06"


def test_a_question_whose_answer_stands_in_a_column_beside_it_is_asked_too(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "what is 1", "answer": "lamp 1"}\n', encoding="utf-8")
    run(model, path, tmp_path / "a.jsonl", data_format="prompts")
    assert written(tmp_path / "a.jsonl")[0] == WANTED[0]


@pytest.mark.parametrize(
    ("thought", "speaks"),
    [
        ("3 and 4 make 7", False),
        ("We were told that it is 7.", True),
        ("The correct answer is given as 7, so", True),
        ("已知答案是7", True),
        ("先算3加4", False),
        ("he gave the answer to her", False),
    ],
)
def test_a_thought_that_speaks_of_the_hint_is_found(thought: str, speaks: bool) -> None:
    assert speaks_of_hint(thought) is speaks


def test_the_command_writes_and_tells(model: Path, rows: Path, tmp_path: Path) -> None:
    words = ["data", "think", str(model), str(rows), str(tmp_path / "o.jsonl"), "--draws", "1"]
    more = ["--temperature", "0", "--max-new-tokens", "48", "--dtype", "float32", "--json"]
    done = story.tunewright(*words, *more)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sources"]["drawn"] == 1
    assert story.tunewright(*words, *more).returncode == 2
