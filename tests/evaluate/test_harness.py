"""What lm-eval asks of our engine equals what it gets from Transformers, and tasks are measured from
the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.building import codes, make_tokenizer
from helpers.story import model_folder, tunewright

from tunewright.core.errors import TunewrightError, UsageError
from tunewright.core.telling import Quiet
from tunewright.engine import opening
from tunewright.engine.decoding.writer import Writer
from tunewright.evaluate import harness
from tunewright.evaluate.continuations import Scorer

pytest.importorskip("lm_eval")

TEXT = "the capital of France is Paris. what is the capital of 2026? a small model learns quickly. "
PAIRS = [
    ("the capital of France is", " Paris"),
    ("the capital of France is", " 2026"),
    ("the capital of France is", " a small model"),
    ("what is the capital ", "of 2026"),
    ("", "a small model"),
    ("what\n\n", "Paris"),
    ("it's 10:30,", " isn't it?"),
    (TEXT * 4, " Paris"),
    (TEXT * 4 + "and", " learns quickly"),
    ("<|im_start|>user\nwhat is small<|im_end|>\n", "a model"),
    ("首都是", "巴黎"),
]
ASKED = [
    ("what is the capital of", {"until": ["\n\n"], "max_gen_toks": 12}),
    ("a small model", {"until": ["e"], "max_gen_toks": 16}),
    ("it's 10:30,", {"until": [], "max_gen_toks": 5, "do_sample": False}),
    (TEXT * 4, {"until": ["</s>"], "max_gen_toks": 9}),
    ("who learns", {"max_gen_toks": 8, "temperature": 0.0}),
]


@pytest.fixture(scope="module", params=["llama", "lora", "qwen2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(ours, lm-eval's own model) of the same weights."""
    from lm_eval.models.huggingface import HFLM

    from tunewright.evaluate.harness_model import EngineLM

    place = tmp_path_factory.mktemp("model")
    family = "llama" if request.param == "lora" else request.param
    # Where an adapter comes with it, lm-eval makes the head as large as the tokenizer.
    sizes = {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 96}
    folder = model_folder(place / "base", family, initializer_range=0.2, **sizes)
    target, peft = folder, {}
    if request.param == "lora":
        target = adapter(folder, place / "adapter")
        peft = {"peft": str(target)}
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1, **peft)
    opened = opening.open_target(str(target), Quiet(), dtype="float32", device="cpu", threads=1)
    yield EngineLM(Scorer.of(opened), Quiet()), theirs


def adapter(base: Path, out: Path) -> Path:
    """A LoRA whose weights are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(out)
    return out


def instances(kind: str, arguments: list[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, i, ("t", i, 1)) for i, one in enumerate(arguments)]


def test_continuations_have_lm_evals_scores(both: Any) -> None:
    ours, theirs = (lm.loglikelihood(instances("loglikelihood", PAIRS)) for lm in both)
    assert [score for score, _ in ours] == pytest.approx([s for s, _ in theirs], abs=1e-6, rel=1e-6)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_greedy_continuations_are_told(both: Any) -> None:
    """What a model writes itself is greedy: otherwise the flag would be false everywhere."""
    asked = instances(
        "generate_until", [("what is the capital of", {"until": [], "max_gen_toks": 3})]
    )
    (text,) = both[1].generate_until(asked)
    pairs = instances("loglikelihood", [("what is the capital of", text)])
    (_, ours), (_, theirs) = both[0].loglikelihood(pairs)[0], both[1].loglikelihood(pairs)[0]
    assert ours is theirs


def test_whole_texts_have_lm_evals_scores(both: Any) -> None:
    texts = [("a small model",), (TEXT,), (TEXT * 7,), ("首都",)]
    ours, theirs = (
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts)) for lm in both
    )
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_answers_are_lm_evals(both: Any) -> None:
    ours, theirs = (lm.generate_until(instances("generate_until", ASKED)) for lm in both)
    assert ours == theirs
    assert any(ours)


def test_a_dialogue_is_written_as_lm_evals(both: Any) -> None:
    turns = [{"role": "user", "content": "what?"}]
    assert both[0].apply_chat_template(turns) == both[1].apply_chat_template(turns)
    assert both[0].chat_template(True) == both[1].chat_template(True)


def test_drawn_answers_are_the_same_every_time(both: Any) -> None:
    asked = [
        ("what is", {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0})
    ] * 2
    one, two = (both[0].generate_until(instances("generate_until", asked)) for _ in range(2))
    assert one == two
    assert one[0] != one[1]


# ---- tasks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"), initializer_range=0.2)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks of one's own."""
    import yaml

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    rows = [
        {"q": f"what is {i}", "choices": ["Paris", "2026", "small"], "gold": i % 3}
        for i in range(6)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
        "doc_to_text": "{{q}}?", "doc_to_target": "gold",
    }  # fmt: skip
    acc = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    match = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    own = {
        "own_choice": {**common, "output_type": "multiple_choice", "doc_to_choice": "choices", "metric_list": acc},
        "own_words": {
            **common, "output_type": "generate_until", "doc_to_target": "{{choices[gold]}}", "metric_list": match,
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        },
    }  # fmt: skip
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in own.items():
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, **task}), encoding="utf-8"
        )
    return folder


