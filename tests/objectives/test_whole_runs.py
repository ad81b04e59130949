"""Whole runs of objectives that need more than log-probabilities: what they keep in the run folder,
and that a run taken up again is the same run."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import story

from tunewright.bench.speed import bench
from tunewright.core.errors import CompatError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.story import resume_run, train

TEXTS = [
    "the capital of France is Paris " * 12,
    "a small model learns quickly",
    "it's 10:30, isn't it?",
    "what is the capital of 2026",
] * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(
        tmp_path_factory.mktemp("teacher"), num_hidden_layers=3, hidden_size=96
    )


def rows(kind: str, place: Path) -> Path:
    made: list[dict[str, Any]] = [{"text": text} for text in TEXTS]
    if kind == "kto":
        made = [
            {
                "prompt": f"what is {i}?",
                "completion": f" the answer is {i * 7 % 10}",
                "label": i % 3 != 0,
            }
            for i in range(12)
        ]
    if kind in ("cpo", "orpo", "dpo"):
        made = [
            {
                "prompt": f"what is {i}?",
                "chosen": f"it is {i * 7 % 10} of 2026",
                "rejected": f"it is {i}",
            }
            for i in range(12)
        ]
    if kind in ("distill", "gkd"):
        made = [
            {
                "instruction": f"{story.QUESTIONS[i % 6]} {i}?",
                "output": f"the answer is {i * 7 % 10} of 2026",
            }
            for i in range(12)
        ]
    file = place / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in made))
    return file


def run(model: Path, place: Path, objective: dict[str, Any], **more: Any) -> Path:
    place.mkdir(exist_ok=True)
    given = {
        "model": str(model), "data.train": str(rows(objective["kind"], place)), "data.held_out": 3, "data.max_tokens": 48, "out": str(place / "run"),
        "probes": 1 if objective["kind"] != "pretrain" else 0, "engine.dtype": "float32", "engine.threads": 1, "engine.epochs": 2, "engine.batch_size": 4,
        "engine.save_every": 1, "engine.keep_best": False, "forgetting": "off", **{f"objective.{key}": value for key, value in objective.items()}, **more,
    }  # fmt: skip
    train(parse_run(given, dict.fromkeys(given, "test")), tell=Quiet())
    return place / "run"


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [
        e
        for e in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        if e["event"] == name
    ]


def weights(folder: Path) -> str:
    return story.digest(folder / "adapter" / "adapter_model.safetensors")


CASES: list[tuple[dict[str, Any], str | None]] = [
    ({"kind": "kto"}, "reference.safetensors"), ({"kind": "pretrain", "pack": 40, "z_loss": 1e-3}, None),
    ({"kind": "distill"}, None), ({"kind": "distill", "top_k": 8, "divergence": "jensen_shannon"}, "teacher.safetensors"),
    ({"kind": "cpo"}, None), ({"kind": "orpo", "sft_on": "all"}, None), ({"kind": "gkd", "on_policy": 0.6, "max_new_tokens": 6}, None),
]  # fmt: skip


@pytest.mark.wide("kto-", "orpo-all-", rest="slow")
@pytest.mark.parametrize(
    ("objective", "kept"),
    CASES,
    ids=lambda c: "-".join(map(str, c.values())) if isinstance(c, dict) else "",
)
def test_a_run_taken_up_again_ends_with_the_same_bytes(
    model: Path, teacher: Path, tmp_path: Path, objective: dict[str, Any], kept: str | None
) -> None:
    objective = objective | (
        {"teacher": str(teacher)} if objective["kind"] in ("distill", "gkd") else {}
    )
    whole = run(model, tmp_path / "whole", objective)
    steps = events(whole, "step")
    assert (
        all(e["applied"] for e in steps)
        and len(steps) == json.loads((whole / "summary.json").read_text())["steps"] > 2
    )
    assert (kept is None) or (whole / kept).is_file()
    watched = {"kto": "z0", "pretrain": "nll", "distill": "divergence", "gkd": "divergence"}.get(
        objective["kind"], "accuracy"
    )
    assert watched in steps[0]["figures"] and watched in events(whole, "evaluation")[0]["figures"]
    # As if it had been killed after step 2: later checkpoints, the result and the summary are not
    # there.
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    (half / "summary.json").unlink()
    shutil.rmtree(half / "adapter")
    for later in sorted((half / "checkpoints").glob("step-*"))[2:]:
        shutil.rmtree(later)
    left = {p.name for p in (half / "checkpoints").glob("step-*")}
    resume_run(half, tell=Quiet())
    assert left and weights(half) == weights(whole)
    again = events(half, "step")
    assert len(again) > len(steps) and {e["step"]: e["loss"] for e in again} == {
        e["step"]: e["loss"] for e in steps
    }


def test_documents_are_cut_packed_and_counted(model: Path, tmp_path: Path) -> None:
    folder = run(model, tmp_path, {"kind": "pretrain", "pack": 48})
    report = json.loads((folder / "data_report.json").read_text())
    assert (
        report["rows_kept"] == report["rows_read"] == 12
        and report["notes"]["pieces"] > 0
        and report["length_percentiles"]["max"] <= 48
    )
    assert (
        json.loads((folder / "summary.json").read_text())["samples"]
        == 2 * report["packed"]["train"]
    )
    assert report["packed"]["train"] < report["train"]


def test_a_teacher_with_another_vocabulary_stops_the_run_before_a_folder_appears(
    model: Path, tmp_path: Path
) -> None:
    other = story.model_folder(tmp_path / "other", vocab_size=400)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    with pytest.raises(CompatError) as caught:
        run(model, tmp_path / "r", {"kind": "distill", "teacher": str(other)})
    (found,) = caught.value.problems
    assert (
        found.code == "E-OBJ-02"
        and "400" in found.what()
        and "320" in found.what()
        and not (tmp_path / "r" / "run").exists()
    )


@pytest.mark.parametrize("kind", ["kto", "dpo"])
def test_what_a_run_would_cost_can_be_measured_for_objectives_with_a_reference(
    model: Path, tmp_path: Path, kind: str
) -> None:
    given = {
        "model": str(model), "data.train": str(rows("kto" if kind == "kto" else "cpo", tmp_path)), "objective.kind": kind, "engine.dtype": "float32",
        "engine.threads": 1, "engine.batch_size": 4,
    }  # fmt: skip
    assert (
        bench(
            parse_run(given, dict.fromkeys(given, "test")), steps=2, certificate=False, tell=Quiet()
        )["samples"]
        == 8
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_at_the_first_step_a_policy_is_its_reference_also_in_half_precision(
    model: Path, tmp_path: Path, dtype: str
) -> None:
    """Reference values are made in the passes in which the first epoch learns; otherwise half
    precision rounds the two differently."""
    made = run(
        model,
        tmp_path / dtype,
        {"kind": "dpo"},
        **{"engine.dtype": dtype, "engine.rows_per_pass": 64},
    )
    first, second = events(made, "step")[:2]
    assert (
        first["passes"] > 1
        and abs(first["figures"]["margin"]) < 1e-6
        and first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    )
    assert abs(second["figures"]["margin"]) > 1e-5
    measured = events(made, "evaluation")
    assert (
        abs(measured[0]["figures"]["margin"]) < 1e-6 < 1e-5 < abs(measured[-1]["figures"]["margin"])
    )


def stored(folder: Path) -> dict[bytes, float]:
    from safetensors.torch import load_file

    found = load_file(folder / "reference.safetensors")
    return {
        bytes(k): v for k, v in zip(found["keys"].numpy(), found["values"].tolist(), strict=True)
    }


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_the_first_step_leaves_the_values_that_measuring_would_have_given(
    model: Path, tmp_path: Path, kind: str
) -> None:
    """Dropout makes a pass that learns another than one that measures, so then everything is
    measured before."""
    short = run(model, tmp_path / "short", {"kind": kind})
    whole = run(
        model, tmp_path / "whole", {"kind": kind}, **{"method.kind": "lora", "method.dropout": 0.1}
    )
    measured = {folder: events(folder, "reference")[0]["branches"] for folder in (short, whole)}
    assert measured[short] < measured[whole] == len(stored(whole))
    assert set(stored(short)) == set(stored(whole))
    assert max(abs(v - stored(whole)[k]) for k, v in stored(short).items()) < 1e-4


def test_a_first_step_that_is_not_finite_leaves_no_value_of_its_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.engine.step import Stepper

    plain = stored(run(model, tmp_path / "plain", {"kind": "dpo"}))
    own = Stepper._one_pass
    taken: list[int] = []

    def spoilt(self: Any, group: Any, noise: Any, totals: Any, report: Any, figures: Any) -> None:
        kept = self.policy.reference.kept
        before = len(kept)
        own(self, group, noise, totals, report, figures)
        if self.number == 1:
            taken.append(len(kept) - before)
            for branch in (b for sample in group for b in sample.branches):
                kept.add(branch, values=np.array([float("nan")]))
            report.sums = {name: total * float("nan") for name, total in report.sums.items()}

    monkeypatch.setattr(Stepper, "_one_pass", spoilt)
    folder = run(model, tmp_path / "spoilt", {"kind": "dpo"})
    found, first = stored(folder), events(folder, "step")[0]
    assert not first["applied"] and sum(taken) >= 2 and set(found) == set(plain)
    assert all(abs(found[k] - plain[k]) < 1e-4 for k in plain)


def test_the_figures_that_are_told_are_those_of_the_weights_that_are_handed_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every measurement is made to look worse than the one before it: the best step is not the
    last, and the summary speaks of the best."""
    from tunewright.engine.step import Stepper

    own, worse = Stepper.held_out, itertools.count()

    def worse_each_time(*given: Any) -> tuple[float, list[float]]:
        loss, rewards = own(*given)
        return loss + 100 * next(worse), rewards

    monkeypatch.setattr(Stepper, "held_out", worse_each_time)
    folder = run(
        model,
        tmp_path,
        {"kind": "orpo"},
        **{
            "engine.keep_best": True,
            "engine.evaluate_every": 1,
            "engine.epochs": 3,
            "engine.learning_rate": 0.01,
        },
    )
    summary = json.loads((folder / "summary.json").read_text())
    measured = {e["step"]: e["figures"] for e in events(folder, "evaluation") if e["step"]}
    last = max(measured)
    assert summary["best_step"] < last and measured[last] != measured[summary["best_step"]]
    assert summary["held_out_figures"] == pytest.approx(measured[summary["best_step"]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["dpo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("kto", "orpo"))]
)
def test_many_held_out_rows_are_measured_in_part_and_all_of_them_at_the_end_where_that_is_cheap(
    model: Path, tmp_path: Path, kind: str
) -> None:
    """The figure over all rows is the one of a run that measures all rows every time: the weights
    are the same. `slow`: the objectives that keep what `dpo` keeps, or nothing."""
    settings = {"data.held_out": 6, "engine.evaluate_every": 1, "engine.keep_best": False}
    whole = run(model, tmp_path / f"{kind}-whole", {"kind": kind}, **settings)
    some = run(
        model,
        tmp_path / f"{kind}-some",
        {"kind": kind},
        **settings,
        **{"engine.evaluate_rows": 2, "engine.epochs": 60, "engine.steps": 3},
    )
    few = json.loads((some / "summary.json").read_text())
    assert few["held_out_loss_all"] is None and all(
        e["figures"] for e in events(some, "evaluation")
    )
    assert len(stored(some)) < len(stored(whole)) if kind != "orpo" else True
    long = {"engine.steps": 40, "engine.evaluate_every": None}
    whole, some = (
        run(
            model,
            tmp_path / f"{kind}-long{rows}",
            {"kind": kind},
            **{**settings, **long},
            **{"engine.evaluate_rows": rows},
        )
        for rows in (None, 2)
    )
    all_at_end, asked = (
        json.loads((folder / "summary.json").read_text()) for folder in (some, whole)
    )
    assert asked["held_out_loss_all"] is None
    assert (
        all_at_end["held_out_loss_all"]
        == pytest.approx(asked["held_out_loss"], rel=1e-4)
        != all_at_end["held_out_loss"]
    )
    assert events(some, "evaluation_all")[0]["rows"] == 6
