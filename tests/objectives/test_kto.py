"""KTO against a slow reference written from its paper, one answer and one token at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import DataError
from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Sample
from tunewright.engine.loaded import use_layout
from tunewright.engine.oracles.reference import ReferenceStore
from tunewright.engine.policy import Policy
from tunewright.engine.step import held_out_loss

VARIANTS: list[dict[str, Any]] = [
    {},
    {"beta": 0.6, "good_weight": 1.3, "bad_weight": 0.7},
    {"loss": "apo_zero", "beta": 0.4},
]


def judged(
    index: int, prompt: list[int], answer: list[int], good: bool, weight: float = 1.0
) -> Sample:
    learnt = list(range(len(prompt), len(prompt) + len(answer)))
    return Sample(
        [Branch(prompt + answer, learnt, [weight] * len(answer), role="good" if good else "bad")],
        index,
    )


def rows() -> list[Sample]:
    """Five answers with shared beginnings, different lengths, one with weight 2; the fourth asks
    what the third asks."""
    return [
        judged(0, [5, 9, 17, 33], [4, 8, 90, 2], True), judged(1, [5, 9, 17, 40, 41], [6, 2], False, 2.0), judged(2, [6, 6], [19, 55, 21, 60, 2], True),
        judged(3, [6, 6], [44, 2], False), judged(4, [7, 30, 31], [12, 13, 2], True),
    ]  # fmt: skip


SEED = 8
"""Of the drift: one for which the mismatched answers became likelier."""
PARTNERS = [4, 0, 1, 1, 3]
"""The nearest row before each that asks something else, around the end."""


def total_logprob(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """log p(answer | prompt), a sample through the stock model."""
    table = torch.log_softmax(
        model(input_ids=torch.tensor([prompt + answer])).logits[0].float(), -1
    )
    return sum(table[len(prompt) + i - 1, token] for i, token in enumerate(answer))


def parts(sample: Sample) -> tuple[list[int], list[int]]:
    branch = sample.branches[0]
    return branch.tokens[: branch.learnt[0]], branch.tokens[branch.learnt[0] :]


def slow_loss(
    settings: dict[str, Any], model: Any, reference: Any, samples: list[Sample]
) -> tuple[Any, float]:
    """The paper's formula, scalar by scalar, and z0."""
    beta = settings.get("beta", 0.1)
    weights = [s.branches[0].weights[0] for s in samples]
    moved = 0.0
    with torch.no_grad():
        for i, sample in enumerate(samples):
            asked, answer = parts(sample)[0], parts(samples[PARTNERS[i]])[1]
            moved += weights[i] * float(
                total_logprob(model, asked, answer) - total_logprob(reference, asked, answer)
            )
    z0 = max(0.0, moved / sum(weights)) if settings.get("loss", "kto") == "kto" else 0.0
    loss = torch.zeros(())
    for sample, weight in zip(samples, weights, strict=True):
        good = sample.branches[0].role == "good"
        reward = (
            total_logprob(model, *parts(sample)) - total_logprob(reference, *parts(sample)).detach()
        )
        value = torch.sigmoid(beta * (reward - z0)) if good else torch.sigmoid(beta * (z0 - reward))
        loss = loss + weight * settings.get("good_weight" if good else "bad_weight", 1.0) * (
            1 - value
        )
    return loss / sum(weights), z0


class Setting:
    """A moved LoRA model, the model at step 0, and the engine's step."""

    def __init__(self, family: str = "llama", layout: str = "tree", drift: float = 0.05):
        self.reference = tiny.make_model(family)
        self.reference.set_attn_implementation("eager")
        self.model = tiny.make_model(family)
        torch.manual_seed(1)
        self.attached, self.layout = tiny.attach_lora(self.model), layout
        use_layout(self.model, layout)
        self.store = ReferenceStore({})
        self.start = Policy(self.attached.model, self.model, layout)
        self.drift = drift

    def gradients(
        self, settings: dict[str, Any], samples: list[Sample], rows_per_pass: int = 1024
    ) -> Any:
        entry = objectives.get("kto")
        assert entry is not None
        objective = entry.function(entry.config(**settings))
        self.store.fill(self.start, samples, 64)
        if objective.companions:
            self.store.fill(self.start, objective.companions(samples, None), 64)
        tiny.randomise(self.attached, seed=SEED, spread=self.drift)
        self.stepper = tiny.make_stepper(
            self.model, self.attached, layout=self.layout, rows_per_pass=rows_per_pass
        )
        self.stepper.objective, self.stepper.policy.reference = objective, self.store
        return self.stepper.gradients(samples)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("settings", VARIANTS)
def test_value_and_gradient_equal_the_papers_formula(settings: dict[str, Any], layout: str) -> None:
    s = Setting(layout=layout)
    report = s.gradients(settings, rows())
    ours = tiny.gradients(s.attached)
    s.model.set_attn_implementation("eager")
    s.attached.model.eval()
    loss, z0 = slow_loss(settings, s.attached.model, s.reference, rows())
    loss.backward()
    theirs = tiny.gradients(s.attached)
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert report.figures["z0"] == pytest.approx(z0, rel=1e-4)
    assert settings.get("loss") or z0 > 0.01  # else the baseline would not be seen in the loss
    assert ours.keys() == theirs.keys() and ours
    for name, g in theirs.items():
        assert float((ours[name] - g).norm()) <= 1e-5 * float(g.norm()) + 1e-9, name


@pytest.mark.parametrize("settings", VARIANTS)
def test_how_the_step_is_cut_changes_nothing(settings: dict[str, Any]) -> None:
    found = []
    for rows_per_pass in (1024, 16, 1):
        s = Setting()
        report = s.gradients(settings, rows(), rows_per_pass)
        found.append((report.passes, report.loss, tiny.gradients(s.attached)))
    assert [passes for passes, _, _ in found] == [1, 2, 5]
    for _, loss, other in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-6)
        for name, g in found[0][2].items():
            assert float((other[name] - g).norm()) <= 1e-5 * float(g.norm()) + 1e-9, name


