"""DPO on pairs that the model writes itself: two answers to each prompt are drawn and judged, and
the better one is learnt against the other.

Legend: P pairs. Source: Guo et al. 2024 (online AI feedback, arXiv 2402.04792); the losses are
DPO's and IPO's on whole answers, as TRL 1.16 takes them there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.core.registry import objectives
from tunewright.core.types import Figures, Objective, PassOutput, Sample, Term
from tunewright.objectives.policy import ROWS, Groups, RolloutSection, alike, rollouts_of
from tunewright.objectives.preference import Pairs, pair_weight, reward_figures


class OnlineDpoConfig(RolloutSection):
    """Two answers of the model to each prompt: the one with the higher reward is learnt against the
    other."""

    generations: Literal[2] = 2
    """Answers drawn for each prompt: a pair."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is kept near its starting point; larger moves it less."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid is DPO; ipo aims at a fixed margin and cannot run away."""
    epochs: int = Field(default=1, ge=1)
    """How often the pairs of a round are trained on."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""
    unfinished_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the reward of an answer that was cut off before it ended."""


def ranked(samples: list[Sample]) -> Sample | None:
    """The two judged answers to a prompt as a pair, the better one first; None where their rewards
    are equal, which teaches nothing, or one could not be judged."""
    if len(samples) != 2:
        return None
    rewards = [sample.facts["experience"].reward for sample in samples]
    if rewards[0] == rewards[1]:
        return None
    best, worst = samples if rewards[0] > rewards[1] else samples[::-1]
    branches = []
    for sample, role in ((best, "chosen"), (worst, "rejected")):
        sample.branches[0].role = role
        branches.append(sample.branches[0])
    pair = (best.facts["experience"], worst.facts["experience"])
    return Sample(branches, best.index, best.origin, best.weight, facts={"pair": pair})


@objectives.register("online_dpo", OnlineDpoConfig, source="arXiv 2402.04792", rows=ROWS)
def online_dpo(config: OnlineDpoConfig) -> Objective:
    """loss = sum_p w_p * f(z_p) / sum_p w_p, z = (chosen - chosen_ref) - (rejected - rejected_ref)
    in nats; f(z) = -log sigmoid(beta z), or (z - 1 / (2 beta))^2 with ipo."""

    def judge(groups: Groups) -> Figures:
        margins = [abs(group[0].reward - group[1].reward) for group in groups if len(group) == 2]
        found = alike(groups)
        return found | {"reward_margin": (sum(margins), len(margins))} if margins else found

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"online_dpo": sum(map(pair_weight, samples))}

    def terms(output: PassOutput) -> dict[str, Term]:
        import torch
        from torch.nn.functional import logsigmoid

        references = [torch.as_tensor(e.reference) for s in output.samples for e in s.facts["pair"]]
        reference = torch.stack([r.double().sum() for r in references])
        output.reference = reference.to(output.logprob.device)
        pairs = Pairs(output)
        chosen_P = pairs.chosen_P - pairs.chosen_ref
        rejected_P = pairs.rejected_P - pairs.rejected_ref
        output.figures |= reward_figures(config.beta * chosen_P, config.beta * rejected_P)
        z = chosen_P - rejected_P
        if config.loss == "ipo":
            value = (z - 1 / (2 * config.beta)) ** 2
        else:
            value = -logsigmoid(config.beta * z)
        return {"online_dpo": ((pairs.weight_P * value).sum(), 1.0)}

    rollouts = rollouts_of(config, judge, reference=True, pair=ranked)
    return Objective(plan, terms, rollouts=rollouts, rate_factor=0.25)
