"""Every objective with the options of the engine, two at a time and more: what may not change a
number does not, what may leaves a sound run.

- The layout, how steps are cut into passes, checkpoints, the activation cache and how many held-out
  rows are measured change no number.
- Noise on the embeddings, half precision, clipping and another optimiser do; the run then ends well
  and its figures are numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import parts
import pytest
import torch
from helpers import story
from safetensors.torch import load_file

from tunewright.core.registry import objectives

SAME: dict[str, dict[str, Any]] = {
    "passes": {
        "engine.rows_per_pass": 24,
        "engine.activation_cache": "off",
        "engine.save_every": 1,
        "engine.evaluate_every": 1,
    },
    "padded": {"engine.layout": "padded", "engine.rows_per_pass": 64, "engine.evaluate_rows": 1},
}
OTHER: dict[str, dict[str, Any]] = {
    "noise": {"engine.neftune": 5, "engine.clip": 0.5},
    "noise_padded": {"engine.neftune": 5, "engine.layout": "padded", "engine.rows_per_pass": 24},
    "half": {"engine.dtype": "bfloat16", "engine.optimizer": "adafactor", "engine.clip": None},
}
METHOD = {
    "method.kind": "lora",
    "method.rank": 4,
    "method.layers": [1],
    "engine.learning_rate": 1e-3,
}
"""Where only upper blocks train, the hidden states below them are kept."""
SHOWN = ("sft", "pretrain", "distill", "dpo", "reward", "ppo")
"""One of each way to read rows, to ask another model and to draw answers. `thorough`: the others, which
differ from one of these in their formula."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the one that learns: with itself as teacher there is nothing to learn but
    rounding."""
    return story.model_folder(tmp_path_factory.mktemp("teacher"), num_hidden_layers=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("rows")
    return {name: parts.write(place / f"{name}.jsonl", rows) for name, rows in parts.ROWS.items()}


def combinations() -> list[tuple[str, str]]:
    return [(objective, option) for objective in objectives.names() for option in (*SAME, *OTHER)]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: t.float()
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, t in load_file(file).items()
        if file.parent.name != "checkpoints"
    }


@pytest.mark.wide("ppo", "sft")
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=() if name in SHOWN else pytest.mark.thorough)
        for name in objectives.names()
    ],
)
def test_options_that_may_not_change_a_number_do_not_and_the_others_leave_a_sound_run(
    objective: str, model: Path, teacher: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    kind = next(iter(parts.LEARNT[objective]))
    name = {
        "conversation": "alpaca",
        "text": "text",
        "preference": "preference",
        "judged": "kto",
        "stepwise": "stepwise",
    }[kind]
    held = parts.write(tmp_path / "held.jsonl", parts.ROWS[name][:2])
    shared = {
        **parts.settings_of(objective, teacher),
        "data.held_out": str(held),
        "engine.keep_best": False,
    }

    def run(label: str, **options: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        made = parts.run(
            model, str(files[name]), tmp_path / label, **{**shared, **METHOD, **options}
        )
        return made.summary, tensors(made.folder)

    plain, weights = run("plain")
    for label, options in SAME.items():
        summary, found = run(label, **options)
        assert summary["first_loss"] == pytest.approx(plain["first_loss"], rel=1e-4, abs=1e-6), (
            label
        )
        # A measurement of one row is another figure than one of two.
        if "engine.evaluate_rows" not in options:
            assert summary["held_out_loss"] == pytest.approx(
                plain["held_out_loss"], rel=1e-3, abs=1e-5
            ), label
        for key, tensor in weights.items():
            # As a whole: Adam gives a number whose gradient is nearly nothing a step of full
            # length, in the direction that rounding says.
            assert float((found[key] - tensor).norm()) <= 0.02 * float(tensor.norm()), (label, key)
    for label, options in OTHER.items():
        summary, found = run(label, **options)  # none of these is refused
        assert summary["status"] == "done" and summary["skipped_steps"] == 0, label
        assert math.isfinite(summary["first_loss"]) and math.isfinite(summary["held_out_loss"]), (
            label
        )
        assert all(bool(t.isfinite().all()) for t in found.values()), label
        assert any(not torch.equal(found[key], tensor) for key, tensor in weights.items()), label
