"""What every objective promises, asked of every registered name without a model: what a pass gives
is drawn, and the loss of a step is a function of it.

To add an objective: one `Row` in OURS, with the settings it cannot do without. Its samples follow
from the kinds of rows it names, and what it is given of a pass from what it asks for.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from asked import OUTSIDE, names, rows
from torch import Tensor

from tunewright.advise import glossary
from tunewright.core.errors import ConfigError
from tunewright.core.registry import objectives
from tunewright.core.runfile import kind_of, objective_of, parse_run
from tunewright.core.types import (
    ROW_KINDS,
    Branch,
    Experience,
    Objective,
    Origin,
    PassOutput,
    Sample,
)
from tunewright.core.words import catalogue

DOCS = Path(__file__).parents[2] / "docs" / "objectives"
PER_LABEL = ("logprob", "value", "log_z", "mean_logprob", "divergence")
TEACHER = {"teacher": "a/model"}
REWARD = {"reward": "finished", "max_new_tokens": 12}


@dataclass(frozen=True)
class Row:
    """What one name cannot do without."""

    settings: dict[str, Any] = field(default_factory=dict)
    likelihood: bool = True
    """It looks at how likely the learnt tokens are."""


OURS: dict[str, Row] = {
    "sft": Row({"label_smoothing": 0.1, "z_loss": 0.01}),
    "pretrain": Row(),
    "distill": Row(TEACHER),
    "gkd": Row(TEACHER, likelihood=False),
    **{name: Row() for name in ("orpo", "simpo", "kto", "bco", "process_reward")},
    "dpo": Row({"sft_weight": 0.3, "label_smoothing": 0.1}),
    "ipo": Row(),
    "cpo": Row(),
    "reward": Row({"center": 0.1}),
    "ppo": Row({**REWARD, "beta": 0.2}),
    "grpo": Row({**REWARD, "beta": 0.2, "weigh_kl": True}),
    "dr_grpo": Row(REWARD),
    "rloo": Row(REWARD),
    "online_dpo": Row(REWARD),
    "reinforce": Row(REWARD),
    "rejection": Row({**REWARD, "threshold": 0.2}),
}
ROWS = rows("OBJECTIVES", Row, OURS)
every_name = pytest.mark.parametrize("name", list(ROWS))


def made(name: str, **more: Any) -> Objective:
    given = {"model": "m", "data.train": "rows.json", "objective.kind": name}
    settings = {**ROWS[name].settings, **more}
    given |= {f"objective.{key}": value for key, value in settings.items()}
    return objective_of(parse_run(given, {}).config)


# ---- samples of the kinds of rows that an objective learns from


def words(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(3, 90) for _ in range(count)]


def answered(draw: random.Random, prompt: list[int], weight: float, role: str) -> Branch:
    answer = words(draw, draw.randrange(2, 6))
    learnt = list(range(len(prompt), len(prompt) + len(answer)))
    return Branch(prompt + answer, learnt, [weight] * len(learnt), role=role)


ROLES = {"preference": ("chosen", "rejected"), "judged": ("good",), "stepwise": ("answer",)}


def samples_for(objective: Objective, kind: str, seed: int = 0, count: int = 6) -> list[Sample]:
    """As the data room makes them; rows of several weights. Answers that were drawn are judged."""
    draw, found = random.Random(seed), []
    if objective.rollouts is not None and objective.rollouts.pair is not None:
        count *= 2
    for i in range(count):
        weight = (1.0, 0.5, 2.0)[i % 3]
        prompt = words(draw, draw.randrange(2, 5))
        roles = ROLES.get(kind, ("answer",))
        if kind == "judged" and i % 2:
            roles = ("bad",)
        branches = [answered(draw, prompt, weight, role) for role in roles]
        facts: dict[str, Any] = {}
        if kind == "stepwise":
            end = len(branches[0].tokens)
            facts["steps"] = [(end - 1, True), (end, bool(i % 2))]
        if kind == "preference":
            facts["margin"] = 0.3 * (i % 2)
        found.append(Sample(branches, i, Origin("rows.jsonl", i + 1, i + 1), weight, facts))
    if objective.rollouts is not None:
        judge(objective, found, draw)
        if objective.rollouts.pair is not None:
            found = pairs_of(objective.rollouts.pair, found)
    if objective.companions is not None:
        list(objective.companions(found, None))
    if objective.prepare is not None:
        objective.prepare(found)
    return found


def judge(objective: Objective, samples: list[Sample], draw: random.Random) -> None:
    """Give every sample an answer that was drawn and judged: two groups."""
    groups: list[list[Experience]] = [[], []]
    for i, sample in enumerate(samples):
        n = len(sample.branches[0].learnt)
        drawn = [torch.tensor([draw.uniform(-3, -0.1) for _ in range(n)]) for _ in range(3)]
        e = Experience(draw.random(), n, True, drawn[0], drawn[0].clone())
        e.reference, e.value = drawn[0] + 0.3 * drawn[1], drawn[2]
        sample.facts["experience"] = e
        groups[i % 2].append(e)
    assert objective.rollouts is not None
    figures = objective.rollouts.judge(groups)
    assert all(math.isfinite(total) and n >= 1 for total, n in figures.values())
    for e in groups[0] + groups[1]:
        if objective.rollouts.pair is None:
            assert e.advantage is not None and len(e.advantage) == e.num_tokens


def pairs_of(pair: Callable[[list[Sample]], Sample | None], answers: list[Sample]) -> list[Sample]:
    """What is learnt of two answers each to the same prompt."""
    made = [pair(answers[i : i + 2]) for i in range(0, len(answers), 2)]
    return [sample for sample in made if sample is not None]


# ---- what a pass gives


class World:
    """What the model says of every branch, drawn once: the same however a step is cut."""

    def __init__(self, objective: Objective, extreme: float | None = None):
        self.objective, self.extreme = objective, extreme
        self.known: dict[tuple[Any, ...], dict[str, Tensor]] = {}

    def asked_for(self) -> list[str]:
        """The fields of `PassOutput` that carry a gradient and that the objective asks for."""
        o = self.objective
        return (
            ["logprob"]
            + [head for head in ("value", "score") if head in o.heads]
            + (["log_z", "mean_logprob"] if o.spread else [])
            + (["divergence"] if o.teacher is not None else [])
        )

    def says(self, sample: Sample, b: int) -> dict[str, Tensor]:
        """Of one branch: what the whole pass holds, as leaves."""
        branch = sample.branches[b]
        key = (tuple(branch.tokens), tuple(branch.learnt), branch.role)
        if key not in self.known:
            draw = torch.Generator().manual_seed(hash(key) % 2**31)
            n = len(branch.learnt)

            def drawn(size: int, low: float, high: float) -> Tensor:
                part = torch.rand(size, generator=draw, dtype=torch.float64)
                return low + (high - low) * part

            low = -4.0
            found = {
                "logprob": drawn(n, low, -0.05),
                "value": drawn(n, -1, 1),
                "log_z": drawn(n, 1, 3),
                "mean_logprob": drawn(n, -6, -5),
                "divergence": drawn(n, 0, 2),
                "score": drawn(1, -2, 2),
                "reference": drawn(1, low * max(n, 1), 0),
            }
            experience = sample.facts.get("experience")
            if experience is not None:  # a policy that moved a little: no ratio at a bound
                found["logprob"] = experience.old.double() + drawn(n, -0.12, 0.12)
            if self.extreme is not None:
                found = {name: t.sign() * self.extreme for name, t in found.items()}
            self.known[key] = {k: t.requires_grad_() for k, t in found.items()}
        return self.known[key]

    def output(self, samples: list[Sample]) -> PassOutput:
        """One pass: no more of it than the objective asks for."""
        branches = [(s, b) for s in samples for b in range(len(s.branches))]

        def together(name: str) -> Tensor:
            return torch.cat([self.says(s, b)[name] for s, b in branches])

        asked = {name: together(name) for name in self.asked_for()}
        if self.objective.reference:
            asked["reference"] = together("reference").detach()
        place = {id(s): i for i, s in enumerate(samples)}
        weights = [w for s, b in branches for w in s.branches[b].weights]
        return PassOutput(
            weight=torch.tensor(weights, dtype=torch.float64),
            branch=torch.tensor(
                [i for i, (s, b) in enumerate(branches) for _ in s.branches[b].learnt],
                dtype=torch.long,
            ),
            branch_sample=[place[id(s)] for s, _ in branches],
            samples=samples,
            num_rows=1,
            **asked,
        )

    def loss(self, passes: Iterable[list[Sample]]) -> Tensor:
        """The loss of a step, cut into these passes."""
        passes = [list(one) for one in passes]
        whole = [sample for one in passes for sample in one]
        if self.objective.measure is not None:
            with torch.no_grad():
                self.objective.measure(whole, lambda found: [self.output([s]) for s in found])
        announced = self.objective.plan(whole)
        total = torch.zeros((), dtype=torch.float64)
        for one in passes:
            output = self.output(one)
            terms = self.objective.terms(output)
            assert set(terms) == set(announced)
            for name, (value, coefficient) in terms.items():
                total = total + coefficient * value / announced[name]
            for value, count in output.figures.values():
                assert math.isfinite(value) and isinstance(count, int) and count >= 0
        return total

    def gradient(self, passes: Iterable[list[Sample]]) -> tuple[float, list[Tensor]]:
        """(loss, its gradient by everything that the objective asks for)."""
        loss = self.loss(passes)
        leaves = [said[name] for said in self.known.values() for name in self.asked_for()]
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        zero = [torch.zeros_like(leaf) for leaf in leaves]
        return float(loss.detach()), [
            z if g is None else g for g, z in zip(found, zero, strict=True)
        ]


def start(name: str, **more: Any) -> tuple[Objective, World, list[Sample]]:
    entry = objectives.get(name)
    assert entry is not None
    objective = made(name, **more)
    samples = samples_for(objective, entry.facts["rows"][0])
    return objective, World(objective), samples


# ---- what is asked


def test_every_registered_name_has_a_row_and_every_row_a_name() -> None:
    assert sorted(ROWS) == names(objectives)


@every_name
def test_it_says_where_it_comes_from_and_what_rows_it_learns_from(name: str) -> None:
    entry = objectives.get(name)
    assert entry is not None and entry.facts["source"]
    assert entry.facts["rows"] and set(entry.facts["rows"]) <= set(ROW_KINDS.values())
    assert set(entry.facts.get("usual_for", ())) <= set(entry.facts["rows"])
    assert entry.facts.get("judges", "") in ("", "answers", "steps")
    assert kind_of(entry.config.model_construct()) == name


def test_each_kind_of_rows_has_one_usual_objective() -> None:
    found = [kind for e in objectives if e.is_ours for kind in e.facts.get("usual_for", ())]
    assert sorted(found) == sorted(ROW_KINDS.values())


@every_name
def test_every_setting_is_documented_in_both_languages(name: str) -> None:
    entry = objectives.get(name)
    assert entry is not None and entry.config.__doc__
    for key, info in entry.config.model_fields.items():
        assert info.description, key
        if not OUTSIDE:
            assert " ".join(info.description.split()) in glossary.translated("zh"), key
    if not OUTSIDE:
        for lang, ending in (("en", ".md"), ("zh", ".zh-CN.md")):
            assert f"list.objectives.{name}" in catalogue(lang)
            assert f"kind: {name}" in (DOCS / f"{name}{ending}").read_text(encoding="utf-8")


@every_name
def test_a_setting_of_the_wrong_kind_is_refused_with_a_code(name: str) -> None:
    entry = objectives.get(name)
    assert entry is not None
    for key, info in entry.config.model_fields.items():
        if info.annotation is not Any:
            with pytest.raises(ConfigError) as caught:
                made(name, **{key: ["no", "such"]})
            assert [p.code for p in caught.value.problems] == ["E-CONFIG-08"], key
    with pytest.raises(ConfigError) as caught:
        made(name, no_such_setting=1)
    assert [p.fields["field"] for p in caught.value.problems] == ["objective.no_such_setting"]


@every_name
def test_what_it_cannot_do_without_is_asked_for(name: str) -> None:
    given = {"model": "m", "data.train": "rows.json", "objective.kind": name}
    objective = made(name)
    if objective.teacher is None and objective.rollouts is None:
        return
    with pytest.raises(ConfigError) as caught:
        objective_of(parse_run(given, {}).config)
    assert [p.code for p in caught.value.problems] in (["E-CONFIG-07"], ["E-OBJ-33"])


@every_name
def test_a_step_is_the_same_however_it_is_cut_into_passes(name: str) -> None:
    _, world, samples = start(name)
    whole, gradient = world.gradient([samples])
    for cuts in ([samples[:1], samples[1:]], [samples[3:], samples[:3]], [[s] for s in samples]):
        loss, again = world.gradient(cuts)
        assert loss == pytest.approx(whole, rel=1e-10)
        for a, b in zip(gradient, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@every_name
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    objective, world, samples = start(name)
    _, gradient = world.gradient([samples])
    if objective.measure is not None:  # a baseline is held while the gradient is taken
        objective = copy.copy(objective)
        object.__setattr__(objective, "measure", None)
        world.objective = objective
    leaves = [said[key] for said in world.known.values() for key in world.asked_for()]
    assert any(float(g.abs().max()) > 1e-6 for g in gradient if len(g))
    step = 1e-6
    for leaf, found in zip(leaves, gradient, strict=True):
        for i in range(len(leaf)):
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    leaf[i] += sign * step
                    sides.append(float(world.loss([samples]).detach()))
                    leaf[i] -= sign * step
            slope = (sides[0] - sides[1]) / (2 * step)
            assert float(found[i]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@every_name
def test_a_row_of_weight_two_is_learnt_as_two_rows_of_it(name: str) -> None:
    objective, world, samples = start(name)
    heavy, twice = copy.deepcopy(samples), copy.deepcopy(samples)
    again = copy.deepcopy(samples[2])  # weight 2
    for one in (twice[2], again):
        for branch in one.branches:
            branch.weights = [w / 2 for w in branch.weights]
        if "weight" in one.facts:
            one.facts["weight"] /= 2
    if objective.measure is not None:
        with torch.no_grad():
            objective.measure(samples, lambda found: [world.output([s]) for s in found])
        object.__setattr__(objective, "measure", None)
    whole, parts = world.loss([heavy]).detach(), world.loss([[*twice, again]]).detach()
    assert float(parts) == pytest.approx(float(whole), rel=1e-10)


@every_name
@pytest.mark.parametrize("extreme", [1e-12, 1e3, 1e5])
def test_extreme_values_give_a_finite_loss_and_gradient(name: str, extreme: float) -> None:
    objective, _, samples = start(name)
    loss, gradient = World(objective, extreme).gradient([samples])
    assert math.isfinite(loss)
    assert all(bool(torch.isfinite(g).all()) for g in gradient)


@every_name
def test_everything_it_asks_of_a_pass_counts(name: str) -> None:
    objective, world, samples = start(name)
    before = float(world.loss([samples]).detach())
    asked = [*world.asked_for(), *(["reference"] if objective.reference else [])]
    if objective.heads == ("score",) or not ROWS[name].likelihood:
        asked.remove("logprob")
    for key in asked:
        other = World(objective)
        other.loss([samples])
        with torch.no_grad():
            for i, said in enumerate(other.known.values()):
                said[key] += 0.01 * (1 + i)
        assert float(other.loss([samples]).detach()) != before, key


@every_name
def test_preparing_a_step_again_changes_nothing(name: str) -> None:
    objective, _, samples = start(name)
    if objective.prepare is None:
        return
    before = copy.deepcopy(samples)
    objective.prepare(samples)
    assert [s.branches for s in samples] == [s.branches for s in before]
