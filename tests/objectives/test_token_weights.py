"""EAFT beside LLaMA-Factory's own function (0.9.6, trainer_utils, Apache 2.0), BCO beside its authors'
formula one answer at a time, and what the weights never touch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Sample
from tunewright.engine.loaded import use_layout
from tunewright.engine.oracles.reference import ReferenceStore
from tunewright.engine.policy import Policy
from tunewright.engine.step import held_out_loss


def their_eaft(source: torch.Tensor, target: torch.Tensor, alpha: float) -> torch.Tensor:
    """`_eaft_cross_entropy`: source (rows, vocabulary), target (rows,)."""
    losses = torch.nn.functional.cross_entropy(source, target, reduction="none")
    with torch.no_grad():
        top, _ = torch.topk(source.detach(), k=20, dim=-1)
        log_p = top - torch.logsumexp(top, dim=-1, keepdim=True)
        entropy = -(log_p.exp() * log_p).sum(-1)
        weight = torch.pow(entropy / 3.0, alpha)
    return (losses * weight).mean()


def dialogues() -> list[Sample]:
    """Two with a common beginning, one longer."""
    rows = [([5, 9, 17], [4, 8, 2]), ([5, 9, 17], [4, 30, 31, 2]), ([6], [19, 55, 21, 60, 2])]
    made = []
    for i, (prompt, answer) in enumerate(rows):
        learnt = list(range(len(prompt), len(prompt) + len(answer)))
        made.append(Sample([Branch(prompt + answer, learnt, [1.0] * len(answer))], i))
    return made


def stepper_for(model: Any, kind: str, settings: dict[str, Any], layout: str) -> Any:
    entry = objectives.get(kind)
    assert entry is not None
    stepper = tiny.make_stepper(model, tiny.attach_all(model), layout=layout)
    stepper.objective = entry.function(entry.config(**settings))
    stepper.policy.asks = stepper.objective.asks
    return stepper


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("frozen_head", [False, True])
def test_eaft_is_llama_factorys(alpha: float, layout: str, frozen_head: bool) -> None:
    model = tiny.make_model("llama", initializer_range=0.3)
    plain = copy.deepcopy(model).requires_grad_(True)
    stepper = stepper_for(model, "sft", {"loss": "eaft", "eaft_alpha": alpha}, layout)
    if frozen_head:
        model.lm_head.weight.requires_grad_(False)
    found = stepper.gradients(dialogues())
    rows, targets = [], []
    for sample in dialogues():
        branch = sample.branches[0]
        logits = plain(input_ids=torch.tensor([branch.tokens])).logits[0].float()
        rows += [logits[i - 1] for i in branch.learnt]
        targets += [branch.tokens[i] for i in branch.learnt]
    loss = their_eaft(torch.stack(rows), torch.tensor(targets), alpha)
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if p.requires_grad and q.grad is not None:
            gap = float((p.grad - q.grad).norm())
            assert gap <= 1e-5 * float(q.grad.norm()) + 1e-9, name


@pytest.mark.parametrize("loss", ["dft", "eaft"])
def test_held_out_rows_are_measured_by_the_likelihood(loss: str) -> None:
    model = tiny.make_model("llama", initializer_range=0.3)
    measured = [
        held_out_loss(s.policy, s.objective, dialogues(), 64)
        for s in (
            stepper_for(copy.deepcopy(model), "sft", {"loss": loss}, "tree"),
            stepper_for(copy.deepcopy(model), "sft", {}, "tree"),
        )
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)


def judged() -> list[Sample]:
    found = dialogues()
    for i, sample in enumerate(found):
        sample.branches[0].role = "bad" if i == 1 else "good"
    return found


def test_bco_is_its_paper_and_its_shift_is_the_mean_of_the_steps() -> None:
    """Two steps on a model that has moved: delta is the mean of the steps' mean rewards."""
    start = tiny.make_model("llama", initializer_range=0.3)
    model = copy.deepcopy(start)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    settings = {"beta": 0.5, "good_weight": 1.3, "bad_weight": 0.6}
    stepper = stepper_for(model, "bco", settings, "tree")
    store = ReferenceStore({})
    use_layout(start, "tree")
    store.fill(Policy(start, start, "tree"), judged(), 256)
    stepper.policy.reference = store
    use_layout(start, "padded")
    changes = []
    for sample in judged():
        branch, sides = sample.branches[0], []
        for one in (model, start):
            held = one.config._attn_implementation
            one.set_attn_implementation("sdpa")
            with torch.no_grad():
                table = one(input_ids=torch.tensor([branch.tokens])).logits[0].log_softmax(-1)
            one.set_attn_implementation(held)
            sides.append(sum(float(table[i - 1, branch.tokens[i]]) for i in branch.learnt))
        changes.append(0.5 * (sides[0] - sides[1]))

    def wanted(rewards: list[float], delta: float) -> float:
        def minus_log_sigmoid(x: float) -> float:
            return math.log1p(math.exp(-x))

        good = [1.3 * minus_log_sigmoid(rewards[i] - delta) for i in (0, 2)]
        return (sum(good) + 0.6 * minus_log_sigmoid(delta - rewards[1])) / 3

    first = sum(changes) / 3
    assert stepper.gradients(judged()).loss == pytest.approx(wanted(changes, first), rel=1e-4)
    # Measuring in between does not move the mean; the next step counts as much as the first.
    held_out_loss(stepper.policy, stepper.objective, judged(), 64)
    assert stepper.objective.state() == {"mean": pytest.approx(first, rel=1e-4), "count": 1}
    part = judged()[:1]
    delta = (first + changes[0]) / 2
    loss = 1.3 * math.log1p(math.exp(-(changes[0] - delta)))
    assert stepper.gradients(part).loss == pytest.approx(loss, rel=1e-4)
