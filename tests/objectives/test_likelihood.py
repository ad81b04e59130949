"""Plain likelihood, label smoothing and the z-loss against torch's cross entropy on all logits, one
sample at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny
from torch.nn.functional import cross_entropy

from tunewright.core.registry import objectives

VARIANTS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"label_smoothing": 0.2, "z_loss": 0.003},
]


def objective(kind: str, settings: dict[str, Any]) -> Any:
    entry = objectives.get(kind)
    assert entry is not None
    return entry.function(entry.config(**settings))


def slow_loss(model: Any, settings: dict[str, Any], samples: list[Any]) -> Any:
    total, weights = torch.zeros(()), 0.0
    for branch in (b for s in samples for b in s.branches):
        logits = model(input_ids=torch.tensor([branch.tokens])).logits[0].float()
        for i, weight in zip(branch.learnt, branch.weights, strict=True):
            z = logits[i - 1]
            value = cross_entropy(
                z[None],
                torch.tensor([branch.tokens[i]]),
                label_smoothing=settings.get("label_smoothing", 0.0),
            )
            total = total + weight * (
                value
                + settings.get("z_loss", 0.0) * torch.log(torch.exp(z.double()).sum()).float() ** 2
            )
            weights += weight
    return total / weights


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("trains", ["blocks", "everything"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("settings", VARIANTS)
def test_value_and_gradient_equal_cross_entropy(
    settings: dict[str, Any], family: str, trains: str, layout: str
) -> None:
    """With `everything` the head trains, and in Gemma-2 it is the embedding and has a softcap."""
    model = tiny.make_model(family)
    attached = tiny.attach_lora(model) if trains == "blocks" else tiny.attach_all(model)
    tiny.randomise(attached, seed=4)
    samples = [*tiny.dialogues()[:3], *tiny.pairs()[:1]]
    stepper = tiny.make_stepper(model, attached, layout=layout)
    stepper.objective = objective("sft", settings)
    stepper.policy.spread = stepper.objective.spread
    report = stepper.gradients(samples)
    ours = tiny.gradients(attached)
    model.set_attn_implementation("eager")
    loss = slow_loss(attached.model.eval(), settings, samples)
    loss.backward()
    theirs = tiny.gradients(attached)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert ours.keys() == theirs.keys() and ours
    for name, g in theirs.items():
        assert float((ours[name] - g).norm()) <= 1e-5 * float(g.norm()) + 1e-9, name


@pytest.mark.parametrize("kind", ["sft", "pretrain"])
def test_how_the_step_is_cut_changes_nothing(kind: str) -> None:
    model = tiny.make_model("qwen3")
    attached = tiny.attach_lora(model)
    tiny.randomise(attached)
    found = []
    for rows in (1024, 40, 1):
        stepper = tiny.make_stepper(model, attached, rows_per_pass=rows)
        stepper.objective = objective(kind, {"label_smoothing": 0.1, "z_loss": 0.01})
        stepper.policy.spread = True
        report = stepper.gradients(tiny.nothing_shared())
        found.append((report.passes, report.terms, tiny.gradients(attached)))
    assert [passes for passes, _, _ in found] == [1, 3, 4]
    for _, terms, other in found[1:]:
        assert terms == pytest.approx(found[0][1], rel=1e-6)
        for name, g in found[0][2].items():
            assert float((other[name] - g).norm()) <= 1e-5 * float(g.norm()) + 1e-9, name


def test_the_plain_loss_is_shown_beside_a_smoothed_one() -> None:
    model = tiny.make_model("llama")
    attached = tiny.attach_lora(model)
    plain = tiny.make_stepper(model, attached)
    smooth = tiny.make_stepper(model, attached)
    smooth.objective, smooth.policy.spread = objective("sft", {"label_smoothing": 0.1}), True
    samples = tiny.nothing_shared()
    assert smooth.gradients(samples).figures["nll"] == pytest.approx(
        plain.gradients(samples).loss, rel=1e-5
    )


@pytest.mark.parametrize("settings", VARIANTS)
def test_extreme_values_stay_finite(settings: dict[str, Any]) -> None:
    logprob, mean, log_z = (
        torch.tensor(values, requires_grad=True)
        for values in ([-1e4, 0.0, -1e-9], [-1e4, -5.3, -2e4], [1e4, -1e4, 0.0])
    )
    output = SimpleNamespace(
        logprob=logprob, weight=torch.ones(3), log_z=log_z, mean_logprob=mean, figures={}
    )
    loss = sum(
        coefficient * total
        for total, coefficient in objective("sft", settings).terms(output).values()
    )
    loss.backward()
    assert math.isfinite(float(loss.detach())) and bool(torch.isfinite(logprob.grad).all())
