"""Whole runs of a tiny model through the command line, and the mistakes people make."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers import story

PROMISED = {
    "status", "steps", "samples", "logical_tokens", "physical_rows", "label_tokens", "train_seconds", "load_seconds", "evaluate_seconds", "checkpoint_seconds",
    "wall_seconds", "peak_memory_bytes", "trainable_parameters", "total_parameters", "first_loss", "final_loss", "held_out_loss", "device", "dtype", "layout",
    "versions",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    result = story.tunewright(
        *story.words(
            model,
            story.rows_file(place / "rows.json", 30),
            place / "run",
            "data.held_out=6",
            "engine.evaluate_every=epoch",
        )
    )
    assert result.returncode == 0, result.stderr
    return place / "run"


def test_a_run_leaves_the_promised_folder(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) >= PROMISED
    assert (summary["status"], summary["steps"], summary["samples"]) == ("done", 24, 96)
    assert summary["physical_rows"] < summary["logical_tokens"]
    assert summary["held_out_loss"] < summary["held_out_loss_before"]
    assert summary["final_loss"] < summary["first_loss"]
    for name in (
        "run.yaml",
        "data_report.json",
        "events.jsonl",
        "before_after.jsonl",
        "report.html",
        "adapter/adapter_model.safetensors",
        "checkpoints",
    ):
        assert (finished / name).exists(), name
    steps = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in steps if e["event"] == "step"] == list(range(1, 25))
    assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes"} <= set(
        next(e for e in steps if e["event"] == "step")
    )
    answers = [
        json.loads(line) for line in (finished / "before_after.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 2 and all(a["question"] and a["expected"] for a in answers)


def test_run_yaml_says_where_values_come_from_and_runs_again(
    finished: Path, tmp_path: Path
) -> None:
    text = (finished / "run.yaml").read_text()
    assert (
        "epochs: 4.0  # command line" in text
        and "schedule: cosine  # default" in text
        and "layout: tree  # auto:" in text
    )
    result = story.tunewright("train", str(finished / "run.yaml"), f"out={tmp_path / 'again'}")
    assert result.returncode == 0, result.stderr
    same = [
        (finished.parent / p / "adapter" / "adapter_model.safetensors").read_bytes()
        for p in ("run", str(tmp_path / "again"))
    ]
    assert same[0] == same[1]


def test_a_finished_run_is_left_alone_by_resume(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert story.tunewright("train", str(finished), "--resume").returncode == 0
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def further(text: str) -> list[str]:
    """The words after `tunewright` of the command that a message gives."""
    found = re.search(r"tunewright (train \S+run\.yaml (?:adapter|model)=\S+ out=[^\s`]+)", text)
    assert found, text
    return found[1].split()


@pytest.mark.parametrize("whole", [False, True])
def test_every_message_about_a_finished_run_gives_the_command_that_trains_further(
    model: Path, tmp_path: Path, whole: bool
) -> None:
    out, rows = tmp_path / "run", story.rows_file(tmp_path / "rows.json")
    more = ["method.kind=full"] if whole else []
    begin = story.words(
        model,
        rows,
        out,
        "probes=0",
        "engine.steps=3",
        "engine.schedule=constant",
        "engine.learning_rate=0.005",
        "engine.batch_size=12",
        *more,
    )
    assert story.tunewright(*begin).returncode == 0
    said = []
    for words, code, status in (
        (["train", str(out), "--resume"], "", 0), (["train", str(out), "--resume", "engine.epochs=9"], "E-RUN-18", 2), (begin, "E-RUN-18", 2),
        (["train", str(out), "engine.epochs=9"], "E-RUN-18", 2),
    ):  # fmt: skip
        result = story.tunewright(*words)
        assert (result.returncode, code in result.stderr) == (status, True), result.stderr
        said.append(further(result.stderr))
    assert all(words == said[0] for words in said)
    assert story.tunewright(*said[0], "engine.steps=1").returncode == 0
    first, second = (
        json.loads((place / "summary.json").read_text()) for place in (out, tmp_path / "run-2")
    )
    assert (
        second["first_loss"] < first["final_loss"] < first["first_loss"]
    )  # all rows in every step: it starts where the other ended


def test_a_run_that_is_not_finished_is_sent_to_resume_which_then_goes_on(
    model: Path, tmp_path: Path
) -> None:
    out, rows = tmp_path / "run", story.rows_file(tmp_path / "rows.json")
    begin = story.words(model, rows, out, "probes=0", "engine.steps=3")
    assert story.tunewright(*begin).returncode == 0
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps({**summary, "status": "stopped"}))
    for words, code in (
        (begin, "E-RUN-01"),
        (["train", str(out), "--resume", "engine.epochs=9"], "E-RUN-08"),
        (["train", str(out)], "E-RUN-09"),
    ):
        result = story.tunewright(*words)
        assert result.returncode == 2 and code in result.stderr and "adapter=" not in result.stderr
    assert f"tunewright train {out} --resume" in story.tunewright(*begin).stderr
    assert story.tunewright("train", str(out), "--resume").returncode == 0


def test_chat_answers_as_json_with_the_base_beside_it(finished: Path) -> None:
    result = story.tunewright(
        "chat",
        str(finished),
        "-q",
        "what is the capital 3?",
        "--compare",
        "--json",
        "--max-new-tokens",
        "8",
    )
    assert result.returncode == 0, result.stderr
    assert {"question", "answer", "base"} <= set(json.loads(result.stdout))


@pytest.mark.slow
def test_chat_reads_piped_questions_and_the_base_folder(model: Path) -> None:
    import subprocess
    import sys

    run = subprocess.run(
        [sys.executable, "-m", "tunewright", "chat", str(model), "--max-new-tokens", "3"],
        input="hello\n\nwho?\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") >= 2


def _tree(place: Path) -> set[str]:
    return {str(p) for p in place.rglob("*")}


@pytest.mark.parametrize(
    ("name", "change", "code", "said"),
    [
        ("misspelt key", ["method.rnak=3"], "E-CONFIG-03", "method.rank"),
        ("foreign key", ["num_train_epochs=3"], "E-CONFIG-04", "engine.epochs=3"),
        (
            "foreign batch",
            ["per_device_train_batch_size=2", "gradient_accumulation_steps=8"],
            "E-CONFIG-04",
            "engine.batch_size=16",
        ),
        ("wrong type", ["engine.epochs=many"], "E-CONFIG-08", "engine.epochs"),
        ("unknown method", ["method.kind=lorra"], "E-CONFIG-09", "lora"),
        ("unknown target", ["method.targets=[attention.qeury]"], "E-MODEL-", "attention.query"),
        ("unknown device", ["engine.device=cuda:7"], "E-CONFIG-16", "cpu"),
        ("rate of zero", ["engine.learning_rate=0"], "E-COMPAT-03", "learning_rate"),
    ],
)
def test_a_wrong_key_is_one_message_and_creates_nothing(
    name: str, change: list[str], code: str, said: str, model: Path, tmp_path: Path
) -> None:
    data = story.rows_file(tmp_path / "rows.json")
    before = _tree(tmp_path)
    result = story.tunewright(*story.words(model, data, tmp_path / "run", *change), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert code in result.stderr and said in result.stderr and "Traceback" not in result.stderr
    assert _tree(tmp_path) == before, name


def _missing(place: Path) -> Path:
    return place / "nowhere.json"


def _broken_line(place: Path) -> Path:
    path = story.rows_file(place / "rows.json")
    lines = path.read_text().splitlines()
    lines[6] = lines[6].replace('"instruction"', '"instruction')
    path.write_text("\n".join(lines))
    return path


def _no_answers(place: Path) -> Path:
    path = place / "rows.json"
    path.write_text(json.dumps([{"instruction": f"q {i}", "output": ""} for i in range(5)]))
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [(_missing, "nowhere.json"), (_broken_line, "line 7"), (_no_answers, "rows.json")],
)
def test_data_that_cannot_be_used_is_one_message_and_creates_nothing(
    make, said: str, model: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    data = make(tmp_path)
    before = _tree(tmp_path)
    result = story.tunewright(*story.words(model, data, tmp_path / "run"), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "E-DATA-" in result.stderr and said in result.stderr and "Traceback" not in result.stderr
    assert _tree(tmp_path) == before


def test_a_model_without_weights_is_refused(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "model.safetensors").unlink()
    result = story.tunewright(
        *story.words(bare, story.rows_file(tmp_path / "rows.json"), tmp_path / "run")
    )
    assert (
        result.returncode == 2 and "E-MODEL-" in result.stderr and not (tmp_path / "run").exists()
    )


def test_an_out_folder_with_another_run_is_not_touched(
    finished: Path, model: Path, tmp_path: Path
) -> None:
    before = {p: story.digest(p) for p in finished.rglob("*") if p.is_file()}
    result = story.tunewright(
        *story.words(model, story.rows_file(tmp_path / "rows.json"), finished)
    )
    assert (
        result.returncode == 2 and "E-RUN-18" in result.stderr
    )  # it is finished; E-RUN-01 is for one that can be continued
    assert {p: story.digest(p) for p in finished.rglob("*") if p.is_file()} == before


def test_json_errors_go_to_stdout(model: Path, tmp_path: Path) -> None:
    result = story.tunewright(*story.words(model, tmp_path / "no.json", tmp_path / "run", "--json"))
    assert result.returncode == 2 and json.loads(result.stdout)["problems"][0]["code"].startswith(
        "E-DATA-"
    )


def test_messages_speak_chinese_when_asked(model: Path, tmp_path: Path) -> None:
    result = story.tunewright(
        *story.words(model, tmp_path / "no.json", tmp_path / "run"), TUNEWRIGHT_LANG="zh"
    )
    assert result.returncode == 2 and "个问题" in result.stderr


def test_bench_measures_and_certifies(model: Path, tmp_path: Path) -> None:
    data = story.rows_file(tmp_path / "rows.json")
    result = story.tunewright(
        "bench",
        "--model",
        str(model),
        "--data",
        str(data),
        "--steps",
        "2",
        "engine.threads=1",
        "--json",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["certificate"]["passed"] is True and set(figures["certificate"]["worst"]) == {
        "float64",
        "float32",
    }
    assert figures["logical_tokens_per_second"] > figures["physical_rows_per_second"] > 0
    assert not (tmp_path / "runs").exists()


def test_a_run_can_start_from_an_adapter(finished: Path, model: Path, tmp_path: Path) -> None:
    data = story.rows_file(tmp_path / "rows.json", 30)
    first = json.loads((finished / "summary.json").read_text())
    result = story.tunewright(
        *story.words(
            model, data, tmp_path / "run", f"adapter={finished / 'adapter'}", "engine.steps=2"
        )
    )
    assert result.returncode == 0, result.stderr
    second = json.loads((tmp_path / "run" / "summary.json").read_text())
    # It goes on from what was learnt: its first loss lies below the first loss of the run that
    # started from nothing.
    assert second["first_loss"] < first["first_loss"] - 0.05
    nowhere = story.tunewright(
        *story.words(model, data, tmp_path / "none", f"adapter={tmp_path / 'nowhere'}")
    )
    assert (
        nowhere.returncode == 2 and "nowhere" in nowhere.stderr and not (tmp_path / "none").exists()
    )
