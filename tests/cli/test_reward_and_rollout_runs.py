"""Whole runs of the road from pairs to a policy, on a tiny model: a reward run, what measures and
uses it, rounds, kills in the middle of a round."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import forks, story


def pairs_file(path: Path, count: int = 16) -> Path:
    rows = [
        {
            "instruction": f"{story.QUESTIONS[i % 6]} {i}?",
            "chosen": f"the answer is {i % 10} of 2026",
            "rejected": f"who learns {i % 10} small",
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def prompts_file(path: Path, count: int = 12) -> Path:
    path.write_text(
        "".join(
            json.dumps({"prompt": f"{story.QUESTIONS[i % 6]} {i}?", "wanted": i}) + "\n"
            for i in range(count)
        ),
        encoding="utf-8",
    )
    return path


def words(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--model", str(model), "--data", str(data), "--out", str(out), "engine.dtype=float32", "engine.threads=1", "engine.batch_size=4",
        "engine.save_every=2", "probes=2", "forgetting=off", *more,
    ]  # fmt: skip


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [
        e
        for line in (run / "events.jsonl").read_text().splitlines()
        if (e := json.loads(line))["event"] == name
    ]


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model folder, a finished reward run on it)."""
    place = tmp_path_factory.mktemp("reward")
    model, data = story.model_folder(place / "model"), pairs_file(place / "pairs.json")
    more = [
        "objective.kind=reward",
        "engine.epochs=12",
        "engine.learning_rate=3e-3",
        "data.held_out=4",
    ]
    done = story.tunewright(*words(model, data, place / "run", *more))
    assert done.returncode == 0, done.stderr
    return model, place / "run"


def test_a_reward_run_scores_before_and_after_and_says_how_many_pairs_it_ranks(
    reward_run: tuple[Path, Path],
) -> None:
    _, run = reward_run
    asked = [json.loads(line) for line in (run / "before_after.jsonl").read_text().splitlines()]
    assert len(asked) == 2 and all(
        row["before"] != row["after"] == row["after_reload"] for row in asked
    )
    assert all("≻" in row["expected"] and "+" in row["after"] for row in asked)
    summary = json.loads((run / "summary.json").read_text())
    assert (
        summary["held_out_figures"]["accuracy"] == 1.0
        and summary["final_loss"] < 0.2 < summary["first_loss"]
    )


def test_a_reward_run_is_measured_on_pairs_beside_judges_that_understand_nothing(
    reward_run: tuple[Path, Path], tmp_path: Path
) -> None:
    _, run = reward_run
    done = story.tunewright(
        "evaluate", str(run), "--data", str(pairs_file(tmp_path / "p.json", 22)), "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["ranking"]
    assert found["n"] == 22 and found["right"] >= 20 and found["interval_95"][0] < found["accuracy"]
    assert (
        found["words"]["training_pairs"] == 12
        and found["words"]["accuracy"] == 1.0
        and found["length"]["accuracy"] == 1.0
    )
    shown = story.tunewright("evaluate", str(run), "--data", str(tmp_path / "p.json"))
    assert (
        shown.returncode == 0 and "by word counts" in shown.stdout and "no better" in shown.stdout
    )
    refused = story.tunewright(
        "evaluate", str(run), "--data", str(story.rows_file(tmp_path / "rows.json"))
    )
    assert refused.returncode == 2 and "E-EVAL-06" in refused.stderr
    chat = story.tunewright("chat", str(run), "-q", "hello")
    assert chat.returncode == 2 and "E-OBJ-37" in chat.stderr


@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_a_policy_learns_from_a_reward_run_on_the_same_base_weights(
    reward_run: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    model, reward = reward_run
    data = prompts_file(tmp_path / "prompts.jsonl")
    more = [
        f"objective.kind={kind}",
        f"objective.reward={reward}",
        "objective.max_new_tokens=6",
        "data.held_out=4",
        "engine.steps=4",
    ]
    done = story.tunewright(*words(model, data, tmp_path / "run", *more))
    assert done.returncode == 0, done.stderr
    assert "held in memory once" in done.stderr and "held-out reward" in done.stderr
    steps = events(tmp_path / "run", "step")
    assert len(steps) == 4 and all(
        s["figures"]["first_ratio_gap"] == 0.0 and "reward_run" in s["figures"] for s in steps
    )
    assert events(tmp_path / "run", "answers")[0]["answers"][0]["answer"] is not None
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["held_out_figures"]
    assert {"reward", "reward_change", "reward_change_error"} <= set(figures)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["objective.kind=grpo"], "E-OBJ-33"),
        (["objective.kind=grpo", "objective.reward=numerc"], "E-REWARD-01"),
        (["objective.kind=ppo", "objective.reward={folder}/nothing"], "E-REWARD-05"),
        (["objective.kind=grpo", "objective.reward=exact_match"], "E-REWARD-14"),
        (
            ["objective.kind=grpo", "objective.reward=exact_match", "objective.on_bad=skip"],
            "E-OBJ-36",
        ),
        (["objective.kind=reward"], "E-COMPAT-05"),
    ],
)
def test_what_cannot_work_is_said_with_its_code(tmp_path: Path, more: list[str], code: str) -> None:
    """`exact_match` needs a column that these prompts do not have: known only when the first answer
    is judged."""
    model, data = story.model_folder(tmp_path / "model"), prompts_file(tmp_path / "prompts.jsonl")
    given = [m.replace("{folder}", str(tmp_path)) for m in more]
    done = story.tunewright(
        *words(model, data, tmp_path / "run", *given, "engine.steps=2", "data.held_out=0")
    )
    assert done.returncode in (1, 2) and code in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )


