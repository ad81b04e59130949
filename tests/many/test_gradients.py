"""Two processes that share a step leave the gradient that one process leaves, for every objective
and method, with whole copies (ddp) and with shares (fsdp)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import many, story

TABLE = Path(__file__).with_name("table.py")
OBJECTIVES = ("sft", "dpo", "reward", "kto", "grpo", "ppo", "distill")
METHODS = ("lora", "full", "freeze", "dora", "prompt_tuning", "adapter")
BOTH, TOLERANCE, TOLERANCE_OF_PAIRS = ["ddp", "fsdp"], 1e-5, 5e-5
"""float32; 5 samples on 2 ranks are unequal numbers, and of 1 a rank holds none. What a reward
model learns of a pair is the difference of two gradients that are nearly the same: up to 270 units
in the last place (3.2e-5, an adapter's bias), and 4e-14 in float64 (docs/LOG.md)."""
COUNTS = {"kto": [3, 1], "ppo": [3, 1]}
"""Where 5 samples are two passes in one process too, each as on one of two ranks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("table")
    story.model_folder(place / "model")
    story.model_folder(place / "teacher", num_hidden_layers=1)
    story.rows_file(place / "rows.json", 8)
    asked = story.QUESTIONS
    pairs = [
        {"prompt": f"{q}?", "chosen": f"it is {i}", "rejected": f"no, {i} it is not"}
        for i, q in enumerate(asked)
    ]
    judged = [
        {"prompt": f"{q}?", "completion": f"it is {i}", "label": i % 2 == 0}
        for i, q in enumerate(asked)
    ]
    for name, rows in (
        ("pairs", pairs),
        ("judged", judged),
        ("prompts", [{"prompt": f"{q}?"} for q in asked]),
    ):
        (place / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return place


def gaps(folder: Path, name: str, rows: list[Any], seconds: float) -> list[Any]:
    table = folder / f"{name}.json"
    table.write_text(json.dumps(rows))
    ended = many.Pair([str(TABLE), str(folder), str(table), str(seconds)]).wait(seconds + 5)
    assert [code for code, _ in ended] == [0, 0], "\n----\n".join(text[-3000:] for _, text in ended)
    found: list[Any] = json.loads((folder / f"{name}.found.json").read_text())
    return found


def wrong(found: list[Any]) -> list[Any]:
    """Rows that are not within the tolerance, or that raised."""

    def most(row: list[Any]) -> float:
        return TOLERANCE_OF_PAIRS if row[0] == "reward" else TOLERANCE

    return [row for row in found if not (isinstance(row[-1], float) and row[-1] <= most(row))]


@pytest.mark.slow
def test_two_processes_leave_the_gradient_of_one(folder: Path) -> None:
    assert wrong(gaps(folder, "few", [["sft", "lora", BOTH, [5, 1]]], 60)) == []


@pytest.mark.thorough
def test_every_objective_with_every_method(folder: Path) -> None:
    rows = [[o, m, BOTH, COUNTS.get(o, [5, 1])] for o in OBJECTIVES for m in METHODS]
    rows.append(["sft", "adalora", ["ddp"], [5, 1]])  # its penalty counts once
    assert wrong(gaps(folder, "all", rows, 600)) == []
