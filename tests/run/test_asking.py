"""A run asks once: what it starts from at most once in its life, and after training only the files
that it saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.telling import Lines
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tunewright
from tunewright.core import findings
from tunewright.core.errors import TrainingError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Tell, telling_answers
from tunewright.engine.decoding import answers as generate
from tunewright.run import asking, kept_answers, saved
from tunewright.run.asking_time import Allowed
from tunewright.sources import fingerprint

QUESTIONS: list[Any] = ["what is the capital", "who learns quickly"]
KEPT = "answers of the untouched model: kept from an earlier run"


@pytest.fixture(scope="module")
def known(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and the cache that a first run on them left."""
    place = tmp_path_factory.mktemp("known")
    shutil.copytree(made / "base", place / "base")
    shutil.copy(made / "rows.json", place / "rows.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEWRIGHT_CACHE", str(place / "cache"))
        patch.setattr(fingerprint, "SMALLEST_BYTES", 0)
        train(place / "base")
    return place


@pytest.fixture
def known_base(known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that was asked in an earlier run."""
    place = tmp_path / "place"
    shutil.copytree(known, place)
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(place / "cache"))
    monkeypatch.setattr(fingerprint, "SMALLEST_BYTES", 0)
    return place / "base"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions were put to a model, each time that one was asked."""
    found: list[int] = []
    whole = generate.answer

    def counted(model: Any, prompts: list[list[int]], **more: Any) -> list[generate.Answer]:
        found.append(len(prompts))
        return whole(model, prompts, **more)

    monkeypatch.setattr(generate, "answer", counted)
    return found


def train(model: Path, name: str = "run", **changes: Any) -> tuple[tunewright.Run, list[str]]:
    """A short run on `model` and what it said."""
    engine = {
        "steps": 1,
        "batch_size": 4,
        "dtype": "float32",
        "threads": 1,
        **changes.pop("engine", {}),
    }
    told = Lines()
    settings = {
        "data": {"train": str(model.parent / "rows.json"), "held_out": 0},
        "method": {"kind": "lora"},
        "probes": QUESTIONS,
        "forgetting": "off",  # which is asked besides: test_general.py
        **changes,
    }
    run = tunewright.train(
        model=str(model), engine=engine, out=str(model.parent / name), tell=told, **settings
    )
    return run, told.said


def event(run: tunewright.Run, name: str) -> dict[str, Any]:
    lines = (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    (found,) = [one for line in lines if (one := json.loads(line))["event"] == name]
    return dict(found)


# ---- once


def test_before_is_asked_once_and_after_only_the_saved_files(base: Path, asked: list[int]) -> None:
    run, said = train(base, engine={"learning_rate": 1e-2, "steps": 6})
    assert asked == [2, 2]
    rows = run.before_after
    assert all(row["before"] != row["after"] == row["after_reload"] for row in rows)
    assert not any(row["reload_differs"] for row in rows) and KEPT not in said
    found = event(run, "reloaded")
    # 4 rows at their last place; two questions, each with four tokens of the answer before.
    assert (found["rows"], found["questions"], found["places"]) == (4, 2, 4 + 2 * 5)
    assert found["largest_logit_difference"] == max(
        found["rows_logit_difference"], found["questions_logit_difference"]
    )


def test_a_second_run_on_the_same_model_does_not_ask_it_again(base: Path, asked: list[int]) -> None:
    first, _ = train(base)
    second, said = train(base, "second", method={"kind": "ia3"}, engine={"seed": 5})
    assert asked == [2, 2, 2] and KEPT in said
    before = [[row["before"] for row in run.before_after] for run in (first, second)]
    assert before[0] == before[1] and all(before[0])
    _, said = train(base, "third", probes=[QUESTIONS[1], "which model is small"])
    assert asked == [2, 2, 2, 1, 2] and "1 of 2 answers are kept from an earlier run" in said


def change_weights(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] *= 1.001
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def change_template(base: Path) -> None:
    path = base / "chat_template.jinja"
    path.write_text(path.read_text() + "{# another #}")


def change_stop(base: Path) -> None:
    settings = {"eos_token_id": [2, 17]}
    (base / "generation_config.json").write_text(json.dumps(settings))


def change_config(base: Path) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-4}))


