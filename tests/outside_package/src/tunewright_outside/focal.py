"""Likelihood that dwells on what the model finds unlikely (Lin et al. 2017, arXiv 1708.02002)."""

from __future__ import annotations

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.registry import objectives
from tunewright.core.types import Objective, PassOutput, Sample, Term


class FocalConfig(Section):
    """Supervised fine-tuning in which a token counts the less, the likelier it is already."""

    gamma: float = Field(default=1.0, ge=0)
    """How much less; 0 is plain likelihood."""


@objectives.register(
    "focal",
    FocalConfig,
    source="arXiv 1708.02002",
    rows=("conversation", "text"),
    page="https://example.org/focal",
)
def focal(config: FocalConfig) -> Objective:
    """loss = sum_l w_l * -(1 - p_l)^gamma * log p_l / sum_l w_l."""

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"focal": sum(sum(b.weights) for s in samples for b in s.branches)}

    def terms(output: PassOutput) -> dict[str, Term]:
        # Not quite 0: where p is 1 in floating point, the power's slope would have no value.
        unlikely = (-output.logprob.expm1()).clamp(min=1e-12)
        loss_L = -(unlikely**config.gamma) * output.logprob
        output.figures["nll"] = (-float(output.logprob.detach().sum()), len(loss_L))
        return {"focal": ((output.weight * loss_L).sum(), 1.0)}

    return Objective(plan, terms, rate_factor=0.8)
