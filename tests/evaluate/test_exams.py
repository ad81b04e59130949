"""Multiple-choice exams: every form they are handed out in is read, and what is measured equals
lm-eval's own figures on the same files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.building import codes
from helpers.story import model_folder

from tunewright.core.errors import DataError, TunewrightError
from tunewright.core.telling import Quiet
from tunewright.evaluate import exams
from tunewright.evaluate.continuations import Scorer
from tunewright.evaluate.exam_files import LETTERS, read_exam
from tunewright.evaluate.exams import lines, take_exam

WORDS = ["capital", "Paris", "2026", "model", "small", "quickly", "France", "learns"]


def question(i: int, chinese: bool = False) -> tuple[str, list[str], str]:
    """(question, choices, letter)."""
    text = f"what is {WORDS[i % 8]} {i}?" if not chinese else f"第{i}题，首都是哪里？"
    return text, [f"{WORDS[(i + k) % 8]}, {k}" for k in range(4)], LETTERS[i * 5 % 4]


def rows(count: int, start: int = 0, chinese: bool = False) -> list[list[str]]:
    made = (question(i, chinese) for i in range(start, start + count))
    return [[text, *choices, letter] for text, choices, letter in made]


def write_csv(path: Path, table: list[list[str]], header: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), *table])
    return path


def mmlu(folder: Path, subjects: tuple[str, ...] = ("anatomy", "us_foreign_policy")) -> Path:
    for n, subject in enumerate(subjects):
        write_csv(folder / "dev" / f"{subject}_dev.csv", rows(5, 100 * n + 50))
        write_csv(folder / "val" / f"{subject}_val.csv", rows(3, 100 * n + 70))
        write_csv(folder / "test" / f"{subject}_test.csv", rows(6 + n, 100 * n))
    return folder


def ceval(folder: Path) -> Path:
    header = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
    for split, count in (("dev", 5), ("val", 6)):
        table = [
            [str(i), *row, "because"] for i, row in enumerate(rows(count, len(split) * 9, True))
        ]
        write_csv(folder / split / f"law_{split}.csv", table, header)
    table = [[str(i), *row[:-1]] for i, row in enumerate(rows(4, 3, True))]
    write_csv(folder / "test" / "law_test.csv", table, header[:-2])
    return folder


def cmmlu(folder: Path) -> Path:
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    for split, count in (("dev", 5), ("test", 6)):
        table = [[str(i), *row] for i, row in enumerate(rows(count, len(split) * 9, True))]
        write_csv(folder / split / "agronomy.csv", table, header)
    return folder


FOLDERS = {"mmlu": mmlu, "ceval": ceval, "cmmlu": cmmlu}


# ---- reading


@pytest.mark.parametrize(
    ("form", "split", "subjects"),
    [
        ("mmlu", "test", {"anatomy": 6, "us_foreign_policy": 7}),
        ("ceval", "val", {"law": 6}),
        ("cmmlu", "test", {"agronomy": 6}),
    ],
)
def test_every_exam_is_told_by_its_files(
    tmp_path: Path, form: str, split: str, subjects: dict[str, int]
) -> None:
    (tmp_path / "README.md").write_text("An exam.\n", encoding="utf-8")
    (tmp_path / "dataset_infos.json").write_text('{"about": {"rows": 3}}', encoding="utf-8")
    write_csv(tmp_path / "auxiliary_train" / "race.csv", rows(3))
    exam = read_exam(str(FOLDERS[form](tmp_path)))
    assert (exam.kind, exam.split) == (form, split)
    assert {s.name: len(s.items) for s in exam.subjects} == subjects
    assert {len(s.examples) for s in exam.subjects} == {5}
    assert exam.left_out == {}  # C-Eval's test, which has no answers, is not what is asked
    item = exam.subjects[0].items[1]
    expected = question({"mmlu": 1, "ceval": 28, "cmmlu": 37}[form], form != "mmlu")
    assert (item.question, list(item.choices), LETTERS[item.right]) == expected
    assert exam.names(exam.subjects[0].name)[1] != []


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("place", ["anatomy/{0}-00000-of-00001", "{0}/anatomy", "anatomy_{0}"])
def test_the_hubs_files_are_read(tmp_path: Path, ending: str, place: str) -> None:
    for split, start, count in (("test", 0, 6), ("dev", 50, 5)):
        table = [
            {"question": q, "subject": "anatomy", "choices": c, "answer": LETTERS.index(a)}
            for q, c, a in (question(i) for i in range(start, start + count))
        ]
        path = tmp_path / f"{place.format(split)}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
        elif ending == "json":
            path.write_text(json.dumps(table), encoding="utf-8")
        else:
            path.write_text("\n".join(map(json.dumps, table)), encoding="utf-8")
    hub = read_exam(str(tmp_path))
    own = read_exam(str(mmlu(tmp_path / "own", ("anatomy",))))

    def said(exam: Any) -> Any:
        return [
            [(i.question, i.choices, i.right) for i in part]
            for s in exam.subjects
            for part in (s.items, s.examples)
        ]

    assert said(hub) == said(own)
    assert [s.name for s in hub.subjects] == ["anatomy"]


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": "B"}, 1),
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, 1),
        ({"question": "q", "choices": ["x", "y"], "answer": "1"}, 1),
        ({"question": "q", "choices": ["x", "y"], "answer": "y"}, 1),
        ({"question": "q", "choices": ["x", "y"], "answer": " (b). "}, 1),
        ({"question": "q", "options": list("klmnopqrst"), "answer": "J", "answer_index": 9}, 9),
        (
            {
                "question": "q",
                "choices": {"text": ["x", "y"], "label": ["1", "2"]},
                "answerKey": "2",
            },
            1,
        ),
        ({"question": "q", "choices": {"A": "x", "B": "y"}, "answer": "B"}, 1),
        ({"question": "q", "A": "x", "B": "y", "C": "", "answer": "b"}, 1),
        ({"Question": "q", "A": "x", "B": "y", "C": "z", "D": "u", "Answer": "D"}, 3),
    ],
)
def test_answers_are_indices_letters_labels_or_the_choice(
    tmp_path: Path, row: dict[str, Any], right: int
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    assert read_exam(str(path)).subjects[0].items[0].right == right


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "", "choices": ["x", "y"], "answer": 0}, "no_question"),
        ({"question": 3, "choices": ["x", "y"], "answer": 0}, "no_question"),
        (["q"], "no_question"),
        ({"question": "q", "choices": ["x"], "answer": 0}, "no_choices"),
        ({"question": "q", "choices": ["x"] * 27, "answer": 0}, "no_choices"),
        ({"question": "q", "choices": ["x", "y"]}, "no_answer"),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "unknown_answer"),
        ({"question": "q", "choices": ["x", "y"], "answer": "C"}, "unknown_answer"),
        ({"question": "q", "choices": ["x", "y"], "answer": True}, "unknown_answer"),
        ({"question": "q", "choices": ["x", "x"], "answer": "x"}, "unknown_answer"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(tmp_path: Path, row: Any, reason: str) -> None:
    path = tmp_path / "own.jsonl"
    good = {"question": "q", "choices": ["x", "y"], "answer": 0}
    path.write_text(json.dumps(good) + "\n" + json.dumps(row), encoding="utf-8")
    assert read_exam(str(path)).left_out == {reason: [f"{path}:2"]}


def test_a_file_finds_its_examples_beside_it(tmp_path: Path) -> None:
    mmlu(tmp_path)
    exam = read_exam(str(tmp_path / "test" / "anatomy_test.csv"))
    assert [(s.name, len(s.items), len(s.examples)) for s in exam.subjects] == [("anatomy", 6, 5)]
    flat = tmp_path / "flat"
    for split in ("test", "dev"):
        write_csv(flat / f"anatomy_{split}.csv", rows(4))
    assert len(read_exam(str(flat / "anatomy_test.csv")).subjects[0].examples) == 4


def test_the_hubs_all_does_not_repeat_the_subjects(tmp_path: Path) -> None:
    for name in ("anatomy", "all"):
        table = [{"question": q, "choices": c, "answer": a} for q, c, a in map(question, range(4))]
        path = tmp_path / name / "test.jsonl"
        path.parent.mkdir()
        path.write_text("\n".join(map(json.dumps, table)), encoding="utf-8")
    assert [(s.name, len(s.items)) for s in read_exam(str(tmp_path)).subjects] == [("anatomy", 4)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16"])
def test_files_of_every_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    path = cmmlu(tmp_path) / "test" / "agronomy.csv"
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    item = read_exam(str(tmp_path)).subjects[0].items[1]
    assert item.question == question(37, True)[0]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.csv", "name,age\nx,3\n", "E-EXAM-02"),
        ("a.csv", "q,x,y,z,u,E\n", "E-EXAM-02"),
        ("a.csv", "\n", "E-EXAM-01"),
        ("a.csv", "id,question,A,B,C,D\n0,q,x,y,z,u\n", "E-EXAM-01"),
        ("a.jsonl", '{"text": "hello"}', "E-EXAM-01"),
        ("a.json", "[]", "E-DATA-06"),
        ("a.txt.png", "x", "E-EXAM-01"),
        ("none", None, "E-DATA-01"),
    ],
)
def test_what_is_no_exam_is_said(tmp_path: Path, name: str, content: str | None, code: str) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_exam(str(path if name != "a.txt.png" else path.parent))
    assert codes(caught.value) == [code]


# ---- asking


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    return model_folder(place, initializer_range=0.2, max_position_embeddings=2048)


def take(model: Path, exam: Path, **how: Any) -> dict[str, Any]:
    how = {"dtype": "float32", "device": "cpu", "threads": 1, "tell": Quiet(), **how}
    return take_exam(str(model), str(exam), **how)


def harness(model: Path, tasks: Path, shots: int) -> dict[str, list[tuple[list[float], int]]]:
    """The oracle: lm-eval's own model and tasks. Task -> (scores, right) of each question."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = sorted(path.stem for path in tasks.glob("*.yaml"))
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=1),
        tasks=names,
        num_fewshot=shots,
        task_manager=manager,
        bootstrap_iters=0,
    )
    return {
        name: [
            ([float(score) for score, _ in one["filtered_resps"]], one["target"])
            for one in sorted(found["samples"][name], key=lambda one: one["doc_id"])
        ]
        for name in names
    }


