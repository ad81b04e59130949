"""LISA: who is awake, what the others keep, and that it is AdamW on the awake part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import story, tiny

from tunewright.core.config import EngineConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.engine.optim import optimizer_for
from tunewright.methods.lisa import rounded_by_lot
from tunewright.models import anatomy
from tunewright.story import resume_run, train


def put(model: Any, steps: int = 12, **settings: Any) -> Any:
    entry = methods.get("lisa")
    assert entry is not None
    attached = entry.function(entry.config(**settings), model, anatomy.of(model), "tiny")
    attached.begin(steps)
    return attached


def awake(model: Any) -> list[int]:
    return [
        n
        for n, block in enumerate(model.model.layers)
        if all(p.requires_grad for p in block.parameters())
    ]


def test_it_is_adamw_on_what_is_awake_with_fresh_moments_for_who_wakes() -> None:
    model = tiny.make_model("llama", num_hidden_layers=4)
    attached = put(model, blocks=1, every=2)
    stepper = tiny.make_stepper(model, attached, weight_decay=0.1)
    weights = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    moments: dict[str, tuple[Any, Any, int]] = {}
    seen = []
    for number in range(1, 11):
        (up,) = awake(model)
        seen.append(up)
        mine = {
            n
            for n in weights
            if not n.startswith("model.layers.") or n.startswith(f"model.layers.{up}.")
        }
        stepper.gradients(tiny.dialogues())
        found = {
            n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None
        }
        assert set(found) == mine
        model.zero_grad(set_to_none=True)
        moments = {n: m for n, m in moments.items() if n in mine}
        for n in mine:
            first, second, count = moments.get(n, (0.0, 0.0, 0))
            first, second, count = (
                0.9 * first + 0.1 * found[n],
                0.999 * second + 0.001 * found[n] ** 2,
                count + 1,
            )
            moments[n] = (first, second, count)
            decay = 0.1 if weights[n].ndim > 1 else 0.0
            weights[n] = weights[n] * (1 - 1e-2 * decay) - 1e-2 * (first / (1 - 0.9**count)) / (
                (second / (1 - 0.999**count)).sqrt() + 1e-8
            )
        assert stepper.step(tiny.dialogues(), number, 1e-2).applied
        for n, p in model.named_parameters():
            assert torch.allclose(p.double(), weights[n], atol=2e-5), (number, n)
    assert seen[0::2] == seen[1::2] and len(set(seen)) > 1


def test_every_block_has_its_turn_and_the_seed_decides() -> None:
    def turns(seed: int) -> list[tuple[int, ...]]:
        model = tiny.make_model("llama", num_hidden_layers=4)
        attached = put(model, blocks=2, every=1)
        optimizer_for(EngineConfig(seed=seed), attached, model)
        found = []
        for updates in range(40):
            attached.after_update(updates)
            found.append(tuple(awake(model)))
        return found

    first, again, other = turns(0), turns(0), turns(1)
    assert first == again != other and all(len(up) == 2 for up in first)
    assert all(10 <= sum(block in up for up in first) <= 30 for block in range(4))


def test_auto_is_a_fiftieth_of_the_run_and_at_least_five() -> None:
    for steps, every in ((20, 5), (1000, 20)):
        model = tiny.make_model("llama", num_hidden_layers=4)
        attached = put(model, steps=steps, blocks=1)
        kept = []
        for updates in range(60):
            attached.after_update(updates)
            kept.append(awake(model)[0])
        assert (
            all(len(set(kept[i : i + every])) == 1 for i in range(0, 60, every))
            and len(set(kept)) > 1
        )


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(TunewrightError) as caught:
        put(tiny.make_model("llama"), blocks=3)
    assert caught.value.problems[0].code == "E-METHOD-02"


def test_who_sleeps_is_held_in_the_models_number_type_without_gradient_and_moments() -> None:
    model = tiny.make_model("llama", num_hidden_layers=4).to(torch.bfloat16)
    attached = put(model, blocks=1, every=1)
    stepper = tiny.make_stepper(model, attached)
    for number in range(1, 6):
        assert stepper.step(tiny.dialogues(), number, 1e-2).applied
        (up,) = awake(model)
        for n, block in enumerate(model.model.layers):
            assert {p.dtype for p in block.parameters()} == {
                torch.float32 if n == up else torch.bfloat16
            }
            assert n == up or not any(p in stepper.optimizer.state for p in block.parameters())
        assert model.model.embed_tokens.weight.dtype == torch.float32


def test_rounding_by_lot_keeps_the_mean_and_what_needs_no_rounding() -> None:
    values = torch.randn(200, dtype=torch.float32) * torch.logspace(-3, 3, 200)
    mean = torch.stack(
        [rounded_by_lot(values, torch.bfloat16, seed).double() for seed in range(4000)]
    ).mean(0)
    spacing = values.abs().double() / 128
    assert (
        float(((mean - values.double()).abs() / spacing).max()) < 0.05
    )  # one draw is off by up to a whole spacing
    exact = values.bfloat16().float()
    assert torch.equal(rounded_by_lot(exact, torch.bfloat16, 1).float(), exact)
    low, high = rounded_by_lot(values, torch.bfloat16, 1), rounded_by_lot(values, torch.bfloat16, 2)
    assert float(((low.float() - values).abs() / spacing.float()).max()) <= 1 and not torch.equal(
        low, high
    )
    odd = torch.tensor([0.0, -0.0, 3.4e38, float("inf"), float("nan")])
    found = rounded_by_lot(odd, torch.bfloat16, 3).float()
    assert found[0] == 0 and bool(found[3].isinf()) and bool(found[4].isnan())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_taken_up_again_in_the_middle_of_a_period_is_the_same_run(
    tmp_path: Path, dtype: str
) -> None:
    model = story.model_folder(tmp_path / "model", num_hidden_layers=4)
    given = {
        "model": str(model), "data.train": str(story.rows_file(tmp_path / "rows.json")), "data.held_out": 0, "out": str(tmp_path / "whole"), "probes": 1, "forgetting": "off",
        "method.kind": "lisa", "method.blocks": 1, "method.every": 2, "engine.dtype": dtype, "engine.threads": 1, "engine.epochs": 3,
        "engine.batch_size": 4, "engine.save_every": 1,
    }  # fmt: skip
    train(parse_run(given, dict.fromkeys(given, "test")), tell=Quiet())
    whole, half = tmp_path / "whole", tmp_path / "half"
    steps = json.loads((whole / "summary.json").read_text())["steps"]
    shutil.copytree(whole, half)
    (half / "summary.json").unlink()
    shutil.rmtree(half / "model")
    kept = sorted((half / "checkpoints").glob("step-*"))
    assert steps == 9 and len(kept) == 2
    shutil.rmtree(kept[-1])  # step 9; step 8 is the end of a period, and its update drew new blocks
    resume_run(half, tell=Quiet())
    assert story.digest(half / "model" / "model.safetensors") == story.digest(
        whole / "model" / "model.safetensors"
    )