CHANGES: dict[str, tuple[Callable[[Path], None] | None, dict[str, Any]]] = {
    "nothing": (None, {}),
    "weights": (change_weights, {}),
    "template": (change_template, {}),
    "stop token": (change_stop, {}),
    "configuration": (change_config, {}),
    "question": (None, {"probes": [q + "?" for q in QUESTIONS]}),
    "limit": (None, {"probes": [{"question": q, "answer": "so " * 60} for q in QUESTIONS]}),
    "dtype": (None, {"engine": {"dtype": "bfloat16"}}),
    "system prompt": (None, {"system": "Be brief."}),
    "quantisation": (None, {"base": {"bits": 8}}),
}


@pytest.mark.wide("weights", "template", "question")
@pytest.mark.parametrize("what", CHANGES)
def test_a_kept_answer_is_not_taken_for_that_of_another(
    known_base: Path, asked: list[int], what: str
) -> None:
    base = known_base
    change, settings = CHANGES[what]
    if change:
        change(base)
    if "system" in settings:
        data = {"train": str(base.parent / "rows.json"), "held_out": 0, **settings}
        settings = {"data": data}
    _, said = train(base, "second", **settings)
    if what == "nothing":
        assert asked == [2] and KEPT in said
    else:
        assert asked == [2, 2] and KEPT not in said


def test_what_a_run_goes_on_from_is_kept_under_its_own_bytes(base: Path, asked: list[int]) -> None:
    rate = {"learning_rate": 1e-2, "steps": 4}
    first, _ = train(base, engine=rate)
    assert first.adapter
    second, said = train(base, "second", adapter=str(first.adapter))
    assert asked == [2, 2, 2, 2] and KEPT not in said
    third, said = train(base, "third", adapter=str(first.adapter))
    assert asked == [2, 2, 2, 2, 2]
    assert "answers of the model that training starts from: kept from an earlier run" in said
    assert [r["before"] for r in third.before_after] == [r["after"] for r in first.before_after]
    assert third.before_after[0]["before"] == second.before_after[0]["before"]
    train(base, "fourth", adapter=str(second.adapter))
    assert asked == [2] * 7


@pytest.mark.parametrize(
    ("method", "other", "kept"),
    [
        ({"kind": "full"}, {"kind": "full"}, True),
        ({"kind": "galore", "rank": 4}, {"kind": "galore", "rank": 8}, False),
        ({"kind": "pissa", "rank": 4}, {"kind": "lora", "rank": 8}, True),
    ],
)
def test_a_method_that_cannot_be_switched_off_is_part_of_what_answers(
    base: Path, asked: list[int], method: dict[str, Any], other: dict[str, Any], kept: bool
) -> None:
    first, _ = train(base, method=method)
    second, said = train(base, "second", method=other)
    assert (KEPT in said) == kept and asked == ([2, 2, 2] if kept else [2, 2, 2, 2])
    if kept:
        assert [r["before"] for r in first.before_after] == [
            r["before"] for r in second.before_after
        ]


def test_a_start_that_looks_at_the_rows_is_not_kept(base: Path) -> None:
    def about(**attached: Any) -> Any:
        asker: Any = object.__new__(asking.Asker)
        plan = {
            "source": SimpleNamespace(folder=base),
            "config": parse_run(given, dict.fromkeys(given, "test")).config,
        }
        asker.plan = SimpleNamespace(**plan)
        asker.world = SimpleNamespace(device="cuda:1", dtype="float32")
        opened: Any = SimpleNamespace(stepper=SimpleNamespace(attached=SimpleNamespace(**attached)))
        return asker._about(opened)

    given = {"model": str(base), "data.train": "rows.json", "method.kind": "lora"}
    assert about(disabled=None, look=print) is None
    known = about(disabled=print, look=print)
    assert known["method"] is None and known["device"] == "cuda"
    assert about(disabled=None, look=None)["method"][0] == "lora"


