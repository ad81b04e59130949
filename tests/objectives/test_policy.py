"""PPO, GRPO, RLOO against slow references from their papers, and rounds: exact first ratios, how a
step is cut, resumed rounds, faults of rewards."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.errors import TrainingError
from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Message, Sample
from tunewright.engine.loaded import computing_in, use_layout
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.rounds import Asking, RoundStepper
from tunewright.engine.rollouts.sampling import Sampler
from tunewright.models.scalar_heads import head_module, put_heads
from tunewright.objectives.grpo import group_advantages
from tunewright.objectives.policy import deviation
from tunewright.objectives.ppo import generalised_advantages
from tunewright.objectives.reinforce import leave_one_out
from tunewright.rewards import Scores

PROMPTS = [[5, 9, 17, 33], [5, 9, 17, 40, 41], [6, 6], [8, 3, 100]]
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {"loss": "grpo", "beta": 0.3}), ("grpo", {"loss": "dapo", "clip_high": 0.28}), ("dr_grpo", {}), ("grpo", {"scale": "batch", "ratio": "answer"}),
    ("grpo", {"loss": "cispo"}), ("rloo", {"beta": 0.2}), ("reinforce", {"beta": 0.2}), ("reinforce", {"generations": 1, "normalise": True}), ("ppo", {"beta": 0.1, "value_weight": 0.5}), ("ppo", {"beta": 0.0, "whiten_rewards": True}),
]  # fmt: skip


class Vowels:
    """A reward that differs between answers: how often small token ids come, minus how long the
    answer is."""

    def score(self, answers: list[Any]) -> Scores:
        values = [sum(int(t) < 90 for t in a.text.split()) / 3 - a.num_tokens / 20 for a in answers]
        return Scores(values, {"small": list(values)}, [])


def stepper_for(
    kind: str,
    settings: dict[str, Any],
    *,
    layout: str = "tree",
    rows: int = 4096,
    family: str = "llama",
    rewards: Any = None,
    seed: int = 0,
) -> RoundStepper:
    entry = objectives.get(kind)
    assert entry is not None
    options = {
        "reward": "length",
        "max_new_tokens": 6,
        "generations": 3,
        "temperature": 0.9,
        **settings,
    }
    objective = entry.function(entry.config(**options))
    torch.manual_seed(3)
    model = tiny.make_model(family)
    attached = tiny.attach_lora(model)
    put_heads(model, attached, objective.heads)
    tiny.randomise(attached, spread=0.05)
    common = tiny.make_stepper(
        model, attached, layout=layout, rows_per_pass=rows, learning_rate=0.01
    )
    use_layout(model, layout)
    policy = Policy(
        attached.model,
        model,
        layout,
        heads=objective.heads,
        temperature=objective.rollouts.temperature if objective.rollouts else 1.0,
    )
    made = RoundStepper(
        policy, attached, objective, common.optimizer, rows, None, seed, rollouts=objective.rollouts, rewards=rewards or Vowels(),
        asking=Asking(
            lambda s: s.branches[0].tokens, lambda s: [Message("user", str(s.index))], lambda s: {}, lambda ids: " ".join(map(str, ids)), frozenset({2, 3, 4, 50, 60})
        ),
        sampler=None,
    )  # fmt: skip
    made.sampler = Sampler(policy, made.asking.stop_ids)  # type: ignore[union-attr]
    return made


def prompts() -> list[Sample]:
    return [
        Sample([Branch(tokens, [], [])], i, weight=2.0 if i == 1 else 1.0)
        for i, tokens in enumerate(PROMPTS)
    ]


def drawn_round(made: RoundStepper, number: int = 1) -> Any:
    """A round up to the point where it learns; the policy then moves, so that ratios differ from 1."""
    judged = made.draw_and_judge(prompts(), number)
    made._old_values([judged.samples])
    if made.rollouts is not None and made.rollouts.reference:
        made._reference_values(judged.samples)
    with torch.no_grad():
        made.rollouts.judge(judged.groups)  # type: ignore[union-attr]
    return judged


def move(made: RoundStepper, judged: Any) -> None:
    """Move the policy until no ratio stands at a bound of the clipping, where the gradient jumps
    and rounding alone would decide it."""
    for seed in range(5, 25):
        tiny.randomise(made.attached, seed=seed, spread=0.02)
        made.attached.model.eval()
        with computing_in(made.policy.causal[0], "padded"):
            nearest = min(_distances(made, judged))
        if nearest > 1e-4:
            return
    raise AssertionError("every draw had a ratio at a bound")


@torch.no_grad()
def _distances(made: RoundStepper, judged: Any) -> list[float]:
    """How far the ratio of every drawn token is from 0.8 and from the upper bounds in use."""
    found = []
    for sample, e in zip(
        judged.samples, (e for group in judged.groups for e in group), strict=True
    ):
        branch = sample.branches[0]
        logprobs = torch.log_softmax(
            made.attached.model(input_ids=torch.tensor([branch.tokens]), use_cache=False)
            .logits[0]
            .float()
            / 0.9,
            -1,
        )
        ratios = [
            float(torch.exp(logprobs[i - 1, branch.tokens[i]] - old))
            for i, old in zip(branch.learnt, e.old, strict=True)
        ]
        found += [abs(ratio - bound) for ratio in ratios for bound in (0.8, 1.2, 1.28)]
    return found


def slow(kind: str, settings: dict[str, Any], made: RoundStepper, judged: Any) -> torch.Tensor:
    """The papers' formulas, answer by answer and token by token, through the stock model."""
    config = {
        "clip": 0.2,
        "beta": {"rloo": 0.05, "ppo": 0.05, "reinforce": 0.05}.get(kind, 0.0),
        "loss": "dr_grpo" if kind == "dr_grpo" else "dapo",
        **settings,
    }
    high = config.get("clip_high") or config["clip"]
    model = made.attached.model
    causal = made.policy.causal[0]
    total = value_total = tokens = answers = torch.zeros(())
    everything: list[tuple[Any, list[float]]] = []
    if kind == "ppo":
        for e in (e for g in judged.groups for e in g):
            penalties = [
                -config["beta"] * float(e.old[t] - e.reference[t]) if config["beta"] else 0.0
                for t in range(e.num_tokens)
            ]
            spread = (
                deviation([e.reward for g in judged.groups for e in g]) + 1e-8
                if settings.get("whiten_rewards")
                else 1.0
            )
            penalties[-1] += e.reward / spread
            advantages = [0.0] * e.num_tokens
            for t in range(
                e.num_tokens
            ):  # the definition as a sum: sum_k (gamma lambda)^k delta_(t+k)
                for k in range(t, e.num_tokens):
                    after = float(e.value[k + 1]) if k + 1 < e.num_tokens else 0.0
                    advantages[t] += 0.95 ** (k - t) * (penalties[k] + after - float(e.value[k]))
            everything.append((e, advantages))
        flat = [a for _, advantages in everything for a in advantages]
        mean = sum(flat) / len(flat)
        sigma = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat))
    number = 0
    groups = [e for g in judged.groups for e in g]
    own_group = [g for g in judged.groups for _ in g]
    for sample, e, group in zip(judged.samples, groups, own_group, strict=True):
        branch, weight = sample.branches[0], sample.branches[0].weights[0]
        out = model(
            input_ids=torch.tensor([branch.tokens]), output_hidden_states=True, use_cache=False
        )
        logprobs = torch.log_softmax(out.logits[0].float() / 0.9, -1)
        n, own = len(branch.learnt), [logprobs[i - 1, branch.tokens[i]] for i in branch.learnt]
        rewards = [o.reward for o in group]
        if kind in ("rloo", "reinforce"):
            pool = group if kind == "rloo" else groups
            held = [o.reward - config["beta"] * float(sum(o.old - o.reference)) for o in pool]
            i = next(i for i, o in enumerate(pool) if o is e)
            advantage = held[i] - sum(h for j, h in enumerate(held) if j != i) / (len(held) - 1)
            if kind == "reinforce":
                sigma = (
                    math.sqrt(sum((h - sum(held) / len(held)) ** 2 for h in held) / (len(held) - 1))
                    + 1e-4
                )
                total = total - weight * advantage / (
                    sigma if settings.get("normalise") else 1.0
                ) * sum(own)
                answers = answers + weight
                continue
            ratio = torch.exp(sum(own) - sum(e.old))
            total = total + weight * -torch.minimum(
                ratio * advantage, ratio.clamp(0.8, 1.2) * advantage
            )
            answers = answers + weight
            continue
        if kind != "ppo":
            group_mean = sum(rewards) / len(rewards)
            scale = settings.get("scale", "none" if kind == "dr_grpo" else "group")
            pool = rewards if scale == "group" else [o.reward for o in groups]
            spread = (
                math.sqrt(sum((r - sum(pool) / len(pool)) ** 2 for r in pool) / (len(pool) - 1))
                + 1e-4
            )
            advantage = (e.reward - group_mean) / (1.0 if scale == "none" else spread)
            advantages = [advantage] * n
        else:
            advantages = [(a - mean) / (sigma + 1e-8) for a in everything[number][1]]
        mean_ratio = torch.exp((sum(own) - sum(e.old)) / n)
        parts = []
        for t in range(n):
            ratio = (
                torch.exp(own[t] - e.old[t]) if settings.get("ratio") != "answer" else mean_ratio
            )
            if config["loss"] == "cispo":
                part = -float(min(ratio.detach(), torch.tensor(1 + high))) * advantages[t] * own[t]
            else:
                part = -torch.minimum(
                    ratio * advantages[t], ratio.clamp(1 - config["clip"], 1 + high) * advantages[t]
                )
            if kind != "ppo" and config["beta"]:
                part = part + config["beta"] * (
                    torch.exp(e.reference[t] - own[t]) - (e.reference[t] - own[t]) - 1
                )
            if kind == "ppo":
                hidden = out.hidden_states[-1][0, branch.learnt[t] - 1]
                value = (
                    head_module(causal, "value").weight[0] @ hidden
                    + head_module(causal, "value").bias[0]
                )
                goal = everything[number][1][t] + float(e.value[t])
                clipped = e.value[t] + (value - e.value[t]).clamp(-0.2, 0.2)
                value_total = value_total + weight * 0.5 * torch.maximum(
                    (value - goal) ** 2, (clipped - goal) ** 2
                )
            parts.append(part)
        total = total + weight * (
            sum(parts) / n if config["loss"] == "grpo" and kind != "ppo" else sum(parts)
        )
        tokens, answers, number = tokens + weight * n, answers + weight, number + 1
    if kind == "ppo":
        return total / tokens + settings.get("value_weight", 0.1) * value_total / tokens
    return total / (
        answers
        if kind in ("rloo", "reinforce") or config["loss"] == "grpo"
        else answers * 6
        if config["loss"] == "dr_grpo"
        else tokens
    )


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_value_and_gradient_equal_the_papers_formula(
    kind: str, settings: dict[str, Any], layout: str
) -> None:
    made = stepper_for(kind, settings, layout=layout)
    judged = drawn_round(made)
    move(made, judged)
    model, causal = made.attached.model, made.policy.causal[0]
    report = super(RoundStepper, made).gradients(judged.samples)
    ours = tiny.gradients(made.attached)
    model.eval()
    causal.set_attn_implementation("eager")
    loss = slow(kind, settings, made, judged)
    loss.backward()
    theirs = tiny.gradients(made.attached)
    assert report.loss == pytest.approx(float(loss.detach()), rel=2e-5, abs=1e-6)
    whole = math.sqrt(sum(float(g.norm()) ** 2 for g in theirs.values()))
    gap = math.sqrt(sum(float((ours[name] - g).norm()) ** 2 for name, g in theirs.items()))
    assert whole > 1e-4 and gap <= 1e-5 * whole and ours.keys() == theirs.keys()
    assert report.figures["clip_share"] >= 0 and report.figures["ratio_gap"] > 0


