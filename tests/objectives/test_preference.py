"""Losses on pairs against slow references written from their papers, one pair and one token at a
time."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Sample
from tunewright.engine.loaded import use_layout
from tunewright.engine.oracles.reference import ReferenceStore
from tunewright.engine.policy import Policy

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {}), ("dpo", {"beta": 0.5, "label_smoothing": 0.2}), ("dpo", {"loss": "hinge"}), ("ipo", {"beta": 0.3}), ("dpo", {"sft_weight": 0.7}),
    ("orpo", {"beta": 0.4}), ("simpo", {"beta": 1.5, "gamma": 0.6}), ("orpo", {"sft_on": "all"}), ("cpo", {}), ("cpo", {"sft_weight": 0.3, "label_smoothing": 0.1}),
    ("dpo", {"loss": "robust", "label_smoothing": 0.2}), ("dpo", {"loss": "exo_pair", "label_smoothing": 0.1}), ("dpo", {"loss": "exo_pair", "beta": 0.4}),
    ("dpo", {"loss": "nca_pair"}), ("dpo", {"loss": "sppo_hard"}), ("dpo", {"loss": "apo_zero"}), ("dpo", {"loss": "apo_down", "beta": 0.3}),
]  # fmt: skip


def pairs() -> list[Sample]:
    """Three pairs: shared prompts, answers with a common beginning, different lengths, one with
    weight 2."""

    def pair(
        index: int, prompt: list[int], chosen: list[int], rejected: list[int], weight: float = 1.0
    ) -> Sample:
        def branch(answer: list[int], role: str) -> Branch:
            learnt = list(range(len(prompt), len(prompt) + len(answer)))
            return Branch(prompt + answer, learnt, [weight] * len(answer), role=role)

        return Sample([branch(chosen, "chosen"), branch(rejected, "rejected")], index)

    return [
        pair(0, [5, 9, 17, 33], [4, 8, 90, 2], [4, 8, 7, 7, 3, 2]),
        pair(1, [5, 9, 17, 40, 41], [6, 2], [44, 100, 1, 2], 2.0),
        pair(2, [6, 6], [19, 55, 21, 60, 2], [19, 2]),
    ]  # fmt: skip


def token_logprobs(model: Any, branch: Branch) -> list[Any]:
    """log p of every learnt token, one sample through the stock model."""
    ids = torch.tensor([branch.tokens])
    table = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
    return [table[i - 1, branch.tokens[i]] for i in branch.learnt]


def other_losses(settings: dict[str, Any], chosen: Any, rejected: Any) -> Any:
    """What fewer people use, from the papers: `chosen` and `rejected` are changes of
    log-probabilities."""
    beta, smooth = settings.get("beta", 0.1), settings.get("label_smoothing", 0.0)

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + torch.exp(-x))

    p = sigmoid(beta * (chosen - rejected))
    if settings["loss"] == "robust":
        return (-(1 - smooth) * torch.log(p) + smooth * torch.log(1 - p)) / (1 - 2 * smooth)
    if (
        settings["loss"] == "exo_pair"
    ):  # KL of the model's choice from one that is right with probability 1 - smooth
        smooth = smooth or 0.001
        return p * torch.log(p / (1 - smooth)) + (1 - p) * torch.log((1 - p) / smooth)
    if settings["loss"] == "nca_pair":
        return (
            -torch.log(sigmoid(beta * chosen))
            - 0.5 * torch.log(sigmoid(-beta * chosen))
            - 0.5 * torch.log(sigmoid(-beta * rejected))
        )
    if settings["loss"] == "sppo_hard":
        return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
    if settings["loss"] == "apo_zero":
        return 1 - sigmoid(beta * chosen) + sigmoid(beta * rejected)
    return sigmoid(beta * chosen) + 1 - sigmoid(beta * (chosen - rejected))


def slow_loss(
    kind: str, settings: dict[str, Any], model: Any, reference: Any, samples: list[Sample]
) -> Any:
    """The papers' formulas, scalar by scalar."""
    beta = settings.get("beta", {"orpo": 0.1, "simpo": 2.0}.get(kind, 0.1))
    total = weights = likelihood = tokens = torch.zeros(())
    for sample in samples:
        chosen, rejected = (token_logprobs(model, b) for b in sample.branches)
        with torch.no_grad():
            chosen_ref, rejected_ref = (sum(token_logprobs(reference, b)) for b in sample.branches)
        c, r, weight = sum(chosen), sum(rejected), sample.branches[0].weights[0]
        if kind == "orpo":
            odds = [
                torch.exp(x / len(y)) / (1 - torch.exp(x / len(y)))
                for x, y in ((c, chosen), (r, rejected))
            ]
            value = -beta * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))
        elif kind == "simpo":
            value = -torch.log(
                torch.sigmoid(
                    beta / len(chosen) * c - beta / len(rejected) * r - settings.get("gamma", 1.0)
                )
            )
        elif kind == "ipo":
            value = (
                (c - chosen_ref) / len(chosen) - (r - rejected_ref) / len(rejected) - 1 / (2 * beta)
            ) ** 2
        elif kind == "cpo":
            smooth, p = (
                settings.get("label_smoothing", 0.0),
                1 / (1 + torch.exp(beta * r - beta * c)),
            )
            value = -(1 - smooth) * torch.log(p) - smooth * torch.log(1 - p)
        elif settings.get("loss", "sigmoid") in (
            "robust",
            "exo_pair",
            "nca_pair",
            "sppo_hard",
            "apo_zero",
            "apo_down",
        ):
            value = other_losses(
                settings, (c - chosen_ref).double(), (r - rejected_ref).double()
            ).float()
        else:
            ratio = beta * ((c - chosen_ref) - (r - rejected_ref))
            smooth = settings.get("label_smoothing", 0.0)
            value = (
                torch.clamp(1 - ratio, min=0)
                if settings.get("loss") == "hinge"
                else -(1 - smooth) * torch.log(torch.sigmoid(ratio))
            )
            value = value - smooth * torch.log(torch.sigmoid(-ratio))
        total, weights = total + weight * value, weights + weight
        if settings.get("sft_on") == "all":
            tokens_of = sample.branches[0].tokens
            chosen = token_logprobs(model, Branch(tokens_of, list(range(1, len(tokens_of))), []))
            c = sum(chosen)
        likelihood, tokens = likelihood - weight * c, tokens + weight * len(chosen)
    extra = 1.0 if kind == "orpo" else settings.get("sft_weight", 1.0 if kind == "cpo" else 0.0)
    return total / weights + extra * likelihood / tokens


