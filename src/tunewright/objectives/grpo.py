"""GRPO and its variants: several answers to each prompt, each judged against its group; no value
head.

Sources: GRPO, Shao et al. 2024 (arXiv 2402.03300); Dr. GRPO, Liu et al. 2025 (2503.20783); DAPO, Yu
et al. 2025 (2503.14476); GSPO's ratio of whole answers, Zheng et al. 2025 (2507.18071); CISPO,
MiniMax 2025 (2506.13585). The estimator of the KL term (`k3`) is Schulman's, "Approximating KL
divergence", 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunewright.core.registry import objectives
from tunewright.core.types import Figures, Objective, PassOutput, Sample, Term
from tunewright.objectives.branches import learnt_weight, per_branch
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
    num_answers,
    ratio_of,
    rollouts_of,
    watch,
)

if TYPE_CHECKING:
    from torch import Tensor


class GrpoConfig(RolloutSection):
    """Group-relative policy optimisation: several answers to each prompt, each judged against its
    group; no value head."""

    generations: int = Field(default=8, ge=2)
    """Answers sampled for each prompt: the group."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term towards the model at step 0; the paper used 0.04, later work 0."""
    weigh_kl: bool = False
    """Multiply the KL term by the ratio, which makes its gradient unbiased after the first update
    (DeepSeek-V3.2; TRL's default)."""
    loss: Literal["grpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    """grpo: mean over each answer's tokens, then over answers; dr_grpo: sum over tokens divided by
    `max_new_tokens`; dapo: mean over all tokens of the step; cispo: dapo's mean with the clipped
    ratio as a weight only."""
    scale: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the rewards of their group, of the whole step,
    or by nothing (Dr. GRPO)."""
    clip: float = Field(default=0.2, gt=0)
    """How far below 1 the ratio counts."""
    clip_high: float | None = Field(default=None, gt=0)
    """How far above 1; larger than `clip` leaves rare tokens room to grow (DAPO: 0.28). Default:
    `clip`."""
    ratio: Literal["token", "answer"] = "token"
    """Ratios token by token, or one for each whole answer, by its mean token (GSPO)."""
    epochs: int = Field(default=1, ge=1)
    """How often the answers of a round are trained on."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the reward of an answer that was cut off before it ended."""


class DrGrpoConfig(GrpoConfig):
    """GRPO without its two biases: advantages are not divided by the spread of their group, nor
    losses by the answer's length."""

    loss: Literal["grpo", "dr_grpo", "dapo", "cispo"] = "dr_grpo"
    """Fixed by the name."""
    scale: Literal["group", "batch", "none"] = "none"
    """Fixed by the name."""


def group_advantages(rewards: list[float], scale: str, spread: float) -> list[float]:
    """Rewards of one group minus their mean, divided by their standard deviation (n - 1) or by
    `spread`, that of the step. `none`: not divided."""
    mean = sum(rewards) / len(rewards)
    divisor = deviation(rewards) if scale == "group" else spread if scale == "batch" else 1.0
    # The small number is TRL's: a group of equal rewards has advantages of exactly 0 all the same.
    return [(r - mean) / (divisor + 1e-4) if scale != "none" else r - mean for r in rewards]


def k3(logprob_L: Tensor, ref_L: Tensor) -> Tensor:
    """An estimate of KL(policy || reference) at each token that is never negative: exp(d) - d - 1
    with d = ref - logprob."""
    difference = ref_L - logprob_L
    return ratio_of(difference) - difference - 1


@objectives.register(
    "grpo", GrpoConfig, source="arXiv 2402.03300", rows=ROWS, usual_for=("prompt",)
)
@objectives.register("dr_grpo", DrGrpoConfig, source="arXiv 2503.20783", rows=ROWS)
def grpo(config: GrpoConfig) -> Objective:
    """loss = mean of -min(ratio A, clip(ratio) A) + beta k3(logprob, ref), A = (reward - mean of
    the group) / spread; `loss` says what the mean is over."""
    high = config.clip if config.clip_high is None else config.clip_high

    def judge(groups: Groups) -> Figures:
        import torch

        spread = deviation([e.reward for group in groups for e in group])
        for group in groups:
            advantages = group_advantages([e.reward for e in group], config.scale, spread)
            for e, advantage in zip(group, advantages, strict=True):
                e.advantage = torch.full((e.num_tokens,), advantage)
        return alike(groups) | ({"kl": (kl_of(groups), 1)} if config.beta else {})

    def plan(samples: list[Sample]) -> dict[str, float]:
        if config.loss == "grpo":
            return {"policy": num_answers(samples)}
        if config.loss == "dr_grpo":
            return {"policy": num_answers(samples) * config.max_new_tokens}
        return {"policy": learnt_weight(samples)}

    def terms(output: PassOutput) -> dict[str, Term]:
        old_L, advantage_L = joined(output, "old"), joined(output, "advantage")
        log_ratio = output.logprob - old_L
        if config.ratio == "answer":
            mean_A = per_branch(log_ratio, output) / lengths(output)
            # The value is the answer's mean; the gradient goes through each token's own
            # log-probability (GSPO-token, equation 14).
            log_ratio = mean_A.detach()[output.branch] + output.logprob - output.logprob.detach()
        ratio = ratio_of(log_ratio)
        if config.loss == "cispo":
            clipped = ratio > 1 + high
            loss_L = -ratio.detach().clamp(max=1 + high) * advantage_L * output.logprob
        else:
            loss_L, clipped = clipped_policy_loss(ratio, advantage_L, config.clip, high)
        if config.beta:
            kl_L = k3(output.logprob, joined(output, "reference"))
            loss_L = loss_L + config.beta * (kl_L * ratio if config.weigh_kl else kl_L)
        if config.loss == "grpo":
            loss_L = loss_L / lengths(output)[output.branch]
        watch(output, old_L, clipped)
        return {"policy": ((output.weight * loss_L).sum(), 1.0)}

    rollouts = rollouts_of(config, judge, reference=config.beta > 0)
    return Objective(plan, terms, rollouts=rollouts, rate_factor=0.5)
