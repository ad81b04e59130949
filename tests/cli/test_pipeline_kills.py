"""`kill -9` in every stage of a pipeline and between them: resumed, it leaves the bytes of the one
that was never killed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import forks, story

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CHECKING = [
    ["tunewright.commands.dry_run", "dry_run", 2],
    ["tunewright.commands.pipeline", "_create", 1],
    ["os", "rename", 1],
]
FIRST = [
    ["tunewright.story", "train", 1], ["tunewright.record.folder", "create", 1], ["tunewright.engine.step", "Stepper.step", 2],
    ["safetensors.torch", "save_file", 2], ["tunewright.engine.step", "Stepper.step", 3], ["tunewright.run.saved", "_logits", 1],
    ["tunewright.report.html", "write_report", 1],
]  # fmt: skip
BETWEEN = [
    ["tunewright.commands.pipeline", "_result_of", 1], ["tunewright.commands.pipeline", "_remember", 1], ["tunewright.report.stages", "write_stages_report", 1],
    ["tunewright.commands.pipeline", "_heading", 1],
]  # fmt: skip
SECOND = [
    ["tunewright.models.load", "load_model", 1], ["tunewright.engine.oracles.reference", "ReferenceStore.save", 1], ["tunewright.engine.step", "Stepper.step", 2],
    ["tunewright.engine.step", "Stepper.step", 3], ["os", "fsync", 5], ["tunewright.run.asking", "Asker.begun", 1],
    ["tunewright.commands.pipeline", "_result_of", 1], ["tunewright.commands.pipeline", "_remember", 1],
]  # fmt: skip
"""Each list is in the order of a pipeline, so that every kill comes later than the one before it.
"""


def _file(place: Path) -> Path:
    """sft, then dpo from its adapter, on a tiny model in float32."""
    pairs = [
        {
            "prompt": f"{story.QUESTIONS[i % 6]} {i}?",
            "chosen": f"it is {i * 7 % 10}",
            "rejected": f"no {i * 3 % 10}",
        }
        for i in range(12)
    ]
    (place / "pairs.json").write_text(json.dumps(pairs))
    made: dict[str, Any] = {
        "model": str(story.model_folder(place / "model")),
        "engine": {"dtype": "float32", "threads": 1, "epochs": 3, "batch_size": 4, "save_every": 2},
        "data": {"held_out": 0},
        "probes": 1,
        "forgetting": "off",
        "stages": [
            {"name": "sft", "data": str(story.rows_file(place / "rows.json"))},
            {
                "name": "dpo",
                "adapter": "stage:sft",
                "objective": "dpo",
                "data": str(place / "pairs.json"),
            },
        ],
    }
    (place / "p.yaml").write_text(json.dumps(made))
    return place / "p.yaml"


def _moments(seed: int) -> list[list[Any]]:
    draw = random.Random(seed)

    def some(pool: list[list[Any]], count: int) -> list[list[Any]]:
        return sorted(draw.sample(pool, count), key=pool.index)

    return [*some(CHECKING, 1), *some(FIRST, 3), *some(BETWEEN, 2), *some(SECOND, 4)]


def _play(file: Path, out: Path, moments: list[list[Any]]) -> list[dict[str, Any]]:
    """Run the pipeline, with a kill at each of the moments, until it ends."""
    attempts = forks.play(["train", str(file), "--out", str(out)], out, moments)
    assert attempts[-1]["status"] == 0, attempts
    return attempts


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(1, marks=pytest.mark.thorough),
        pytest.param(2, marks=pytest.mark.thorough),
    ],
)
def test_a_pipeline_killed_in_every_stage_and_between_ends_with_the_same_bytes(
    tmp_path: Path, seed: int
) -> None:
    file, golden, run, moments = (
        _file(tmp_path),
        tmp_path / "golden",
        tmp_path / "run",
        _moments(seed),
    )
    _play(file, golden, [])
    attempts = _play(file, run, moments)
    assert {a["status"] for a in attempts} <= {-9, 0}, attempts
    killed = [a["moment"] for a in attempts if a["status"] == -9]
    assert len(killed) >= 8 and all(
        any(moment in pool for moment in killed) for pool in (FIRST, BETWEEN, SECOND)
    ), attempts
    for out in (golden, run):
        assert json.loads((out / "summary.json").read_text())["status"] == "done"
    for name in (
        "01-sft/adapter/adapter_model.safetensors",
        "02-dpo/adapter/adapter_model.safetensors",
    ):
        assert story.digest(run / name) == story.digest(golden / name), name
    steps = {
        name: [json.loads(line) for line in (run / name / "events.jsonl").read_text().splitlines()]
        for name in ("01-sft", "02-dpo")
    }
    for events in steps.values():
        assert {e["step"] for e in events if e["event"] == "step"} == set(range(1, 10))
    assert (
        sum(e["event"] == "finished" and e["status"] == "done" for e in steps["01-sft"]) <= 2
    )  # never trained a second time
    assert sorted(p.name for p in run.iterdir()) == [
        "01-sft",
        "02-dpo",
        "pipeline.yaml",
        "report.html",
        "summary.json",
    ]


@pytest.mark.thorough
def test_the_whole_road_to_a_policy_killed_in_every_stage_and_inside_roll_outs_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    questions = [f"{story.QUESTIONS[i % 6]} {i}?" for i in range(12)]
    pairs = [
        {"prompt": q, "chosen": f"it is {i * 7 % 10}", "rejected": f"no {i * 3 % 10}"}
        for i, q in enumerate(questions)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": q}) + "\n" for q in questions)
    )
    policy = {
        "kind": "ppo",
        "reward": "stage:reward",
        "max_new_tokens": 6,
        "generations": 2,
        "minibatches": 2,
        "beta": 0.1,
    }
    made: dict[str, Any] = {
        "model": str(story.model_folder(tmp_path / "model")),
        "engine": {"dtype": "float32", "threads": 1, "epochs": 2, "batch_size": 4, "save_every": 2},
        "data": {"held_out": 0},
        "probes": 1,
        "forgetting": "off",
        "stages": [
            {"name": "sft", "data": str(story.rows_file(tmp_path / "rows.json"))},
            {
                "name": "reward",
                "adapter": "stage:sft",
                "objective": "reward",
                "data": str(tmp_path / "pairs.json"),
            },
            {
                "name": "ppo",
                "adapter": "stage:sft",
                "objective": policy,
                "data": str(tmp_path / "prompts.jsonl"),
                "engine": {"steps": 5},
            },
        ],
    }
    file = tmp_path / "p.yaml"
    file.write_text(json.dumps(made))
    draw = ["tunewright.models.kernels.answer_attention", "AnswerMemory.attend"]
    moments = [
        ["tunewright.engine.step", "Stepper.step", 3], ["tunewright.commands.pipeline", "_remember", 1], ["tunewright.engine.step", "Stepper.step", 4],
        ["tunewright.commands.pipeline", "_result_of", 1], [*draw, 9], ["tunewright.engine.rollouts.rounds", "RoundStepper.draw_and_judge", 2],
        [*draw, 40], ["tunewright.engine.step", "Stepper.step", 5], ["os", "rename", 2], [*draw, 15],
    ]  # fmt: skip
    golden, run = tmp_path / "golden", tmp_path / "run"
    _play(file, golden, [])
    attempts = _play(file, run, moments)
    assert {a["status"] for a in attempts} <= {-9, 0}, attempts
    killed = [a["moment"] for a in attempts if a["status"] == -9]
    assert len(killed) >= 8 and sum(moment[:2] == draw for moment in killed) >= 2, attempts
    for name in ("01-sft", "02-reward", "03-ppo"):
        weights = Path(name) / "adapter" / "adapter_model.safetensors"
        assert story.digest(run / weights) == story.digest(golden / weights), name
    seen = [json.loads(line) for line in (run / "03-ppo" / "events.jsonl").read_text().splitlines()]
    assert {e["step"] for e in seen if e["event"] == "step"} == set(range(1, 6))
    assert any(e["event"] == "resumed" for e in seen)