def gradients(model: Any, loss: Any) -> dict[str, torch.Tensor]:
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def prepared(
    family: str, layout: str
) -> tuple[Any, Any, Any, Callable[[str, dict[str, Any], int], Any]]:
    """A moved LoRA model, the reference (the model at step 0), and a function that leaves the
    engine's gradient."""
    reference = tiny.make_model(family)
    reference.set_attn_implementation("eager")
    model = tiny.make_model(family)
    torch.manual_seed(1)
    attached = tiny.attach_lora(model)
    use_layout(model, layout)
    store = ReferenceStore({})
    store.fill(Policy(attached.model, model, layout), pairs(), 64)
    with torch.no_grad():
        for p in attached.model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)

    def step(kind: str, settings: dict[str, Any], rows: int) -> Any:
        entry = objectives.get(kind)
        assert entry is not None
        stepper = tiny.make_stepper(model, attached, layout=layout, rows_per_pass=rows)
        stepper.objective = entry.function(entry.config(**settings))
        stepper.policy.reference = store if stepper.objective.reference else None
        return stepper.gradients(pairs())

    return model, attached.model, reference, step


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_value_and_gradient_equal_the_papers_formula(
    kind: str, settings: dict[str, Any], layout: str
) -> None:
    model, wrapped, reference, step = prepared("llama", layout)
    report = step(kind, settings, 1024)
    ours = {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.grad is not None}
    wrapped.zero_grad()
    model.set_attn_implementation("eager")
    wrapped.eval()
    loss = slow_loss(kind, settings, wrapped, reference, pairs())
    theirs = gradients(wrapped, loss)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert ours.keys() == theirs.keys() and ours
    for name, g in theirs.items():
        assert float((ours[name] - g).norm()) <= 1e-5 * float(g.norm()) + 1e-9, name


