"""AdaLoRA in whole runs: however short the run is, and whichever step was the best, what is handed
out has the rank that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story

from tunewright import story as the_story
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine.step import Stepper


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


def kept_directions(folder: Path) -> int:
    """Entries of the diagonal that were not set to 0, over all layers of a saved adapter."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    return sum(int((tensor != 0).sum()) for name, tensor in tensors.items() if "lora_E" in name)


def run(model: Path, place: Path, steps: int, **more: Any) -> Path:
    keys = {
        "model": str(model), "data.train": str(story.rows_file(place / "rows.json")), "data.held_out": 4, "out": str(place / "run"), "probes": 0, "forgetting": "off",
        "method.kind": "adalora", "method.rank": 2, "engine.dtype": "float32", "engine.threads": 1, "engine.steps": steps, "engine.batch_size": 4,
        "engine.evaluate_every": 1, "engine.learning_rate": 0.01, **more,
    }  # fmt: skip
    the_story.train(parse_run(keys, {}), tell=Quiet())
    return place / "run"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_very_few_steps_ends_with_the_rank_that_was_asked_for(
    model: Path, tmp_path: Path, steps: int
) -> None:
    assert (
        kept_directions(run(model, tmp_path, steps)) <= 2 * 14
    )  # seven layers in each of two blocks


def test_a_step_before_the_ranks_have_fallen_is_not_kept_as_the_best(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter(
        [5.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.2, 2.1, 2.3, 2.4]
    )  # before training, then after each step: the first is the lowest
    monkeypatch.setattr(Stepper, "held_out", lambda *given, **more: (next(losses), []))
    out = run(model, tmp_path, 10)
    summary = json.loads((out / "summary.json").read_text())
    assert (
        summary["best_step"] == 8
    )  # the best of those from step 7 on, where the ranks have fallen (three tenths before the end)
    assert kept_directions(out) <= 2 * 14
