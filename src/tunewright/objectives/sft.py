"""Supervised fine-tuning: the mean negative log-likelihood of the learnt tokens of a whole
optimiser step.

Sources: label smoothing, Szegedy et al. 2016 (arXiv 1512.00567), in the form of torch's cross
entropy (the smoothed share goes to all tokens of the vocabulary alike); z-loss, Chowdhery et al.
2022 (PaLM, 2204.02311), which keeps the logarithm of the softmax's denominator near 0; DFT, Wu et
al. 2025 (2508.05629), which weighs a token by its own probability; EAFT, which weighs it by the
entropy of the distribution that it was predicted from, in the form of LLaMA-Factory 0.9.6 (over the
20 likeliest tokens, divided by 3, which is about their largest entropy).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunewright.core.config import Section
from tunewright.core.moves import later
from tunewright.core.refusals import refused
from tunewright.core.registry import objectives
from tunewright.core.types import Objective, PassOutput, Sample, Term
from tunewright.objectives.branches import learnt_weight

if TYPE_CHECKING:
    from torch import Tensor

ROWS = ("conversation", "text")
MOST_ENTROPY = 3.0
"""About the logarithm of 20, by which EAFT divides."""


class SftConfig(Section):
    """Supervised fine-tuning on answers. Data: rows with a question and an answer, or plain
    text."""

    loss: Literal["nll", "dft", "eaft"] = "nll"
    """nll is the likelihood; dft weighs a token by its own probability, so that rows far from what
    the model would write move it less; eaft weighs it by the model's entropy there, so that what
    the model is certain of is left alone."""
    eaft_alpha: float = Field(default=1.0, gt=0)
    """With eaft: the power of the entropy; higher leaves more tokens alone."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the whole vocabulary: 0.1 keeps a model from
    becoming overconfident; 0 is the plain likelihood."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared logarithm of the softmax's denominator; 1e-4 keeps the scale of the
    logits steady in long runs. 0: none."""

    @model_validator(mode="after")
    def _used(self) -> SftConfig:
        if self.eaft_alpha != 1.0 and self.loss != "eaft":
            raise refused("eaft_alpha")
        return self


Factor = Callable[[PassOutput], "Tensor"]
"""(L,) what each token counts for, without gradient."""


def dft_factor(output: PassOutput) -> Tensor:
    """The token's own probability."""
    return output.logprob.detach().exp()


def eaft_factor(alpha: float) -> Factor:
    """(entropy / 3) ^ alpha."""

    def factor(output: PassOutput) -> Tensor:
        return (output.facts["top_entropy"] / MOST_ENTROPY) ** alpha

    return factor


def likelihood(
    name: str,
    smoothing: float,
    z_loss: float,
    factor: Factor | None = None,
    asks: tuple[str, ...] = (),
) -> Objective:
    """sum_l w_l * (-(1 - s) log p(token_l) - s * mean over the vocabulary of log p) / sum_l w_l +
    z_loss * sum_l w_l * (log Z_l)^2 / sum_l w_l."""

    def plan(samples: list[Sample]) -> dict[str, float]:
        total = learnt_weight(samples)
        return {name: total} | ({"z_loss": total} if z_loss else {})

    def loss_of(output: PassOutput, weight: Tensor) -> dict[str, Term]:
        if not smoothing and not z_loss:
            return {name: (-(weight * output.logprob).sum(), 1.0)}
        assert output.mean_logprob is not None and output.log_z is not None
        target = (1 - smoothing) * output.logprob + smoothing * output.mean_logprob
        count = len(output.weight)
        # What smoothing adds is no error of the model: the plain loss is shown beside it.
        output.figures |= {
            "nll": (-later(output.logprob.sum()), count),
            "log_z": (later(output.log_z.sum()), count),
        }
        found = {name: (-(weight * target).sum(), 1.0)}
        if z_loss:
            found["z_loss"] = ((output.weight * output.log_z**2).sum(), z_loss)
        return found

    def plain(output: PassOutput) -> dict[str, Term]:
        return loss_of(output, output.weight)

    def terms(output: PassOutput) -> dict[str, Term]:
        if factor is None:
            return plain(output)
        factor_L, count = factor(output), len(output.weight)
        output.figures |= {
            "nll": (-later(output.logprob.sum()), count),
            "token_weight": (later(factor_L.sum()), count),
        }
        return loss_of(output, output.weight * factor_L)

    # A token that becomes impossible costs nothing where its weight is its probability: held-out
    # rows are measured by the likelihood.
    measured = plain if factor is not None else None
    spread = bool(smoothing or z_loss)
    return Objective(plan, terms, spread=spread, asks=asks, measured=measured)


@objectives.register(
    "sft", SftConfig, source="maximum likelihood", rows=ROWS, usual_for=("conversation",)
)
def sft(config: SftConfig) -> Objective:
    """loss = sum_l w_l * f_l * (-log p(token_l)) / sum_l w_l over all learnt tokens l of the step,
    however it is cut into passes; f = 1, p(token_l) (dft) or (entropy_l / 3)^alpha (eaft)."""
    factor = {"dft": dft_factor, "eaft": eaft_factor(config.eaft_alpha)}.get(config.loss)
    asks = ("top_entropy",) if config.loss == "eaft" else ()
    return likelihood("sft", config.label_smoothing, config.z_loss, factor, asks)
