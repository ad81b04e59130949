"""Supervised fine-tuning: the mean negative log-likelihood of the learnt tokens of a whole
optimiser step.

Sources: label smoothing, Szegedy et al. 2016 (arXiv 1512.00567), in the form of torch's cross
entropy (the smoothed share goes to all tokens of the vocabulary alike); z-loss, Chowdhery et al.
2022 (PaLM, 2204.02311), which keeps the logarithm of the softmax's denominator near 0.
"""

from __future__ import annotations

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.moves import later
from tunewright.core.registry import objectives
from tunewright.core.types import Objective, PassOutput, Sample, Term
from tunewright.objectives.branches import learnt_weight

ROWS = ("conversation", "text")


class SftConfig(Section):
    """Supervised fine-tuning on answers. Data: rows with a question and an answer, or plain
    text."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the whole vocabulary: 0.1 keeps a model from
    becoming overconfident; 0 is the plain likelihood."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared logarithm of the softmax's denominator; 1e-4 keeps the scale of the
    logits steady in long runs. 0: none."""


def likelihood(name: str, smoothing: float, z_loss: float) -> Objective:
    """sum_l w_l * (-(1 - s) log p(token_l) - s * mean over the vocabulary of log p) / sum_l w_l +
    z_loss * sum_l w_l * (log Z_l)^2 / sum_l w_l."""

    def plan(samples: list[Sample]) -> dict[str, float]:
        total = learnt_weight(samples)
        return {name: total} | ({"z_loss": total} if z_loss else {})

    def terms(output: PassOutput) -> dict[str, Term]:
        if not smoothing and not z_loss:
            return {name: (-(output.weight * output.logprob).sum(), 1.0)}
        assert output.mean_logprob is not None and output.log_z is not None
        target = (1 - smoothing) * output.logprob + smoothing * output.mean_logprob
        count = len(output.weight)
        # What smoothing adds is no error of the model: the plain loss is shown beside it.
        output.figures |= {
            "nll": (-later(output.logprob.sum()), count),
            "log_z": (later(output.log_z.sum()), count),
        }
        found = {name: (-(output.weight * target).sum(), 1.0)}
        if z_loss:
            found["z_loss"] = ((output.weight * output.log_z**2).sum(), z_loss)
        return found

    return Objective(plan, terms, spread=bool(smoothing or z_loss))


@objectives.register(
    "sft", SftConfig, source="maximum likelihood", rows=ROWS, usual_for=("conversation",)
)
def sft(config: SftConfig) -> Objective:
    """loss = sum_l w_l * (-log p(token_l)) / sum_l w_l over all learnt tokens l of the step,
    however it is cut into passes."""
    return likelihood("sft", config.label_smoothing, config.z_loss)