@pytest.mark.wide("grpo-settings0", "ppo-settings8", "reinforce-settings6")
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_how_a_round_is_cut_changes_nothing_and_the_first_ratio_is_exactly_one(
    kind: str, settings: dict[str, Any]
) -> None:
    found = []
    for rows in (4096, 24, 1):
        made = stepper_for(kind, settings, rows=rows, family="qwen3")
        judged = drawn_round(made)
        report = super(RoundStepper, made).gradients(judged.samples)
        assert report.figures["ratio"] == 1.0 and report.figures["ratio_gap"] == 0.0  # to the bit
        found.append(
            (
                report.passes,
                tiny.gradients(made.attached),
                [b.tokens for s in judged.samples for b in s.branches],
            )
        )
    assert found[0][0] == 1 and found[1][0] > 1 and found[2][0] > found[1][0]
    for _, gradient, tokens in found[1:]:
        assert tokens == found[0][2]
        whole = math.sqrt(sum(float(g.norm()) ** 2 for g in found[0][1].values()))
        assert (
            math.sqrt(sum(float((gradient[n] - g).norm()) ** 2 for n, g in found[0][1].items()))
            <= 1e-5 * whole + 1e-9
        )


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_extreme_log_probabilities_stay_finite(kind: str, settings: dict[str, Any]) -> None:
    made = stepper_for(kind, settings)
    judged = drawn_round(made)
    sample = judged.samples[0]
    n = len(sample.branches[0].learnt)
    for now, before in ((-60.0, -1e-9), (-1e-9, -60.0), (-80.0, -80.0), (0.0, 0.0)):
        e = sample.facts["experience"]
        e.old, e.reference, e.value, e.returns = (torch.full((n,), before) for _ in range(4))
        e.advantage = torch.full((n,), 1.5)
        logprob, value = (
            torch.full((n,), now, requires_grad=True),
            torch.full((n,), 1e4, requires_grad=True),
        )
        output = SimpleNamespace(
            logprob=logprob,
            value=value,
            weight=torch.ones(n),
            branch=torch.zeros(n, dtype=torch.long),
            branch_sample=[0],
            samples=[sample],
            figures={},
        )
        loss = sum(
            coefficient * total for total, coefficient in made.objective.terms(output).values()
        )
        loss.backward()
        assert math.isfinite(float(loss.detach())) and bool(torch.isfinite(logprob.grad).all())


