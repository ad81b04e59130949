"""Diff pruning: gates by the papers' equations, a share that is reached, places in few bytes, noise
that is a function of the step."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import TunewrightError
from tunewright.core.registry import methods
from tunewright.core.seeds import stream_seed
from tunewright.methods.diff_pruning import gaps_of, positions_of
from tunewright.methods.saved import put_on
from tunewright.models import anatomy

IDS = [[5, 9, 17, 33, 4, 8, 90, 120, 7, 7, 3], [6, 6, 44, 100, 2, 1, 19, 55, 21, 60, 200]]


def attach(model: Any, **config: Any) -> Any:
    entry = methods.get("diff_pruning")
    assert entry is not None
    torch.manual_seed(0)
    return entry.function(entry.config(**config), model, anatomy.of(model), "tiny")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS), use_cache=False).logits


def parts(model: Any) -> dict[str, Any]:
    return {
        n.removesuffix(".difference"): m
        for n, m in model.named_modules()
        if n.endswith(".difference")
    }


def train(
    attached: Any, model: Any, steps: int, rate: float = 5e-3, total: int | None = None
) -> Any:
    attached.begin(total or steps)
    stepper = tiny.make_stepper(model, attached)
    for number in range(1, steps + 1):
        assert stepper.step(tiny.dialogues() + tiny.pairs(), number, rate).applied
    model.set_attn_implementation("sdpa")
    attached.model.eval()
    return stepper


def changed(model: Any) -> int:
    return sum(int((part.pruned() != 0).sum()) for part in parts(model).values())


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(("low", "high", "temperature"), [(-1.5, 1.5, 1.0), (-0.1, 1.1, 2 / 3)])
def test_value_gradients_and_penalty_are_those_of_the_papers_equations(
    structured: bool, low: float, high: float, temperature: float
) -> None:
    """Every number by hand: one small matrix, gates half open, the derivative of each equation
    written out."""
    model = tiny.make_model("llama", "float64")
    attached = attach(
        model,
        targets=["k_proj"],
        target=0.01,
        stretch=(low, high),
        temperature=temperature,
        structured=structured,
        open_at_start=0.3,
    )
    tiny.randomise(attached, spread=0.5)
    name, part = next(iter(parts(model).items()))
    x = torch.randn(3, 48, dtype=torch.float64)
    toward = torch.randn(3, part.w.shape[0], dtype=torch.float64)
    part.train()
    y = part(x)
    (y * toward).sum().backward()

    shared = part.shared
    generator = torch.Generator().manual_seed(stream_seed(shared.seed, name, 1))
    noise = torch.rand(part.w.shape, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)

    def gate(a: float, u: float) -> tuple[float, float]:
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + a) / temperature))
        stretched = low + s * (high - low)
        return min(1.0, max(0.0, stretched)), (
            s * (1 - s) / temperature * (high - low) if 0 < stretched < 1 else 0.0
        )

    zg, dzg = (
        gate(
            float(part.group.detach()),
            float(torch.rand((), generator=generator, dtype=torch.float64)),
        )
        if structured
        else (1.0, 0.0)
    )
    wanted_y = torch.zeros_like(y)
    d_group, gates, weights = 0.0, part.gate.detach(), part.w.detach()
    for o in range(part.w.shape[0]):
        for i in range(part.w.shape[1]):
            z, dz = gate(float(gates[o, i]), float(noise[o, i]))
            w = float(weights[o, i])
            wanted_y[:, o] += x[:, i] * w * z * zg
            g = float(x[:, i] @ toward[:, o])
            assert float(part.w.grad[o, i]) == pytest.approx(g * z * zg, abs=1e-9)
            assert float(part.gate.grad[o, i]) == pytest.approx(g * w * dz * zg, abs=1e-9)
            d_group += g * w * z * dzg
    assert torch.allclose(y, wanted_y, atol=1e-10)
    if structured:
        assert float(part.group.grad) == pytest.approx(d_group, abs=1e-9)

    shift = temperature * math.log(-low / high)
    open_of = {
        n: [1 / (1 + math.exp(-(a - shift))) for a in p.gate.detach().flatten().tolist()]
        for n, p in parts(model).items()
    }
    group_of = {
        n: (1 / (1 + math.exp(-(float(p.group.detach()) - shift))) if structured else 1.0)
        for n, p in parts(model).items()
    }
    expected = sum(group_of[n] * sum(values) for n, values in open_of.items()) / sum(
        len(v) for v in open_of.values()
    )
    total, coefficient = attached.penalties()["l0"]
    assert float(total.detach()) == pytest.approx(expected, rel=1e-9)
    assert coefficient == 10.0
    part.gate.grad = None
    total.backward()
    p = open_of[name][7]
    count = sum(len(v) for v in open_of.values())
    assert float(part.gate.grad.flatten()[7]) == pytest.approx(
        p * (1 - p) * group_of[name] / count, rel=1e-9
    )


def test_a_gate_is_open_as_often_as_the_distribution_says() -> None:
    """P(z > 0) = sigmoid(a - t log(-low / high)), an integral of the noise done on paper; the
    penalty counts with it."""
    model = tiny.make_model("llama")
    attach(
        model, targets=["mlp"], open_at_start=0.7, stretch=(-0.4, 1.2), temperature=0.8, target=0.01
    )
    drawn = []
    for name, part in parts(model).items():
        part.train()
        with torch.no_grad():
            part.w.fill_(1.0)
        drawn.append((part.delta(torch.float32) > 0).float().flatten())
        del name
    share = float(torch.cat(drawn).mean())
    wanted = 1 / (1 + math.exp(-(0.7 - 0.8 * math.log(0.4 / 1.2))))
    assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / sum(map(len, drawn)))


@pytest.mark.parametrize("target", [0.005, 0.05])
def test_the_share_that_was_asked_for_is_reached_within_a_tenth_and_so_is_the_saved_one(
    target: float, tmp_path: Path
) -> None:
    model = tiny.make_model("llama")
    total = sum(p.numel() for p in model.parameters())
    attached = attach(model, target=target)
    train(attached, model, 6)
    assert abs(changed(model) - target * total) <= 0.1 * target * total
    attached.save(tmp_path)
    merged = put_on(tiny.make_model("llama"), tmp_path).merge()
    before = dict(tiny.make_model("llama").named_parameters())
    differing = sum(int((p != before[n]).sum()) for n, p in merged.named_parameters())
    assert abs(differing - target * total) <= 0.1 * target * total


def test_the_share_is_reached_even_where_every_gate_has_closed() -> None:
    model = tiny.make_model("llama")
    total = sum(p.numel() for p in model.parameters())
    attached = attach(model, target=0.02, open_at_start=-3.0, settle=0.5)
    stepper = train(attached, model, 1, total=4)
    assert changed(model) == pytest.approx(0.02 * total, rel=0.1)
    largest = max(float(part.pruned().abs().max()) for part in parts(model).values())
    assert largest <= 1e-3 * 0.06 * max(
        float(part.w.detach().abs().max()) for part in parts(model).values()
    )  # nearly shut: sigmoid(-3) is 0.05
    model.set_attn_implementation("tunewright_tree")
    for number in (2, 3):
        stepper.step(tiny.dialogues(), number, 5e-3)
    assert max(float(part.pruned().abs().max()) for part in parts(model).values()) > 10 * largest


def test_after_settling_the_places_stay_and_only_kept_values_move() -> None:
    model = tiny.make_model("llama")
    attached = attach(model, target=0.02, settle=0.5)
    stepper = train(attached, model, 3, total=6)
    after_cut = {n: part.pruned() for n, part in parts(model).items()}
    assert all(torch.equal(part.w.detach(), after_cut[n]) for n, part in parts(model).items())
    assert attached.penalties() == {}
    stepper.policy.model.set_attn_implementation("tunewright_tree")
    for number in range(4, 7):
        stepper.step(tiny.dialogues(), number, 5e-3)
    for n, part in parts(model).items():
        assert torch.equal(part.pruned() != 0, after_cut[n] != 0)
    assert any(not torch.equal(part.pruned(), after_cut[n]) for n, part in parts(model).items())


def test_the_model_that_is_measured_is_the_one_that_is_saved_at_any_step(tmp_path: Path) -> None:
    model = tiny.make_model("llama")
    attached = attach(model, target=0.02, settle=1.0)
    train(attached, model, 2, total=9)
    dense = sum(int((part.mean_delta() != 0).sum()) for part in parts(model).values())
    measured = logits(model)
    attached.save(tmp_path)
    assert changed(model) < dense / 10
    assert torch.equal(logits(put_on(tiny.make_model("llama"), tmp_path).model), measured)


def test_noise_is_a_function_of_the_step_not_of_the_global_generator() -> None:
    def gradient(step: int, draws: int) -> torch.Tensor:
        model = tiny.make_model("llama")
        attached = attach(model, target=0.02, open_at_start=0.0)
        tiny.randomise(attached)
        attached.load_state({**attached.state(), "step": step})
        stepper = tiny.make_stepper(model, attached)
        torch.rand(draws)
        stepper.gradients(tiny.dialogues())
        return torch.cat([g.flatten() for g in tiny.gradients(attached).values()])

    assert torch.equal(gradient(3, 1), gradient(3, 50))
    assert not torch.equal(gradient(3, 1), gradient(4, 1))


def test_how_a_step_is_cut_into_passes_does_not_change_its_gradient() -> None:
    found = []
    for rows in (1 << 30, 20):
        model = tiny.make_model("llama", "float64")
        attached = attach(model, target=0.02, open_at_start=0.0)
        tiny.randomise(attached)
        report = tiny.make_stepper(model, attached, rows_per_pass=rows).gradients(tiny.dialogues())
        found.append(
            (report.passes, torch.cat([g.flatten() for g in tiny.gradients(attached).values()]))
        )
    assert found[0][0] == 1 < found[1][0]
    # Not 1e-10: Transformers' rotary tables are float32 whatever the model computes in.
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 1e-6


def test_a_half_precision_base_keeps_differences_far_below_its_own_rounding() -> None:
    model = tiny.make_model("llama", "bfloat16")
    attached = attach(model, targets=["o_proj"], target=0.001)
    part = next(iter(parts(model).values()))
    with torch.no_grad():
        part.w[3, 5] = 1e-6
    model.eval()
    x = torch.zeros(1, part.w.shape[1], dtype=torch.bfloat16)
    x[0, 5] = 1.0
    assert float(part(x)[0, 3]) == pytest.approx(1e-6, rel=1e-2)
    assert {p.dtype for n, p in model.named_parameters() if n in set(attached.parameters)} == {
        torch.float32
    }


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 70_000), max_size=200))
def test_positions_come_back_from_their_code(positions: set[int]) -> None:
    wanted = torch.tensor(sorted(positions), dtype=torch.int64)
    codes = gaps_of(wanted)
    assert codes.dtype == torch.uint8
    assert torch.equal(positions_of(codes), wanted)
    assert len(codes) <= len(wanted) + (max(positions, default=0) + 1) // 255


def test_half_a_percent_of_positions_and_values_takes_less_than_1_7_percent_of_a_bfloat16_model() -> (
    None
):
    draw = random.Random(0)
    total = 400_000
    positions = torch.tensor(sorted(draw.sample(range(total), total // 200)))
    assert len(gaps_of(positions)) + 4 * len(positions) < 0.017 * 2 * total


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"targets": ["embed_tokens"]}, "E-METHOD-44"),
        ({"targets": ["k_proj"], "target": 0.5}, "E-METHOD-43"),
    ],
)
def test_what_cannot_differ_is_refused_with_its_reason(config: dict[str, Any], code: str) -> None:
    with pytest.raises(TunewrightError, match=code):
        attach(tiny.make_model("llama"), **config)


def test_a_stretch_that_never_closes_a_gate_is_refused() -> None:
    entry = methods.get("diff_pruning")
    assert entry is not None
    for wrong in ({"stretch": (0.1, 1.5)}, {"stretch": (-1, 0.9)}, {"target": 0}, {"settle": 0}):
        with pytest.raises(ValueError, match="validation error"):
            entry.config(**wrong)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = tiny.make_model("llama")
    attached = attach(model, target=0.02)
    train(attached, model, 1)
    attached.save(tmp_path)
    with pytest.raises(TunewrightError, match="E-METHOD-42"):
        put_on(tiny.make_model("gpt2"), tmp_path)
    with pytest.raises(TunewrightError, match="E-METHOD-42"):
        put_on(tiny.make_model("llama", hidden_size=24), tmp_path)


def test_the_estimate_counts_what_trains() -> None:
    from tunewright.models.shape import ModelShape, trainable_parameters

    entry = methods.get("diff_pruning")
    assert entry is not None
    for config in ({}, {"structured": True}, {"targets": ["attention.query", "down_proj"]}):
        model = tiny.make_model("llama")
        shape = ModelShape.from_config(model.config.to_dict())
        attached = attach(model, **config)
        assert trainable_parameters(shape, entry.config(**config)) == sum(
            p.numel() for n, p in model.named_parameters() if n in set(attached.parameters)
        )
