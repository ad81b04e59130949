"""`evaluate --generate`: the table of answers, what is asked again, metrics, rewards, counts, and
that every kind of adapter answers as itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.story import model_folder, process, rows_file, tunewright

from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.telling import Quiet
from tunewright.engine.decoding import answers as generate
from tunewright.evaluate import answer_table, metrics, written
from tunewright.evaluate.scoring import evaluate_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"), initializer_range=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows_file(tmp_path_factory.mktemp("data") / "rows.json", 9)


def measure(model: Path, data: Path, **settings: Any) -> dict[str, Any]:
    usual = {"dtype": "float32", "device": "cpu", "threads": 1, "max_new_tokens": 6}
    return evaluate_target(str(model), str(data), **{**usual, "tell": Quiet(), **settings})


def table(folder: Path) -> list[dict[str, Any]]:
    text = (folder / answer_table.NAME).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call put to the model."""
    counts: list[int] = []

    def counting(model: Any, prompts: Any, **more: Any) -> Any:
        counts.append(len(prompts))
        return generate.answer(model, prompts, **more)

    monkeypatch.setattr(written, "answer", counting)
    return counts


def test_every_answer_stands_in_the_table_with_its_scores(model, data, tmp_path):
    found = measure(model, data, out=tmp_path, metrics=["exact", "f1", "chrf"], details=True)
    lines = table(tmp_path)
    assert [line["origin"] for line in lines] == [f"{data}:{2 + 4 * i}" for i in range(9)]
    assert found["answers"]["rows"] == lines and found["answers"]["asked"] == 9
    for name in ("f1", "chrf"):
        values = [metrics.METRICS[name].per_row(one["expected"], one["answer"]) for one in lines]
        assert [one["scores"][name] for one in lines] == pytest.approx(values, abs=1e-9)
    assert found["metrics"]["f1"]["value"] == pytest.approx(
        sum(one["scores"]["f1"] for one in lines) / 9
    )
    corpus = metrics.METRICS["chrf"].corpus(
        *zip(*((o["expected"], o["answer"]) for o in lines), strict=True)
    )
    assert found["metrics"]["chrf"]["value"] == pytest.approx(corpus)
    assert list(found["metrics"]) == ["exact", "f1", "chrf"] and not found["metrics_chosen"]
    assert sum(found["answers"]["ends"].values()) == 9