def test_tasks_are_measured_from_the_command_line(model: Path, tasks: Path) -> None:
    asked = [
        "evaluate",
        str(model),
        "--lm-eval",
        "own_choice,own_words",
        "--tasks-folder",
        str(tasks),
    ]
    done = tunewright(*asked, "--dtype", "float32", "--json", "--details")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    by_name = {task["task"]: task for task in found["lm_eval"]["tasks"]}
    assert set(by_name) == {"own_choice", "own_words"}
    assert {task["n"] for task in by_name.values()} == {6}
    (acc,) = by_name["own_choice"]["metrics"]
    assert acc["interval_95"][0] <= acc["value"] <= acc["interval_95"][1]
    chosen = [row for row in found["rows"] if row["task"] == "own_choice"]
    assert acc["value"] == pytest.approx(sum(row["acc"] for row in chosen) / 6)
    text = tunewright(*asked, "--dtype", "float32", "--shots", "0", "--limit", "4", "--chat").stdout
    assert "own_choice: 4 questions" in text


def test_what_a_model_gave_is_kept(
    model: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure() -> Any:
        names, out = ["own_choice", "own_words"], tmp_path / "out"
        how = {"folder": str(tasks), "out": out, "dtype": "float32", "tell": Quiet()}
        return harness.measure_tasks(str(model), names, **how)["lm_eval"]

    first = measure()
    assert len((tmp_path / "out" / "lm_eval.jsonl").read_text().splitlines()) == 6 * 3 + 6
    monkeypatch.setattr(Scorer, "score", lambda *_: pytest.fail("scored again"))
    monkeypatch.setattr(Writer, "write", lambda *_: pytest.fail("written again"))
    assert measure() == first


@pytest.mark.parametrize("names", ["nothing_like_it", "own_choise", ""])
def test_unknown_tasks_are_named_with_similar_ones(
    tasks: Path, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager  # the thousands of files of the harness are not read here
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda include_path, include_defaults: whole(include_path=include_path, include_defaults=False)
    )  # fmt: skip
    with pytest.raises(UsageError) as caught:
        harness.measure_tasks("no/model", names.split(","), folder=str(tasks), tell=Quiet())
    assert codes(caught.value) == ["E-EXAM-06"]
    assert ("own_choice" in str(caught.value)) is (names == "own_choise")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        harness.measure_tasks("no/model", ["x"], folder=str(tmp_path / "none"), tell=Quiet())
    assert codes(caught.value) == ["E-EXAM-06"]


def test_a_task_that_fails_is_an_error_with_its_cause(model: Path, tasks: Path) -> None:
    path = tasks / "own_choice.yaml"
    path.write_text(path.read_text().replace("rows.jsonl", "gone.jsonl"), encoding="utf-8")
    with pytest.raises(TunewrightError) as caught:
        harness.measure_tasks(str(model), ["own_choice"], folder=str(tasks), tell=Quiet())
    assert codes(caught.value) == ["E-EXAM-07"]
    assert "gone.jsonl" in str(caught.value)


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"tunewright\[eval\]") as caught:
        harness.measure_tasks("no/model", ["x"], tell=Quiet())
    assert codes(caught.value) == ["E-EXAM-05"]