def task(form: str, exam: Path, out: Path, subject: str, description: str) -> None:
    """A task file as lm-eval has for this exam, on these files."""
    import yaml

    split = "val" if form == "ceval" else "test"
    name = "Question" if form == "cmmlu" else "question"
    end = "Answer:" if form == "mmlu" else "答案："
    data = {}
    for ours, theirs in (("dev", "dev"), (split, "test")):
        path = exam / ours / (f"{subject}.csv" if form == "cmmlu" else f"{subject}_{ours}.csv")
        table = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        head = table.pop(0) if form != "mmlu" else ["question", "A", "B", "C", "D", "answer"]
        made = out.parent / f"{form}-{subject}-{theirs}.jsonl"
        made.write_text(
            "\n".join(json.dumps(dict(zip(head, r, strict=True))) for r in table), encoding="utf-8"
        )
        data[theirs] = str(made)
    choices = "\n".join(f"{c}. {{{{{c}}}}}" for c in "ABCD")
    answer = "Answer" if form == "cmmlu" else "answer"
    config = {
        "task": f"{form}_{subject}", "dataset_path": "json", "dataset_kwargs": {"data_files": data},
        "test_split": "test", "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}, "output_type": "multiple_choice",
        "doc_to_text": f"{{{{{name}.strip()}}}}\n{choices}\n{end}", "doc_to_choice": list("ABCD"),
        "doc_to_target": f"{{{{['A', 'B', 'C', 'D'].index({answer})}}}}", "description": description,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    out.mkdir(exist_ok=True)
    (out / f"{form}_{subject}.yaml").write_text(
        yaml.safe_dump(config, allow_unicode=True), encoding="utf-8"
    )


ABOUT = {
    "mmlu": ("us_foreign_policy", "The following are multiple choice questions (with answers) about us foreign policy.\n\n"),
    "ceval": ("law", "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"),
    "cmmlu": ("agronomy", "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n"),
}  # fmt: skip


@pytest.mark.parametrize("shots", [0, 5])
def test_scores_and_decisions_equal_lm_evals(
    model: Path, tmp_path: Path, shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    for form in FOLDERS:
        task(form, FOLDERS[form](tmp_path / form), tmp_path / "tasks", *ABOUT[form])
    oracle = harness(model, tmp_path / "tasks", shots)
    for form, (subject, _) in ABOUT.items():
        found = take(model, tmp_path / form, shots=shots, details=True)
        ours = [row for row in found["rows"] if row["subject"] == subject]
        theirs = oracle[f"{form}_{subject}"]
        assert len(ours) == len(theirs) > 5
        for row, (scores, right) in zip(ours, theirs, strict=True):
            assert row["scores"] == pytest.approx(scores, abs=1e-6, rel=1e-6)
            assert row["answer"] == LETTERS[int(right)]
            assert row["chosen"] == LETTERS[max(range(4), key=lambda i: (scores[i], -i))]
        share = next(one for one in found["exam"]["subjects"] if one["subject"] == subject)
        rights = sum(max(range(4), key=lambda i: (s[i], -i)) == int(right) for s, right in theirs)
        assert (share["right"], share["n"]) == (rights, len(theirs))


def test_a_long_subject_is_asked_in_parts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "anatomy_test.csv", rows(11))
    whole = take(model, path, details=True)
    monkeypatch.setattr(exams, "AT_ONCE", 4)
    parts = take(model, path, details=True)
    for one, other in zip(whole["rows"], parts["rows"], strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert parts["exam"]["n"] == 11


def test_figures_add_up(model: Path, tmp_path: Path) -> None:
    found = take(model, mmlu(tmp_path), details=True)["exam"]
    assert found["n"] == 13 == sum(one["n"] for one in found["subjects"])
    assert found["right"] == sum(one["right"] for one in found["subjects"])
    assert {one["category"]: one["n"] for one in found["categories"]} == {
        "STEM": 6,
        "Social Sciences": 7,
    }
    assert found["mean_of_subjects"]["accuracy"] == pytest.approx(
        sum(one["accuracy"] for one in found["subjects"]) / 2
    )
    low, high = found["mean_of_subjects"]["interval_95"]
    assert low <= found["mean_of_subjects"]["accuracy"] <= high
    assert found["chance"] == 0.25
    assert sum(found["letters"].values()) == sum(found["letters_right"].values()) == 13


def test_lines_say_the_figures_and_the_warnings(model: Path, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "own_test.csv", rows(24))
    found = take(model, path, shots=3)
    text = "\n".join(lines(found))
    assert f"{found['exam']['right']} of 24" in text
    assert "3 examples were wanted, and there are 0" in text
    assert "letters chosen" in text


def test_a_chat_is_asked_through_the_template(model: Path, tmp_path: Path) -> None:
    """The oracle: the template by Transformers, one letter a forward pass."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exam = write_csv(tmp_path / "anatomy_test.csv", rows(3)).parent
    write_csv(tmp_path / "anatomy_dev.csv", rows(1, 9))
    tokenizer = AutoTokenizer.from_pretrained(model)
    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = take(model, exam, chat=True, shots=1, details=True)

    def written(row: list[str]) -> str:
        return "\n".join(
            [row[0], *(f"{c}. {t}" for c, t in zip("ABCD", row[1:5], strict=True)), "Answer:"]
        )

    first = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    for row, ours in zip(rows(3), found["rows"], strict=True):
        shot = rows(1, 9)[0]
        turns = [
            {"role": "user", "content": first + written(shot)},
            {"role": "assistant", "content": shot[5]},
            {"role": "user", "content": written(row)},
        ]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for letter, score in zip("ABCD", ours["scores"], strict=True):
            (last,) = tokenizer(letter, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = causal(input_ids=torch.tensor([ids])).logits[0, -1].double()
            assert score == pytest.approx(float(torch.log_softmax(logits, -1)[last]), abs=1e-5)


def test_fewer_examples_where_all_do_not_fit(tmp_path: Path) -> None:
    small = model_folder(tmp_path / "small", max_position_embeddings=160)
    exam = mmlu(tmp_path / "exam", ("anatomy",))
    found = take(small, exam)
    assert found["exam"]["fewer_shots"] == 6
    assert any("fewer examples" in one for one in found["warnings"])
    tiny = model_folder(tmp_path / "tiny", max_position_embeddings=24)
    assert take(tiny, exam)["exam"]["cut_at_the_beginning"] == 6


def test_answers_are_kept_and_not_asked_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam, out = mmlu(tmp_path / "exam"), tmp_path / "out"
    whole = take(model, exam, out=out)
    table = out / "exam.jsonl"
    written = table.read_text().splitlines(keepends=True)
    assert len(written) == 13
    table.write_text("".join(written[:6]) + written[6][:20])  # killed while it wrote
    scored: list[int] = []
    score = Scorer.score

    def counted(self: Scorer, pairs: Any, *more: Any) -> Any:
        scored.append(len(pairs))
        return score(self, pairs, *more)

    monkeypatch.setattr(Scorer, "score", counted)
    assert take(model, exam, out=out)["exam"] == whole["exam"]
    assert sum(scored) == 7 * 4
    scored.clear()
    assert take(model, exam, out=out)["exam"] == whole["exam"]
    assert scored == []
    take(model, exam, out=out, shots=0)  # other questions
    assert sum(scored) == 13 * 4


def test_a_folder_that_cannot_be_written_is_said(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TunewrightError) as caught:
        take(model, mmlu(tmp_path / "exam"), out=tmp_path / "file")
    assert codes(caught.value) == ["E-EXAM-13"]


@pytest.mark.parametrize(
    ("how", "code"),
    [({"shots": -1}, "E-EXAM-03"), ({"shots": 21}, "E-EXAM-03"), ({"limit": 0}, "E-EXAM-03"), ({"language": "de"}, "E-EXAM-04")],
)  # fmt: skip
def test_wrong_usage_is_said(model: Path, tmp_path: Path, how: dict[str, Any], code: str) -> None:
    with pytest.raises(TunewrightError) as caught:
        take(model, mmlu(tmp_path), **how)
    assert codes(caught.value) == [code]


def test_an_address_gives_no_probabilities(tmp_path: Path) -> None:
    with pytest.raises(TunewrightError) as caught:
        take_exam("http://127.0.0.1:1/v1?key=secret", str(mmlu(tmp_path)), tell=Quiet())
    assert codes(caught.value) == ["E-EXAM-12"]
    assert "secret" not in str(caught.value)


def test_the_other_language_changes_the_prompt_and_a_limit_the_questions(
    model: Path, tmp_path: Path
) -> None:
    exam = mmlu(tmp_path)
    english, chinese = (
        take(model, exam, language=one, limit=2, details=True) for one in ("auto", "zh")
    )
    assert english["exam"]["n"] == chinese["exam"]["n"] == 4
    assert (english["exam"]["kind"], chinese["exam"]["kind"]) == ("mmlu", "cmmlu")
    assert english["rows"][0]["scores"] != chinese["rows"][0]["scores"]