@pytest.mark.wide("grpo", "ppo")
@pytest.mark.parametrize("kind", ["grpo", "ppo", "rloo", "reinforce"])
def test_rounds_raise_the_reward(kind: str) -> None:
    """A reward that any of these can learn on four prompts: write small token ids."""

    class Small:
        def score(self, answers: list[Any]) -> Scores:
            return Scores(
                [sum(int(t) < 90 for t in a.text.split()) / max(1, a.num_tokens) for a in answers],
                {},
                [],
            )

    made = stepper_for(
        kind,
        {
            "generations": 8,
            "beta": 0.0,
            **({"epochs": 2, "minibatches": 2} if kind == "ppo" else {}),
        },
        rewards=Small(),
    )
    before, _ = made.measure(prompts() * 8)
    for number in range(1, 31):
        report = made.step(prompts(), number, 0.01)
        assert report.applied and math.isfinite(report.loss)
    after, rewards = made.measure(prompts() * 8)
    assert -after > -before + 0.2 and len(rewards) == 32
    assert made.version == 30


def test_the_reference_is_the_model_of_step_0_whatever_was_learnt() -> None:
    made = stepper_for("grpo", {"beta": 0.5})
    judged = drawn_round(made)
    first = [s.facts["experience"].reference.clone() for s in judged.samples]
    tiny.randomise(made.attached, seed=9, spread=0.1)
    moved = tiny.trained(made.attached)
    made._reference_values(judged.samples)
    assert all(
        torch.equal(a, s.facts["experience"].reference)
        for a, s in zip(first, judged.samples, strict=True)
    )
    assert all(torch.equal(p, moved[n]) for n, p in tiny.trained(made.attached).items())


