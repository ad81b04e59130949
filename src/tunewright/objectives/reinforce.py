"""Policy gradients that take an answer as one action: RLOO, with a baseline from the other answers
to the same prompt, and REINFORCE, with one from the other answers of the step.

Sources: RLOO, Ahmadian et al. 2024 (arXiv 2402.14740); REINFORCE, Williams 1992 (doi
10.1007/BF00992696).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.core.registry import objectives
from tunewright.core.types import Figures, Objective, PassOutput, Sample, Term
from tunewright.objectives.branches import per_branch
from tunewright.objectives.policy import (
    ROWS,
    Groups,
    RolloutSection,
    alike,
    clipped_policy_loss,
    deviation,
    joined,
    kl_of,
    lengths,
    less_distance,
    num_answers,
    ratio_of,
    rollouts_of,
    watch,
)


class RlooConfig(RolloutSection):
    """REINFORCE with a leave-one-out baseline: every answer is judged against the other answers to
    its prompt, as one action."""

    generations: int = Field(default=4, ge=2)
    """Answers sampled for each prompt."""
    beta: float = Field(default=0.05, ge=0)
    """KL coefficient: what a nat of distance from the model at step 0 costs, in reward."""
    clip: float = Field(default=0.2, gt=0)
    """The ratio of an answer's probability to the old one counts only up to this distance from 1;
    without effect in the first update of a round."""
    epochs: int = Field(default=1, ge=1)
    """How often the answers of a round are trained on."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the reward of an answer that was cut off before it ended."""


class ReinforceConfig(RolloutSection):
    """The plain policy gradient: every answer is one action, judged against the other answers of
    the step."""

    generations: int = Field(default=1, ge=1)
    """Answers sampled for each prompt."""
    beta: float = Field(default=0.05, ge=0)
    """KL coefficient: what a nat of distance from the model at step 0 costs, in reward."""
    normalise: bool = False
    """Divide the advantages of a step by the standard deviation of its rewards (as REINFORCE++
    does)."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the reward of an answer that was cut off before it ended."""
    epochs: Literal[1] = 1
    """A policy gradient is valid only for the weights that sampled the answers, so they are trained
    on once."""
    minibatches: Literal[1] = 1
    """The same."""


def leave_one_out(rewards: list[float]) -> list[float]:
    """Each reward minus the mean of the others of its group."""
    total, count = sum(rewards), len(rewards)
    return [r - (total - r) / (count - 1) for r in rewards] if count > 1 else [0.0]


@objectives.register("rloo", RlooConfig, source="arXiv 2402.14740", rows=ROWS)
def rloo(config: RlooConfig) -> Objective:
    """loss = mean over answers of -min(ratio A, clip(ratio) A), ratio of whole answers, A = R -
    mean of the other answers' R, R = reward - beta KL."""

    def judge(groups: Groups) -> Figures:
        import torch

        for group in groups:
            rewards = less_distance(group, config.beta)
            for e, advantage in zip(group, leave_one_out(rewards), strict=True):
                e.advantage = torch.full((e.num_tokens,), advantage)
        return alike(groups) | ({"kl": (kl_of(groups), 1)} if config.beta else {})

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"policy": num_answers(samples)}

    def terms(output: PassOutput) -> dict[str, Term]:
        old_L = joined(output, "old")
        ratio_A = ratio_of(per_branch(output.logprob - old_L, output))
        advantage_A = per_branch(joined(output, "advantage"), output) / lengths(output)
        loss_A, clipped = clipped_policy_loss(ratio_A, advantage_A, config.clip, config.clip)
        watch(output, old_L, clipped)
        weight_A = per_branch(output.weight, output) / lengths(output)
        return {"policy": ((weight_A * loss_A).sum(), 1.0)}

    rollouts = rollouts_of(config, judge, reference=config.beta > 0)
    return Objective(plan, terms, rollouts=rollouts, rate_factor=0.5)


@objectives.register("reinforce", ReinforceConfig, source="doi 10.1007/BF00992696", rows=ROWS)
def reinforce(config: ReinforceConfig) -> Objective:
    """loss = mean over answers of -A log p(answer), A = R - mean of the other R of the step, R =
    reward - beta KL."""

    def judge(groups: Groups) -> Figures:
        import torch

        answers = [e for group in groups for e in group]
        rewards = less_distance(answers, config.beta)
        divisor = deviation(rewards) + 1e-4 if config.normalise else 1.0
        for e, advantage in zip(answers, leave_one_out(rewards), strict=True):
            e.advantage = torch.full((e.num_tokens,), advantage / divisor)
        return {"kl": (kl_of(groups), 1)} if config.beta else {}

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"policy": num_answers(samples)}

    def terms(output: PassOutput) -> dict[str, Term]:
        import torch

        never = torch.zeros(len(output.branch_sample), dtype=torch.bool)
        watch(output, joined(output, "old"), never)
        loss = -(output.weight * joined(output, "advantage") * output.logprob).sum()
        return {"policy": (loss, 1.0)}

    rollouts = rollouts_of(config, judge, reference=config.beta > 0)
    return Objective(plan, terms, rollouts=rollouts, rate_factor=0.5)
