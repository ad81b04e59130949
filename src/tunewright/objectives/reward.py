"""A reward model: one number for a whole answer, learnt from pairs (Bradley and Terry 1952; Ouyang
et al. 2022, arXiv 2203.02155).

The number is read by a head on the last hidden state of the answer's stop token. The margin is
Llama 2's (Touvron et al. 2023, 2307.09288); the centring term, which keeps rewards around 0 so that
they can be compared between prompts, is Eisenstein et al. 2023 (2312.09244).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.registry import objectives
from tunewright.core.types import Needs, Objective, Sample, Term
from tunewright.objectives.preference import pair_weight

ROWS = ("preference",)


class RewardConfig(Section):
    """A reward model: a number for each answer, higher for the one people chose. Data: pairs."""

    margin: bool = True
    """Ask for a difference of at least the row's `margin`, where rows have one."""
    center: float = Field(default=0.0, ge=0)
    """Weight of the term that keeps the two rewards of a pair around 0; 0.01 is common."""


@objectives.register("reward", RewardConfig, source="arXiv 2203.02155", rows=ROWS, leaves="scores")
def reward(config: RewardConfig) -> Objective:
    """loss = mean over pairs of -log sigmoid(r(chosen) - r(rejected) - margin) + center *
    (r(chosen) + r(rejected))^2."""

    def plan(samples: list[Sample]) -> dict[str, float]:
        total = sum(map(pair_weight, samples))
        return {"reward": total} | ({"center": total} if config.center else {})

    def terms(output: Any) -> dict[str, Term]:
        import torch
        from torch.nn.functional import logsigmoid

        score_B = output.score
        roles = [branch.role for sample in output.samples for branch in sample.branches]
        chosen_P = score_B[
            torch.tensor(
                [i for i, role in enumerate(roles) if role == "chosen"], device=score_B.device
            )
        ]
        rejected_P = score_B[
            torch.tensor(
                [i for i, role in enumerate(roles) if role == "rejected"], device=score_B.device
            )
        ]
        weight_P = torch.tensor(
            [pair_weight(s) for s in output.samples], dtype=score_B.dtype, device=score_B.device
        )
        margins = [
            float(s.facts.get("margin") or 0.0) if config.margin else 0.0 for s in output.samples
        ]
        margin_P = torch.tensor(margins, dtype=score_B.dtype, device=score_B.device)
        gap, count = (chosen_P - rejected_P).detach(), len(margins)
        output.figures |= {
            "rewards_chosen": (float(chosen_P.detach().sum()), count),
            "rewards_rejected": (float(rejected_P.detach().sum()), count),
            "margin": (float(gap.sum()), count),
            "accuracy": (float((gap > 0).sum()), count),
        }
        found = {"reward": (-(weight_P * logsigmoid(chosen_P - rejected_P - margin_P)).sum(), 1.0)}
        return found | (
            {"center": ((weight_P * (chosen_P + rejected_P) ** 2).sum(), config.center)}
            if config.center
            else {}
        )

    return Objective(plan, terms, Needs(heads=("score",), rows=ROWS), rate_factor=0.5)