def test_answers_that_cannot_be_judged_are_left_out_and_counted_and_none_left_ends_the_run() -> (
    None
):
    class Broken:
        def __init__(self, every: int):
            self.every = every

        def score(self, answers: list[Any]) -> Scores:
            values = [
                math.nan if i % self.every == 0 else 1.0 * a.num_tokens
                for i, a in enumerate(answers)
            ]
            return Scores(
                values, {}, [(i, "x", "nan") for i, v in enumerate(values) if math.isnan(v)]
            )

    made = stepper_for("grpo", {}, rewards=Broken(4))
    report = made.step(prompts(), 1, 0.01)
    assert report.figures["left_out"] == 3 and report.applied
    with pytest.raises(TrainingError, match="E-OBJ-36"):
        stepper_for("grpo", {}, rewards=Broken(1)).step(prompts(), 1, 0.01)


def test_advantages_of_groups() -> None:
    assert group_advantages([1.0, 3.0], "none", 0.0) == [-1.0, 1.0]
    assert group_advantages([2.0, 2.0, 2.0], "group", 0.0) == [0.0, 0.0, 0.0]
    assert leave_one_out([1.0, 2.0, 6.0]) == [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    advantage, returns = generalised_advantages(
        torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), 0.9, 0.5
    )
    last = 1.0 - 0.25
    assert advantage.tolist() == pytest.approx([0.9 * 0.25 - 0.5 + 0.9 * 0.5 * last, last])
    assert returns.tolist() == pytest.approx([advantage[0].item() + 0.5, 1.0])


def test_a_coefficient_that_adapts_rises_when_the_model_goes_too_far() -> None:
    entry = objectives.get("ppo")
    assert entry is not None
    rollouts = entry.function(
        entry.config(reward="length", kl_target=2.0, beta=0.1, kl_horizon=100)
    ).rollouts
    rollouts.after_round({"kl": 8.0, "answers": 50.0})
    assert rollouts.state()["beta"] == pytest.approx(0.1 * (1 + 0.2 * 0.5))
    rollouts.after_round({"kl": 1.9, "answers": 100.0})
    assert rollouts.state()["beta"] == pytest.approx(0.11 * (1 - 0.05))
    rollouts.load_state({"beta": 0.7})
    assert rollouts.state() == {"beta": 0.7}