def test_what_was_answered_before_a_kill_is_not_asked_again(
    model, data, tmp_path, asked, monkeypatch
):
    whole = measure(model, data, out=tmp_path / "whole")
    add, count = answer_table.AnswerTable.add, [0]

    def killed(self: Any, line: dict[str, Any]) -> None:
        if count[0] == 4:
            raise KeyboardInterrupt
        count[0] += 1
        add(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(answer_table.AnswerTable, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(model, data, out=tmp_path / "killed")
    path = tmp_path / "killed" / answer_table.NAME
    assert len(table(tmp_path / "killed")) == 4
    with path.open("a") as file:
        file.write('{"key": "half of a li')  # where the kill came
    again = measure(model, data, out=tmp_path / "killed")
    assert asked == [9, 9, 5]
    assert again["answers"]["from_table"] == 4
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    for key in ("exact_match", "metrics", "loss"):
        assert again[key] == whole[key]
    third = measure(model, data, out=tmp_path / "killed", metrics=["rougeL"])
    assert asked == [9, 9, 5] and third["answers"]["from_table"] == 9


def test_scores_that_were_computed_before_a_kill_are_not_computed_again(
    model, data, tmp_path, monkeypatch
):
    from tunewright.evaluate import logprobs, score_table, scoring

    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 4)
    computed: list[int] = []

    def counting(opened: Any, samples: Any, **more: Any) -> Any:
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(len(samples))
        return logprobs.logprobs_of(opened, samples, **more)

    whole = measure(model, data, generate=False)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "logprobs_of", counting)
        with pytest.raises(KeyboardInterrupt):
            measure(model, data, generate=False, out=tmp_path)
    path = tmp_path / score_table.NAME
    assert len([line for line in path.read_text().split("\n") if line]) == 4
    with path.open("a") as file:
        file.write('{"key": "half')
    computed.clear()
    monkeypatch.setattr(
        scoring,
        "logprobs_of",
        lambda o, s, **m: computed.append(len(s)) or logprobs.logprobs_of(o, s, **m),
    )
    again = measure(model, data, generate=False, out=tmp_path)
    assert computed == [4, 1]
    assert again["loss"]["token_mean"] == pytest.approx(whole["loss"]["token_mean"], rel=1e-6)
    assert measure(model, data, generate=False, out=tmp_path)["loss"] == again["loss"]
    assert computed == [4, 1]


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(model, data, tmp_path):
    """A real process, killed by the system in the middle."""
    plan = tmp_path / "child.py"
    plan.write_text(
        "import os, signal\n"
        "from tunewright.evaluate import answer_table as t\n"
        "add, count = t.AnswerTable.add, [0]\n"
        "def killed(self, line):\n"
        "    add(self, line)\n"
        "    count[0] += 1\n"
        "    if count[0] == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.AnswerTable.add = killed\n"
        "from tunewright.cli import main\n"
        "main()\n",
        encoding="utf-8",
    )
    import subprocess
    import sys

    words = [
        "evaluate",
        str(model),
        "--data",
        str(data),
        "--dtype",
        "float32",
        "--max-new-tokens",
        "6",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [sys.executable, str(plan), *words], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -9 and len(table(tmp_path / "out")) == 3
    found = process(*words, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["answers"]["from_table"] == 3
    assert "3 of 9 answers stand in" in found.stderr
    assert len(table(tmp_path / "out")) == 9


def test_another_model_or_other_settings_ask_anew_and_nothing_is_lost(model, data, tmp_path, asked):
    out = tmp_path / "out"
    first = measure(model, data, out=out) and table(out)
    other = shutil.copytree(model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    measure(other, data, out=out)
    assert asked == [9, 9] and [line["key"] for line in table(out)] != [
        line["key"] for line in first
    ]
    aside = [json.loads(x) for x in (out / "answers.before-1.jsonl").read_text().splitlines()]
    assert aside == first
    measure(other, data, out=out, max_new_tokens=7)
    assert asked == [9, 9, 9] and (out / "answers.before-2.jsonl").is_file()


def test_a_file_that_is_no_table_of_ours_is_kept(model, data, tmp_path):
    (tmp_path / answer_table.NAME).write_text('{"mine": 1}\nwords\n')
    measure(model, data, out=tmp_path)
    assert (tmp_path / "answers.before-1.jsonl").read_text() == '{"mine": 1}\nwords\n'
    assert len(table(tmp_path)) == 9


def test_a_folder_that_cannot_be_written_is_said(model, data, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", tmp_path / "file"):
        with pytest.raises(UsageError) as caught:
            measure(model, data, out=out)
        assert caught.value.problems[0].code == "E-EVAL-22"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"metrics": ["meteor"]}, "E-EVAL-20"),
        ({"metrics": []}, "E-EVAL-20"),
        ({"rewards": "numeric, {"}, "E-EVAL-23"),
        ({"rewards": "run"}, "E-EVAL-23"),
        ({"rewards": "numerik"}, "E-REWARD-01"),
        ({"metrics": ["f1"], "generate": False}, "E-EVAL-25"),
        ({"rewards": "numeric", "generate": False}, "E-EVAL-25"),
        ({"words": "spaces"}, "E-EVAL-26"),
        ({"target_error": 1.0}, "E-EVAL-27"),
        ({"target_error": -0.1}, "E-EVAL-27"),
        ({"target_error": float("nan")}, "E-EVAL-27"),
        ({"max_new_tokens": 0}, "E-EVAL-05"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_the_model_is_read(
    model, data, settings, code, monkeypatch
):
    from tunewright.engine import opening

    monkeypatch.setattr(opening, "to_answer", lambda *a, **k: pytest.fail("weights were read"))
    with pytest.raises(TunewrightError) as caught:
        measure(model, data, **settings)
    assert caught.value.problems[0].code == code


def test_jieba_that_is_not_there_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        measure(Path("no model"), Path("no rows"), words="jieba")
    assert caught.value.problems[0].code == "E-EVAL-21"


def test_rewards_of_ones_own_and_of_the_run(model, data, tmp_path):
    code = tmp_path / "mine.py"
    code.write_text("def longer(answers):\n    return [float(len(a.text) > 0) for a in answers]\n")
    words = [
        "evaluate",
        str(model),
        "--data",
        str(data),
        "--dtype",
        "float32",
        "--max-new-tokens",
        "4",
        "--json",
    ]
    mine = ["--rewards", "{kind: python, function: longer}"]
    done = tunewright(*words, *mine, "--reward-code", str(code))
    assert done.returncode == 0, done.stderr
    found = next(iter(json.loads(done.stdout)["rewards"].values()))
    assert found["n"] == 9
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    (run / "run.yaml").write_text(
        f"model: {model}\nmethod:\n  kind: full\nobjective:\n  kind: grpo\n  reward: [finished, {{kind: length, max: 900, weight: 0.5}}]\n"
    )
    own = measure(run, data, rewards="run")["rewards"]
    assert list(own) == ["finished", "length"] and own["length"]["pass_rate"] == 1


def test_a_reward_model_beside_another_model_is_refused(model, data, tmp_path):
    run = tmp_path / "judge"
    run.mkdir()
    (run / "run.yaml").write_text(f"model: {model}\nobjective:\n  kind: reward\n")
    (run / "adapter").mkdir()
    (run / "adapter" / "score_head.safetensors").write_bytes(b"")
    with pytest.raises(TunewrightError) as caught:
        measure(model, data, rewards=str(run))
    assert caught.value.problems[0].code in ("E-EVAL-24", "E-REWARD-06")


def test_reward_functions_see_the_rows_own_columns(model, tmp_path):
    rows = [
        {"question": f"what is {i}", "answer": f"{i}", "pattern": "." if i % 2 else "no such text"}
        for i in range(6)
    ]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    found = measure(
        model,
        data,
        rewards="regex, {kind: length, max: 1000}, numeric, json_schema",
        out=tmp_path / "o",
    )
    assert found["rewards"]["regex"]["passed"] == 3 and found["rewards"]["regex"]["n"] == 6
    assert found["rewards"]["length"]["pass_rate"] == 1.0
    assert found["rewards"]["length"]["pass_interval_95"][0] == pytest.approx(0.6097, abs=1e-3)
    values = [line["rewards"]["regex"] for line in table(tmp_path / "o")]
    assert values == [0, 1, 0, 1, 0, 1]


def test_questions_alone_are_asked_for_rewards_and_have_no_loss(model, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(4)))
    found = measure(model, data, rewards="finished, {kind: length, max: 900}", out=tmp_path / "o")
    assert found["loss"] is None and found["metrics"] == {}
    assert found["rewards"]["length"]["pass_rate"] == 1 and len(table(tmp_path / "o")) == 4
    assert any("there is no loss" in line for line in found["warnings"])
    assert not any("empty answer" in line for line in found["warnings"])
    words = ["--dtype", "float32", "--max-new-tokens", "3", "--rewards", "finished"]
    done = tunewright(
        "evaluate", str(model), "--data", str(data), *words, "--out", str(tmp_path / "p")
    )
    assert done.returncode == 0 and "exact match" not in done.stdout, done.stderr


def test_a_reward_that_fails_or_has_no_opinion_is_counted_and_said(model, data):
    found = measure(model, data, rewards="regex, finished")
    silent = found["rewards"]["regex"]
    assert silent["n"] == 0 and silent["pass_rate"] is None and silent["no_opinion"] == 9
    assert any("judged none of the answers" in line for line in found["warnings"])
    rows = json.loads(data.read_text())
    bad = data.with_name("bad.json")
    bad.write_text(
        json.dumps([{**row, "pattern": "(" if i == 0 else "."} for i, row in enumerate(rows)])
    )
    failed = measure(model, bad, rewards="regex")["rewards"]["regex"]
    assert (failed["n"], failed["failed"], len(failed["faults"])) == (8, 1, 1)


def test_dialogues_of_many_turns_and_system_prompts_are_counted(model, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "model"},
                {"role": "user", "content": "b"},
                {"role": "assistant", "content": "is small"},
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "it is"},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "x y"},
            ]
        },
        {"messages": [{"role": "user", "content": "no answer"}]},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    found = measure(model, data, limit=3, out=tmp_path / "out", generate=True)
    assert (found["counts"]["many_turns"], found["counts"]["with_system"]) == (1, 1)
    assert found["counts"]["limit"] == 3 and found["data_report"]["rows_dropped"] == 1
    said = "\n".join(found["warnings"])
    assert "1 of 3 rows cannot be used" in said and "Only the first 3 rows" in said
    first = table(tmp_path / "out")[0]
    assert (first["turns"], first["question"], first["expected"]) == (3, "b", "is small")