@pytest.mark.wide("half", "gone")
@pytest.mark.parametrize("damage", ["half", "nonsense", "another shape", "gone"])
def test_a_damaged_file_of_kept_answers_is_written_again(
    known_base: Path, asked: list[int], damage: str
) -> None:
    base = known_base
    (path,) = (base.parent / "cache" / "found" / "answers").glob("*.json")
    text = path.read_text(encoding="utf-8")
    if damage == "half":
        path.write_text(text[: len(text) // 2])
    elif damage == "nonsense":
        path.write_bytes(b"\xff\x00 no JSON")
    elif damage == "gone":
        path.unlink()
    else:
        found = json.loads(text)
        found["value"] = {name: {"text": 7} for name in found["value"]}
        path.write_text(json.dumps(found))
    train(base, "second")
    assert asked == [2, 2]
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(text)
    _, said = train(base, "third")
    assert asked == [2, 2, 2] and KEPT in said


def test_the_oldest_answers_of_a_model_give_way(
    base: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "MOST_ANSWERS", 3)
    train(base, probes=["a small model"])
    train(base, "second")
    train(base, "third", probes=["which model is small"])
    (path,) = (base.parent / "cache" / "found" / "answers").glob("*.json")
    assert len(json.loads(path.read_text())["value"]) == 3
    train(base, "fourth", probes=["a small model", *QUESTIONS])
    assert asked == [1, 1, 2, 2, 1, 1, 1, 3]


def test_nothing_is_kept_about_the_smallest_models(
    base: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SMALLEST_BYTES", 1 << 30)
    kept: list[str] = []
    monkeypatch.setattr(findings, "keep", lambda kind, *_: kept.append(kind))
    train(base)
    train(base, "second")
    assert asked == [2, 2, 2, 2]
    # What is kept is about this machine.
    assert set(kept) <= {"dtype", "rates", "runs"}


# ---- the saved files are what was trained


@pytest.mark.parametrize("chooses", [True, False])
def test_texts_at_once_have_the_logits_that_each_has_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, chooses: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(made / "base").eval()
    texts = [
        saved.Text([5, 9, 17, 33, 4], 3),
        saved.Text([7]),
        saved.Text([8, 90, 120, 7], 4),
        saved.Text([5, 9, 200], 2),
    ]
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([t.ids])).logits[0, -t.places :] for t in texts]
    if not chooses:
        whole = model.forward
        monkeypatch.setattr(model, "forward", lambda input_ids: whole(input_ids=input_ids))
    for rows in (1, 9, 1024):
        monkeypatch.setattr(saved, "ROWS_AT_ONCE", rows)
        for one, other in zip(saved._logits(model, texts), alone, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    monkeypatch.setattr(saved, "ROWS_AT_ONCE", 9)
    assert list(saved._groups(texts)) == [[1, 3], [2], [0]]


def test_files_that_differ_only_where_a_question_looks_are_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that no training row has and one question has: only its logits show the loss."""
    load = saved.load_afresh

    def damaged(plan: Any, *more: Any) -> Any:
        fresh = load(plan, *more)
        known = {t for s in plan.data.train for b in s.branches for t in b.tokens}
        asked = set(plan.renderer.prompt(plan.questions.probes[0].messages)) - known
        assert asked
        with torch.no_grad():
            for token in asked:
                fresh.loaded.causal.get_input_embeddings().weight[token] += 1.0
        return fresh

    monkeypatch.setattr(saved, "load_afresh", damaged)
    with pytest.raises(TrainingError, match="E-TRAIN-04"):
        train(base, probes=["ZQ! ZQ! ZQ!"])
    (line,) = [
        json.loads(one)
        for one in (base.parent / "run" / "events.jsonl").read_text().splitlines()
        if '"reloaded"' in one
    ]
    assert line["rows_logit_difference"] <= 1e-3 < line["questions_logit_difference"]


def test_an_answer_that_begins_otherwise_is_said_with_how_far_apart_the_two_are(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = generate.answer, []

    def other(model: Any, prompts: list[list[int]], **more: Any) -> list[generate.Answer]:
        calls.append(len(prompts))
        found = whole(model, prompts, **more)
        if len(calls) == 2:
            found[1] = generate.Answer("other", "limit", [found[1].tokens[0] + 1, 5, 6])
        return found

    monkeypatch.setattr(generate, "answer", other)
    run, said = train(base)
    assert [row["reload_differs"] for row in run.before_after] == [False, True]
    (line,) = [one for one in said if "begins its answer differently" in one]
    assert QUESTIONS[1] in line and QUESTIONS[0] not in line
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Answers that changed after reloading the saved files: 1." in page


def seen_of(logits: list[list[float]]) -> saved.Seen:
    largest = torch.tensor(logits).topk(3)
    return saved.Seen(largest.indices, largest.values, max(map(max, logits)))


@pytest.mark.parametrize(
    ("tokens", "end", "apart"),
    [
        ([2, 0], "limit", None),  # as the model in memory
        ([0, 0], "limit", 4.0),  # another first token
        ([1, 0], "limit", None),  # a tie: 0.001 of 10 is less than a thousandth
        ([2, 3], "limit", 2.0),  # the second differs, and the first is as it was asked
        ([2], "stop", 2.0),  # it stops where it would have gone on
        ([2, 0, 1], "limit", None),  # nobody knows what would have followed
        ([], "no_room", None),
    ],
)
def test_first_tokens_are_compared_as_far_as_they_are_known(
    tokens: list[int], end: Any, apart: float | None
) -> None:
    probe = asking.Probe("?", [])
    asker: Any = object.__new__(asking.Asker)
    asker.begun_with = {probe: [2, 1]}
    asker.world = type("World", (), {"dtype": "float32"})()
    model: Any = type("Model", (), {"stop_ids": [3]})()
    seen = seen_of([[6.0, 9.9995, 10.0, 1.0], [7.0, 1.0, 2.0, 5.0], [1.0, 0.0, 0.0, 9.0]])
    found = asker._apart(model, probe, generate.Answer("", end, tokens), seen)
    assert found == pytest.approx(apart) if apart is not None else found is None


# ---- time


@pytest.mark.parametrize("allowed", [Allowed(20.0, 99.0, [0, 2]), Allowed(0.0, 0.0, [0, 1, 2])])
def test_rows_that_there_is_no_time_for_are_left_out_before_and_after(
    base: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch, allowed: Allowed
) -> None:
    """Chosen before asking begins; or, where the time was spent after the first group."""
    monkeypatch.setattr(asking, "allow", lambda *_: allowed)
    monkeypatch.setattr(asking, "AT_ONCE", 2)
    run, said = train(base, probes=3)
    assert asked == [2, 2]
    assert run.summary["probes_left_out"] == 1
    assert len(run.before_after) == 2
    assert all(row["before"] and row["after"] for row in run.before_after)
    (line,) = [one for one in said if "not asked" in one]
    assert line.startswith("1 of 3 questions are not asked: ")


def test_a_resumed_run_asks_what_it_asked_before(tmp_path: Path) -> None:
    def asker_of(questions: list[str], stored: list[str], is_row: bool) -> Any:
        asker: Any = object.__new__(asking.Asker)
        asker.probes = [asking.Probe(q, [], is_row=is_row) for q in questions]
        asker.plan = type("Plan", (), {"out": tmp_path})()
        lines = [json.dumps({"question": q, "before": f"to {q}"}) for q in stored]
        (tmp_path / "before_after.jsonl").write_text("".join(one + "\n" for one in lines))
        return asker

    some = asker_of(["a", "b", "c"], ["a", "c"], True)
    assert some._has_stored() and some.left_out == 1
    assert [(p.question, p.before) for p in some.probes] == [("a", "to a"), ("c", "to c")]
    assert not asker_of(["a", "b", "c"], ["a", "c"], False)._has_stored()
    assert not asker_of(["a", "b"], ["b", "a"], True)._has_stored()
    assert not asker_of(["a"], [], True)._has_stored()
    assert asker_of([], [], True)._has_stored()
    whole = asker_of(["a", "a"], ["a", "a"], False)
    assert whole._has_stored() and whole.left_out == 0


# ---- how it is told


def test_answers_are_told_in_tokens_once_two_seconds_have_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told: list[tuple[Any, ...]] = []

    class Telling(Tell):
        def progress(self, *what: Any) -> None:
            told.append(what)

    progress = telling_answers(Telling(), "asking", 2, 96)
    first = ("asking: tokens", 0, 96, "0 of 2 answers")
    assert told == [first]
    for seconds, written in ((1.0, 10), (2.0, 20), (2.05, 21), (3.0, 30)):
        now[0] = 100.0 + seconds
        progress(written // 25, written, 96)
    assert told == [
        first,
        ("asking: tokens", 20, 96, "0 of 2 answers"),
        ("asking: tokens", 30, 96, "1 of 2 answers"),
    ]
