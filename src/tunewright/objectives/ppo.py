"""PPO: a policy and a value head learn from rewarded answers, held to the model at step 0.

Sources: Schulman et al. 2017 (arXiv 1707.06347), for language models Ziegler et al. 2019
(1909.08593) and Ouyang et al. 2022 (2203.02155); generalised advantage estimation, Schulman et al.
2015 (1506.02438).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunewright.core.registry import objectives
from tunewright.core.types import Figures, Objective, PassOutput, Sample, Term
from tunewright.objectives.branches import learnt_weight
from tunewright.objectives.policy import (
    ROWS,
    Groups,
    RolloutSection,
    clipped_policy_loss,
    deviation,
    joined,
    kl_of,
    ratio_of,
    rollouts_of,
    watch,
)

if TYPE_CHECKING:
    from torch import Tensor


class PpoConfig(RolloutSection):
    """Proximal policy optimisation: a policy and a value head learn from rewarded answers, held to
    the model at step 0 by a KL term."""

    generations: int = Field(default=1, ge=1)
    """Answers sampled for each prompt of a step."""
    beta: float = Field(default=0.05, ge=0)
    """KL coefficient: what a nat of distance from the model at step 0 costs, in reward."""
    kl_target: float | None = Field(default=None, gt=0)
    """Let the coefficient adapt until an answer's KL is about this, in nats. Default: the
    coefficient stays."""
    kl_horizon: int = Field(default=1000, ge=1)
    """Answers over which the coefficient adapts."""
    epochs: int = Field(default=2, ge=1)
    """How often the answers of a round are trained on."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of later rewards."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation: 0 trusts the value head, 1 the rewards."""
    clip: float = Field(default=0.2, gt=0)
    """The ratio to the old probability counts only up to this distance from 1."""
    value_clip: float = Field(default=0.2, gt=0)
    """The same for values."""
    value_weight: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    whiten_rewards: bool = False
    """Divide the rewards of a round by their standard deviation."""
    unfinished_penalty: float = Field(default=1.0, ge=0)
    """Subtracted from the reward of an answer that was cut off before it ended."""


def generalised_advantages(
    rewards_n: Tensor, values_n: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), each (n,): delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma
    lam A_(t+1), R_t = A_t + V_t. After the end V is 0."""
    import torch

    advantage, after, found = 0.0, 0.0, []
    for reward, value in zip(
        reversed(rewards_n.tolist()), reversed(values_n.tolist()), strict=True
    ):
        advantage = reward + gamma * after - value + gamma * lam * advantage
        found.append(advantage)
        after = value
    advantages = torch.tensor(found[::-1], dtype=torch.float32)
    return advantages, advantages + values_n.float().cpu()


def clipped_value_loss(value: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2), element by element."""
    import torch

    held = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - returns) ** 2, (held - returns) ** 2)


class KlCoefficient:
    """The KL coefficient of a run: fixed, or led towards a target (Ziegler et al. 2019)."""

    def __init__(self, beta: float, target: float | None, horizon: int):
        self.beta, self.target, self.horizon = beta, target, horizon

    def after_round(self, figures: dict[str, float]) -> None:
        """Raise the coefficient where the model went too far, lower it where it stayed too close;
        at most by a fifth for each horizon of answers."""
        if self.target is not None and "kl" in figures:
            error = min(0.2, max(-0.2, figures["kl"] / self.target - 1))
            self.beta *= 1 + error * figures.get("answers", 0.0) / self.horizon

    def state(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def load_state(self, state: dict[str, Any]) -> None:
        self.beta = float(state["beta"])


@objectives.register("ppo", PpoConfig, source="arXiv 1707.06347", rows=ROWS)
def ppo(config: PpoConfig) -> Objective:
    """policy = mean over tokens of -min(ratio A, clip(ratio) A); value = mean of 0.5 max((V - R)^2,
    (clipped V - R)^2).

    The reward of a token is -beta (old - ref), that of the last token also the answer's; A and R by
    generalised advantage estimation, A whitened over the round.
    """
    kl = KlCoefficient(config.beta, config.kl_target, config.kl_horizon)

    def judge(groups: Groups) -> Figures:
        import torch

        answers = [e for group in groups for e in group]
        scores = [e.reward for e in answers]
        divisor = deviation(scores) + 1e-8 if config.whiten_rewards and len(scores) > 1 else 1.0
        for e, score in zip(answers, scores, strict=True):
            reward_n = (
                -kl.beta * (e.old - e.reference)
                if e.reference is not None
                else torch.zeros_like(e.old)
            )
            reward_n[-1] += score / divisor
            e.advantage, e.returns = generalised_advantages(
                reward_n, e.value, config.gamma, config.lam
            )
        everything = torch.cat([e.advantage for e in answers])
        mean, spread = everything.mean(), everything.std(correction=0) + 1e-8
        for e in answers:
            e.advantage = (e.advantage - mean) / spread
        returns, values = (
            torch.cat([e.returns for e in answers]),
            torch.cat([e.value.float().cpu() for e in answers]),
        )
        explained = 1 - float((returns - values).var(correction=0)) / (
            float(returns.var(correction=0)) + 1e-8
        )
        return {
            "kl": (kl_of(groups), 1),
            "kl_coefficient": (kl.beta, 1),
            "explained_variance": (explained, 1),
        }

    def plan(samples: list[Sample]) -> dict[str, float]:
        return dict.fromkeys(("policy", "value"), learnt_weight(samples))

    def terms(output: PassOutput) -> dict[str, Term]:
        assert output.value is not None
        old_L, advantage_L = joined(output, "old"), joined(output, "advantage")
        loss_L, clipped = clipped_policy_loss(
            ratio_of(output.logprob - old_L), advantage_L, config.clip, config.clip
        )
        value_L = clipped_value_loss(
            output.value, joined(output, "value"), joined(output, "returns"), config.value_clip
        )
        watch(output, old_L, clipped)
        return {
            "policy": ((output.weight * loss_L).sum(), 1.0),
            "value": ((output.weight * value_L).sum(), config.value_weight),
        }

    reference = config.beta > 0 or config.kl_target is not None
    rollouts = rollouts_of(
        config,
        judge,
        reference=reference,
        after_round=kl.after_round,
        state=kl.state,
        load_state=kl.load_state,
    )
    return Objective(plan, terms, heads=("value",), rollouts=rollouts, rate_factor=0.2)