@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
def test_how_the_step_is_cut_changes_nothing(kind: str, settings: dict[str, Any]) -> None:
    _, wrapped, _, step = prepared("qwen3", "tree")
    found = []
    for rows in (1024, 20, 1):
        report = step(kind, settings, rows)
        found.append(
            (
                report.passes,
                {n: p.grad.clone() for n, p in wrapped.named_parameters() if p.grad is not None},
            )
        )
        wrapped.zero_grad()
    assert [passes for passes, _ in found] == [1, 2, 3]
    for _, other in found[1:]:
        for name, g in found[0][1].items():
            assert float((other[name] - g).norm()) <= 1e-5 * float(g.norm()) + 1e-9, name


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *VARIANTS,
        ("dpo", {"loss": "bco_pair"}),
        ("dpo", {"loss": "discopop"}),
        ("dpo", {"loss": "sigmoid_norm"}),
        ("dpo", {"loss": ["sigmoid", "hinge"], "wpo": True}),
    ],
)
def test_extreme_log_probabilities_stay_finite(kind: str, settings: dict[str, Any]) -> None:
    entry = objectives.get(kind)
    assert entry is not None
    objective = entry.function(entry.config(**settings))
    sample = pairs()[0]
    for chosen, rejected in ((-1e4, -1e-9), (-1e-9, -1e4), (0.0, 0.0), (-1e4, -1e4)):
        logprob = torch.tensor([chosen] * 4 + [rejected] * 6, requires_grad=True)
        output = SimpleNamespace(
            logprob=logprob, weight=torch.ones(10), branch=torch.tensor([0] * 4 + [1] * 6), branch_sample=[0, 0], samples=[sample],
            reference=torch.zeros(2, dtype=torch.float64), figures={}, facts={"log_sum_of_squares": torch.zeros(10)},
        )  # fmt: skip
        loss = sum(coefficient * total for total, coefficient in objective.terms(output).values())
        loss.backward()
        assert math.isfinite(float(loss.detach())) and bool(torch.isfinite(logprob.grad).all())


def test_figures_count_the_pairs_that_are_ranked_right() -> None:
    _, _, _, step = prepared("llama", "tree")
    report = step("dpo", {}, 24)
    assert set(report.figures) >= {"rewards_chosen", "rewards_rejected", "margin", "accuracy"}
    assert report.figures["margin"] == pytest.approx(
        report.figures["rewards_chosen"] - report.figures["rewards_rejected"]
    )
    assert report.figures["accuracy"] in (pytest.approx(k / 3) for k in range(4))


def test_reference_values_survive_a_save_and_are_refused_for_another_model(tmp_path: Any) -> None:
    from tunewright.core.errors import CheckpointError

    store = ReferenceStore({"weights": "a"})
    model = tiny.make_model("llama")
    use_layout(model, "tree")
    store.fill(Policy(model, model, "tree"), pairs(), 20)
    store.save(tmp_path)
    values = store.of(pairs(), "cpu")
    again = ReferenceStore.load(tmp_path, {"weights": "a"})
    assert (
        again is not None
        and torch.equal(again.of(pairs(), "cpu"), values)
        and len(values) == len(again) == 6
    )
    one_by_one = ReferenceStore({})
    one_by_one.fill(Policy(model, model, "tree"), pairs(), 1)
    assert torch.allclose(one_by_one.of(pairs(), "cpu"), values, rtol=1e-5)
    with pytest.raises(CheckpointError):
        ReferenceStore.load(tmp_path, {"weights": "b"})
    (tmp_path / "reference.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(CheckpointError):
        ReferenceStore.load(tmp_path, {"weights": "a"})
