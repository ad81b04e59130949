"""A reward model: one number for a whole answer, learnt from pairs (Bradley and Terry 1952; Ouyang
et al. 2022, arXiv 2203.02155).

The number is read by a head on the last hidden state of the answer's stop token. The margin is
Llama 2's (Touvron et al. 2023, 2307.09288); the centring term, which keeps rewards around 0 so that
they can be compared between prompts, is Eisenstein et al. 2023 (2312.09244).
"""

from __future__ import annotations

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.registry import objectives
from tunewright.core.types import Objective, PassOutput, Sample, Term
from tunewright.objectives.branches import places_of
from tunewright.objectives.preference import pair_weight, reward_figures


class RewardConfig(Section):
    """A reward model: a number for each answer, higher for the one people chose. Data: pairs."""

    margin: bool = True
    """Ask for a difference of at least the row's `margin`, where rows have one."""
    center: float = Field(default=0.0, ge=0)
    """Weight of the term that keeps the two rewards of a pair around 0; 0.01 is common."""


@objectives.register(
    "reward", RewardConfig, source="arXiv 2203.02155", rows=("preference",), judges="answers"
)
def reward(config: RewardConfig) -> Objective:
    """loss = mean over pairs of -log sigmoid(r(chosen) - r(rejected) - margin) + center *
    (r(chosen) + r(rejected))^2."""

    def plan(samples: list[Sample]) -> dict[str, float]:
        total = sum(map(pair_weight, samples))
        return {"reward": total} | ({"center": total} if config.center else {})

    def terms(output: PassOutput) -> dict[str, Term]:
        from torch.nn.functional import logsigmoid

        score_B = output.score
        assert score_B is not None
        chosen_P = score_B[places_of("chosen", output)]
        rejected_P = score_B[places_of("rejected", output)]
        weight_P = score_B.new_tensor([pair_weight(s) for s in output.samples])
        margins = [
            float(s.facts.get("margin") or 0.0) if config.margin else 0.0 for s in output.samples
        ]
        output.figures |= reward_figures(chosen_P, rejected_P)
        gap_P = chosen_P - rejected_P - score_B.new_tensor(margins)
        found = {"reward": (-(weight_P * logsigmoid(gap_P)).sum(), 1.0)}
        if config.center:
            apart = (weight_P * (chosen_P + rejected_P) ** 2).sum()
            found["center"] = (apart, config.center)
        return found

    return Objective(plan, terms, heads=("score",), rate_factor=0.5)