def test_a_run_that_scores_nothing_is_no_reward(
    reward_run: tuple[Path, Path], tmp_path: Path
) -> None:
    model, _ = reward_run
    assert (
        story.tunewright(
            *words(
                model, story.rows_file(tmp_path / "rows.json"), tmp_path / "sft", "engine.steps=1"
            )
        ).returncode
        == 0
    )
    more = ["objective.kind=grpo", f"objective.reward={tmp_path / 'sft'}", "engine.steps=1"]
    done = story.tunewright(
        *words(model, prompts_file(tmp_path / "prompts.jsonl"), tmp_path / "run", *more)
    )
    assert done.returncode == 2 and "E-OBJ-34" in done.stderr


@pytest.mark.slow
@pytest.mark.wide("grpo")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_kills_in_the_middle_of_rounds_leave_the_same_bytes(tmp_path: Path, kind: str) -> None:
    model, data = story.model_folder(tmp_path / "model"), prompts_file(tmp_path / "prompts.jsonl")
    more = [
        f"objective.kind={kind}", "objective.reward={kind: length, max: 4, slope: 4}", "objective.max_new_tokens=6", "objective.generations=3",
        "objective.beta=0.1", "engine.steps=6", "data.held_out=4", "engine.evaluate_every=3", "objective.minibatches=2",
    ]  # fmt: skip
    more += ["objective.kl_target=1.0"] if kind == "ppo" else []
    golden, run = tmp_path / "golden", tmp_path / "run"
    done = story.tunewright(*words(model, data, golden, *more))
    assert done.returncode == 0, done.stderr
    moments = [
        ["tunewright.engine.rollouts.rounds", "RoundStepper.step", 1], ["tunewright.models.kernels.answer_attention", "AnswerMemory.attend", 9],
        ["tunewright.engine.step", "Stepper.step", 7], ["tunewright.engine.rollouts.rounds", "RoundStepper.draw_and_judge", 3],
        ["tunewright.engine.step", "Stepper.step", 3], ["os", "rename", 2], ["tunewright.engine.loop", "Loop._evaluate", 1],
        ["tunewright.run.asking", "Asker.begun", 1],
    ]  # fmt: skip
    attempts = forks.play(words(model, data, run, *more), run, moments)
    assert {a["status"] for a in attempts} <= {-9, 0}, attempts
    assert sum(a["status"] == -9 for a in attempts) >= 6
    assert story.digest(run / "adapter" / "adapter_model.safetensors") == story.digest(
        golden / "adapter" / "adapter_model.safetensors"
    )
    assert (
        json.loads((run / "summary.json").read_text())["held_out_figures"]
        == json.loads((golden / "summary.json").read_text())["held_out_figures"]
    )