def test_the_page_and_the_figures_lie_beside_the_table(model, data, tmp_path):
    words = [
        "evaluate",
        str(model),
        "--data",
        str(data),
        "--dtype",
        "float32",
        "--max-new-tokens",
        "4",
        "--out",
        str(tmp_path / "o"),
        "--metrics",
        "exact,bleu",
    ]
    done = tunewright(*words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    stored = json.loads((tmp_path / "o" / "evaluation.json").read_text(encoding="utf-8"))
    assert stored["metrics"] == found["metrics"] and "bleu" in stored["metrics"]
    for language in ("en", "zh"):
        assert tunewright(*words, TUNEWRIGHT_LANG=language).returncode == 0
        page = Path(found["page"]).read_text(encoding="utf-8")
        assert "<svg" in page and "bleu" in page and "{" not in page.split("</style>")[1]


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning", "p_tuning"])
def test_an_adapter_of_every_kind_answers_as_itself(kind, model, tmp_path):
    """The run's own answers after training, and not the base's."""
    data = rows_file(tmp_path / "rows.json", 6)
    run = tmp_path / "run"
    done = tunewright(
        "train", "--model", str(model), "--data", str(data), "--out", str(run), f"method.kind={kind}", "engine.dtype=float32", "engine.threads=1",
        "engine.steps=30", "engine.learning_rate=0.5", "engine.batch_size=2", "data.held_out=0", "probes=6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own = [json.loads(line) for line in (run / "before_after.jsonl").read_text().splitlines()]
    found = measure(run, data, generate=True, out=tmp_path / "o", max_new_tokens=None, dtype=None)
    base = measure(
        run, data, generate=True, out=tmp_path / "b", max_new_tokens=None, dtype=None, base=True
    )
    given = {line["question"]: line["answer"] for line in table(tmp_path / "o")}
    untouched = {line["question"]: line["answer"] for line in table(tmp_path / "b")}
    assert len(own) == 6 and found["answers"]["asked"] == base["answers"]["asked"] == 6
    for row in own:
        assert given[row["question"]] == row["after"]
        assert untouched[row["question"]] == row["before"]
    assert any(given[q] != untouched[q] for q in given), "training changed nothing"
