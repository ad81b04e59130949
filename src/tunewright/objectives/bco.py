"""Learning from single judgements as a classifier: good answers are to have rewards above their
running mean, bad ones below.

Legend: B answers. The reward of an answer is beta times the change of its summed log-probability
since step 0. The point between good and bad is the mean of the rewards, step by step over the run
so far, this step's among them; it is measured without gradient before the step is learnt, so how a
step is cut into passes changes nothing, and it is kept in checkpoints.

Source: Jung et al. 2024 (BCO, arXiv 2404.04656, equation 8 and the reward shift of section 4).
Their weights for prompts of which only one side has answers (underlying distribution matching) are
not here: they need a second model.
"""

from __future__ import annotations

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.registry import objectives
from tunewright.core.types import Objective, Passes, PassOutput, Sample, Term
from tunewright.objectives.branches import roles
from tunewright.objectives.kto import GOOD, ROWS, rewards
from tunewright.objectives.running import RunningMean


class BcoConfig(Section):
    """Good answers are pushed above, bad ones below the mean reward of the run so far. Data: judged
    answers; pairs count as one good and one bad."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is kept near its starting point; larger moves it less."""
    good_weight: float = Field(default=1.0, ge=0)
    """Weight of answers marked good."""
    bad_weight: float = Field(default=1.0, ge=0)
    """Weight of answers marked bad."""


@objectives.register("bco", BcoConfig, source="arXiv 2404.04656", rows=ROWS)
def bco(config: BcoConfig) -> Objective:
    """loss = sum_b w_b * side_b * -log sigmoid(+- (beta * reward_b - delta)) / sum_b w_b; plus for
    good answers, minus for bad ones; side_b is their weight, delta the mean over steps of the mean
    beta * reward."""
    running = RunningMean()

    def measure(samples: list[Sample], run: Passes) -> None:
        total = weights = 0.0
        for output in run(samples):
            reward_B, weight_B = rewards(output)
            total += config.beta * float((reward_B * weight_B).double().sum())
            weights += float(weight_B.double().sum())
        running.add(total, weights)

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"bco": sum(max(branch.weights) for sample in samples for branch in sample.branches)}

    def terms(output: PassOutput) -> dict[str, Term]:
        import torch
        from torch.nn.functional import logsigmoid

        reward_B, weight_B = rewards(output)
        good_B = torch.tensor([role in GOOD for role in roles(output)], device=reward_B.device)
        side_B = torch.where(good_B, config.good_weight, config.bad_weight)
        z = config.beta * reward_B - running.mean
        value = -logsigmoid(torch.where(good_B, z, -z))
        found, count = config.beta * reward_B.detach(), len(reward_B)
        right = torch.where(good_B, found > running.mean, found < running.mean)
        output.figures |= {
            "rewards_good": (float(found[good_B].sum()), int(good_B.sum())),
            "rewards_bad": (float(found[~good_B].sum()), int((~good_B).sum())),
            "right": (float(right.sum()), count),
            "shift": (running.mean * count, count),
        }
        return {"bco": ((weight_B * side_B * value).sum(), 1.0)}

    return Objective(
        plan,
        terms,
        reference=True,
        rate_factor=0.25,
        measure=measure,
        state=running.state,
        load_state=running.load_state,
    )
