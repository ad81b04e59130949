"""A small model learns from a large one: not only which token came next, but how likely the teacher
held every other.

The engine runs the teacher over the same rows and gives the divergence of the two distributions
before each learnt token (`engine.oracles.teacher`, `models.kernels.divergence`); here it is
weighted and mixed with the likelihood of the data.

Sources: Hinton et al. 2015 (arXiv 1503.02531), from whom the temperature and its square before the
loss, which keeps the gradient's size; reverse divergence, Gu et al. 2023 (MiniLLM, 2306.08543),
here on given texts; generalised Jensen-Shannon divergence and learning on the student's own
answers, Agarwal et al. 2023 (GKD, 2306.13649).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.moves import later
from tunewright.core.registry import objectives
from tunewright.core.types import Objective, OwnAnswers, PassOutput, Sample, Teaching, Term
from tunewright.objectives.branches import learnt_weight


class DistillConfig(Section):
    """Learning to predict as a larger model predicts, on given texts. Data: rows with a question
    and an answer, or plain text."""

    teacher: str
    """The model to learn from: hub id, folder, adapter or run. Its vocabulary must be the
    student's."""
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """forward covers everything the teacher would say; reverse keeps to what it says most;
    jensen_shannon is in between, see beta."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """With jensen_shannon, the teacher's share in the mixture that both are compared with."""
    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are taken at this temperature; above 1 unlikely tokens count more. The
    loss is multiplied by its square."""
    alpha: float = Field(default=0.5, ge=0, lt=1)
    """Share of the data's own likelihood in the loss; 0: the teacher alone."""
    top_k: int | None = Field(default=None, gt=0)
    """Keep only the teacher's k most likely tokens, computed once and kept in the run folder, so
    that the teacher does not stay in memory; null: all, live."""


@objectives.register(
    "distill", DistillConfig, source="arXiv 1503.02531", rows=("conversation", "text")
)
def distill(config: DistillConfig) -> Objective:
    """loss = alpha * mean of -log p(token) + (1 - alpha) * temperature^2 * mean of D(teacher,
    student), both over the learnt tokens of the step."""
    teaching = _teaching(config, top_k=config.top_k)
    return Objective(*_functions(config.temperature, config.alpha), teacher=teaching)


class GkdConfig(Section):
    """Learning to predict as a larger model predicts, on answers that the student writes itself.
    Data: rows with a question and an answer."""

    teacher: str
    """The model to learn from: hub id, folder, adapter or run. Its vocabulary must be the
    student's."""
    on_policy: float = Field(default=0.5, gt=0, le=1)
    """Share of the steps that use the student's own answers; the others use the answers of the
    data."""
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "jensen_shannon"
    """As in `distill`."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """With jensen_shannon, the teacher's share in the mixture that both are compared with."""
    temperature: float = Field(default=1.0, gt=0)
    """Both distributions are taken at this temperature, and answers are sampled at it. The loss is
    multiplied by its square."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer that the student writes, in tokens."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the most likely tokens whose probabilities sum to this."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many most likely tokens; 0: all."""


@objectives.register("gkd", GkdConfig, source="arXiv 2306.13649", rows=("conversation",))
def gkd(config: GkdConfig) -> Objective:
    """loss = temperature^2 * mean of D(teacher, student) over the tokens of the step's answers, in
    `on_policy` of the steps the student's own.

    What the student drew is taken as given: no gradient goes through the drawing, as in the paper.
    """
    teaching = _teaching(config, top_k=None)
    own = OwnAnswers(
        share=config.on_policy,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
    )
    return Objective(*_functions(config.temperature, 0.0), teacher=teaching, own_answers=own)


def _teaching(config: DistillConfig | GkdConfig, top_k: int | None) -> Teaching:
    return Teaching(
        model=config.teacher,
        divergence=config.divergence,
        beta=config.beta,
        temperature=config.temperature,
        top_k=top_k,
    )


def _functions(
    temperature: float, alpha: float
) -> tuple[Callable[[list[Sample]], dict[str, float]], Callable[[PassOutput], dict[str, Term]]]:
    """`plan` and `terms`: the divergence, and `alpha` of the data's own likelihood."""
    square = temperature**2

    def plan(samples: list[Sample]) -> dict[str, float]:
        total = learnt_weight(samples)
        return {"teacher": total} | ({"sft": total} if alpha else {})

    def terms(output: PassOutput) -> dict[str, Term]:
        assert output.divergence is not None
        count = len(output.weight)
        output.figures |= {
            "nll": (-later(output.logprob.sum()), count),
            "divergence": (later(output.divergence.sum()), count),
        }
        found = {"teacher": (square * (output.weight * output.divergence).sum(), 1 - alpha)}
        if alpha:
            found["sft"] = (-(output.weight * output.logprob).sum(), alpha)
        return found

    return plan, terms