def test_the_baseline_is_never_below_zero_and_carries_no_gradient() -> None:
    s = Setting(drift=0.0)  # nothing has moved: every reward is zero, the loss one half
    report = s.gradients({}, rows())
    assert (
        report.loss == pytest.approx(0.5)
        and report.figures["z0"] == pytest.approx(0, abs=1e-5)
        and report.figures["z0"] >= 0
    )
    s = Setting()
    s.gradients({}, rows())
    entry = objectives.get("kto")
    assert entry is not None
    objective = entry.function(entry.config())
    list(objective.companions(rows(), None))
    outputs = [SimpleNamespace(
        logprob=torch.tensor([-30.0]), weight=torch.ones(1), branch=torch.tensor([0]), branch_sample=[0], samples=[rows()[0]],
        reference=torch.tensor([-3.0], dtype=torch.float64),
    )]  # fmt: skip
    objective.measure(rows(), lambda samples: outputs)
    own = SimpleNamespace(**{**vars(outputs[0]), "logprob": torch.tensor([-3.0]), "figures": {}})
    objective.terms(own)
    assert own.figures["z0"] == (0.0, 1)


def test_pairs_count_as_one_good_and_one_bad_answer() -> None:
    pair = Sample([
        Branch([5, 9, 17, 4, 8, 2], [3, 4, 5], [1.0] * 3, role="chosen"), Branch([5, 9, 17, 6, 2], [3, 4], [1.0] * 2, role="rejected"),
    ], 0)  # fmt: skip
    other = Sample(
        [
            Branch([6, 30, 19, 2], [2, 3], [1.0] * 2, role="chosen"),
            Branch([6, 30, 55, 21, 2], [2, 3, 4], [1.0] * 3, role="rejected"),
        ],
        1,
    )
    apart = (
        [judged(0, [5, 9, 17], [4, 8, 2], True), judged(1, [6, 30], [19, 2], True)],
        [judged(2, [5, 9, 17], [6, 2], False), judged(3, [6, 30], [55, 21, 2], False)],
    )
    both = Setting().gradients({}, [pair, other])
    sides = [Setting().gradients({}, side) for side in apart]
    # The same four answers; the baseline of the pairs is the mean over the two halves' mismatched
    # answers.
    assert both.figures["z0"] == pytest.approx(sum(s.figures["z0"] for s in sides) / 2, rel=1e-5)
    assert both.figures["rewards_good"] == pytest.approx(sides[0].figures["rewards_good"], rel=1e-4)
    assert both.figures["rewards_bad"] == pytest.approx(sides[1].figures["rewards_bad"], rel=1e-4)


def test_held_out_rows_have_a_baseline_of_their_own() -> None:
    s = Setting()
    s.gradients({}, rows())
    s.attached.model.zero_grad()
    figures: dict[str, Any] = {}
    loss = held_out_loss(s.stepper.policy, s.stepper.objective, rows()[:3], 1024, figures=figures)
    s.model.set_attn_implementation("eager")
    moved = 0.0
    with torch.no_grad():
        for i, weight in ((0, 1.0), (1, 2.0), (2, 1.0)):
            asked, answer = parts(rows()[i])[0], parts(rows()[PARTNERS[i]])[1]
            moved += (
                weight
                / 4
                * float(
                    total_logprob(s.attached.model, asked, answer)
                    - total_logprob(s.reference, asked, answer)
                )
            )
    assert figures["z0"][0] / figures["z0"][1] == pytest.approx(max(0.0, moved), rel=1e-4, abs=1e-5)
    assert 0 < loss < 1


def test_an_answer_under_another_question_is_cut_where_the_model_has_no_more_room() -> None:
    entry = objectives.get("kto")
    assert entry is not None
    long_question, long_answer = (
        judged(0, list(range(3, 30)), [4, 2], True),
        judged(1, [5], list(range(40, 66)), False),
    )
    made = list(entry.function(entry.config()).companions([long_question, long_answer], 29))
    assert max(len(s.branches[0].tokens) for s in made) == 29
    assert made[0].branches[0].tokens[:27] == list(range(3, 30)) and made[0].branches[0].tokens[
        27:
    ] == [40, 41]
    assert made[1].branches[0].tokens == [5, 4, 2] and made[1].branches[0].learnt == [1, 2]


def test_a_single_row_is_refused() -> None:
    entry = objectives.get("kto")
    assert entry is not None
    with pytest.raises(DataError) as caught:
        list(entry.function(entry.config()).companions(rows()[:1], None))
    assert caught.value.problems[0].code == "E-OBJ-01"


@pytest.mark.parametrize("settings", VARIANTS)
def test_extreme_log_probabilities_stay_finite(settings: dict[str, Any]) -> None:
    entry = objectives.get("kto")
    assert entry is not None
    for value in (-1e4, -1e-9, 0.0):
        for reference in (0.0, -1e4):
            objective = entry.function(entry.config(**settings))
            logprob = torch.tensor([value] * 6, requires_grad=True)
            output = SimpleNamespace(
                logprob=logprob, weight=torch.ones(6), branch=torch.tensor([0] * 4 + [1] * 2), branch_sample=[0, 1], samples=rows()[:2],
                reference=torch.full((2,), reference, dtype=torch.float64), figures={},
            )  # fmt: skip
            loss = sum(
                coefficient * total for total, coefficient in objective.terms(output).values()
            )
            loss.backward()
            assert math.isfinite(float(loss.detach())) and bool(torch.isfinite(logprob.grad).all())
