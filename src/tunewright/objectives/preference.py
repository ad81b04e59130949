"""Learning from pairs: of two answers to the same question, the chosen one is to become more likely
than the rejected one.

Legend: P pairs. `chosen_P` and `rejected_P` are summed log-probabilities of the answers in nats,
`length` their numbers of learnt tokens. Each loss returns one value a pair; the engine divides
their weighted sum by the weights of the whole step. A pair's weight is its row's.

Sources: DPO, Rafailov et al. 2023 (arXiv 2305.18290); conservative DPO, Mitchell 2023 (label
smoothing); IPO, Azar et al. 2023 (2310.12036), with lengths divided out as its authors recommend
for texts; hinge, Zhao et al. 2023 (SLiC, 2305.10425); the SFT term, Pang et al. 2024 (2404.19733);
robust DPO, Chowdhury et al. 2024 (2403.00409); EXO, Ji et al. 2024 (2402.00856, equation 16); NCA,
Chen et al. 2024 (2402.05369); SPPO, Wu et al. 2024 (2405.00675); APO, D'Oosterlinck et al. 2024
(2408.06266, equations 7 and 8); BCO, Jung et al. 2024 (2404.04656), here on pairs; DiscoPOP, Lu et
al. 2024 (2406.08414, equation 5); the length-normalised sigmoid, TRL 1.16; weights by how likely
the model itself writes an answer, Zhou et al. 2024 (WPO, 2406.11827, equation 2); ORPO, Hong et al.
2024 (2403.07691); SimPO, Meng et al. 2024 (2405.14734); CPO, Xu et al. 2024 (2401.08417).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from tunewright.core.config import Section
from tunewright.core.moves import later
from tunewright.core.refusals import refused
from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Figures, Objective, Passes, PassOutput, Sample, Term
from tunewright.objectives.branches import per_branch, places_of
from tunewright.objectives.running import RunningMean

if TYPE_CHECKING:
    from torch import Tensor

ROWS = ("preference",)
DpoLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "bco_pair",
    "discopop",
    "sigmoid_norm",
]
RATE_FACTOR = 0.25
EXO_SMOOTHING = 1e-3
"""What exo_pair takes where nobody gave a smoothing: its target must not be certain."""
DISCOPOP_TAU = 0.05
"""Temperature of DiscoPOP's mixture, as its authors found it."""
SMOOTHED = ("sigmoid", "robust", "exo_pair")
"""Losses that know a share of pairs the wrong way round."""


class DpoConfig(Section):
    """Direct preference optimisation: the chosen answer against the rejected one, measured from
    where training started. Data: pairs."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is kept near its starting point; larger moves it less."""
    loss: DpoLoss | list[DpoLoss] = "sigmoid"
    """sigmoid is DPO; hinge stops at a margin of 1; ipo aims at a fixed margin and cannot run away;
    the others: docs/objectives/dpo.md. A list mixes several, such as [sigmoid, bco_pair]."""
    loss_weights: list[float] = []
    """With a list of losses, the weight of each, such as [0.8, 0.2]. Default: 1 each."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are assumed to be the wrong way round (with sigmoid, robust and
    exo_pair)."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of an SFT term on the chosen answers: keeps their own probability from falling."""
    wpo: bool = False
    """Weigh each pair by how likely the model itself would write its two answers now (WPO): pairs
    from another model count less."""
    bco_shift: bool = False
    """With bco_pair: measure rewards from their mean over the steps so far, as the paper does; off:
    from 0, as TRL does."""

    @field_validator("loss")
    @classmethod
    def _each_once(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise refused("losses_once")
        return value

    @model_validator(mode="after")
    def _weights_fit(self) -> DpoConfig:
        if self.loss_weights and (
            not isinstance(self.loss, list) or len(self.loss_weights) != len(self.loss)
        ):
            raise refused("loss_weights")
        if any(weight <= 0 for weight in self.loss_weights):
            raise refused("weights_above")
        if self.bco_shift and "bco_pair" not in dict(self.parts):
            raise refused("bco_shift")
        if self.label_smoothing and not set(SMOOTHED) & set(dict(self.parts)):
            raise refused("smoothing", losses=", ".join(SMOOTHED))
        return self

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Each loss with its weight."""
        losses = self.loss if isinstance(self.loss, list) else [self.loss]
        return list(zip(losses, self.loss_weights or [1.0] * len(losses), strict=True))


class IpoConfig(DpoConfig):
    """DPO with the loss of IPO, which aims at a fixed margin. Data: pairs."""

    loss: DpoLoss | list[DpoLoss] = "ipo"
    """The loss; fixed by the name."""


class OrpoConfig(Section):
    """SFT on the chosen answers plus an odds ratio against the rejected ones; needs no reference.
    Data: pairs."""

    beta: float = Field(default=0.1, gt=0)
    """Weight of the odds-ratio term (lambda in the paper)."""
    sft_on: Literal["answer", "all"] = "answer"
    """What the SFT term is taken over: answer is the chosen answer, as in the paper; all is its
    question too, as TRL does it."""


class CpoConfig(Section):
    """DPO without a reference plus SFT on the chosen answers. Data: pairs."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the difference between the two answers' log-probabilities."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the SFT term on the chosen answers, which stands in for the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are assumed to be the wrong way round."""


class SimpoConfig(Section):
    """The mean log-probability a token of the chosen answer against the rejected one's, with a
    margin; needs no reference. Data: pairs."""

    beta: float = Field(default=2.0, gt=0)
    """Scale of the reward."""
    gamma: float = Field(default=1.0, ge=0)
    """Target margin between the two rewards."""


class Pairs:
    """The pairs of one pass as tensors of P values."""

    def __init__(self, output: PassOutput):
        self.chosen = places_of("chosen", output)
        """Indices of the chosen answers' branches."""
        rejected = places_of("rejected", output)
        learnt = (output.weight > 0).to(output.logprob.dtype)
        total = per_branch(output.logprob * learnt, output)
        length = per_branch(learnt, output)
        self.chosen_P, self.rejected_P = total[self.chosen], total[rejected]
        self.chosen_length, self.rejected_length = length[self.chosen], length[rejected]
        self.weight_P = total.new_tensor([pair_weight(sample) for sample in output.samples])
        if output.reference is not None:
            reference = output.reference.to(total.dtype)
            self.chosen_ref, self.rejected_ref = reference[self.chosen], reference[rejected]
        if "log_sum_of_squares" in output.facts:
            apart = (output.logprob.detach() - output.facts["log_sum_of_squares"]) * learnt
            mean = per_branch(apart, output) / length
            self.own_P = (mean[self.chosen] + mean[rejected]).exp()
            """How likely the model writes both answers itself."""

    def means(self) -> tuple[Tensor, Tensor]:
        """The mean log-probability a token of the chosen and of the rejected answers, each (P,)."""
        return self.chosen_P / self.chosen_length, self.rejected_P / self.rejected_length


def pair_weight(sample: Sample) -> float:
    """The weight of a pair: the largest of its learnt tokens' (all have the row's weight unless a
    turn brings its own)."""
    return max(sample.branches[0].weights)


def dpo_loss(pairs: Pairs, config: DpoConfig, shift: float = 0.0) -> Tensor:
    """One value a pair, (P,), from the differences of log-ratios: the weighted sum of the losses
    that `config` names. `shift` is the point from which bco_pair measures rewards."""
    import torch

    chosen, rejected = pairs.chosen_P - pairs.chosen_ref, pairs.rejected_P - pairs.rejected_ref
    parts = [
        weight * _one_loss(name, pairs, chosen, rejected, config, shift)
        for name, weight in config.parts
    ]
    found = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    return found if not config.wpo else pairs.own_P * found


def _one_loss(
    loss: str, pairs: Pairs, chosen: Tensor, rejected: Tensor, config: DpoConfig, shift: float
) -> Tensor:
    """(P,). `chosen` and `rejected` are changes of log-probabilities since step 0."""
    import torch
    from torch.nn.functional import logsigmoid, relu

    if loss in ("ipo", "sigmoid_norm"):
        # Per token, else the squared distance grows with the square of the length.
        apart = chosen / pairs.chosen_length - rejected / pairs.rejected_length
        if loss == "sigmoid_norm":
            return -logsigmoid(config.beta * apart)
        return (apart - 1 / (2 * config.beta)) ** 2
    z = config.beta * (chosen - rejected)
    smooth = config.label_smoothing
    if loss == "hinge":
        return relu(1 - z)
    if loss == "robust":
        return (-logsigmoid(z) * (1 - smooth) + logsigmoid(-z) * smooth) / (1 - 2 * smooth)
    if loss == "exo_pair":
        smooth = smooth or EXO_SMOOTHING
        wins, loses = logsigmoid(z), logsigmoid(-z)
        return wins.exp() * (wins - math.log1p(-smooth)) + loses.exp() * (loses - math.log(smooth))
    if loss == "nca_pair":
        good, bad = config.beta * chosen, config.beta * rejected
        return -logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad)
    if loss == "bco_pair":
        good, bad = config.beta * chosen - shift, config.beta * rejected - shift
        return -logsigmoid(good) - logsigmoid(-bad)
    if loss == "discopop":
        # exp(-z) sigmoid(z / tau) in one exponential: exp(-z) alone would not be finite.
        sharp = torch.exp(logsigmoid(z / DISCOPOP_TAU) - z)
        return -logsigmoid(z) * torch.sigmoid(-z / DISCOPOP_TAU) + sharp
    if loss == "sppo_hard":
        return (chosen - 0.5 / config.beta) ** 2 + (rejected + 0.5 / config.beta) ** 2
    if loss == "apo_zero":
        return torch.sigmoid(-config.beta * chosen) + torch.sigmoid(config.beta * rejected)
    if loss == "apo_down":
        return torch.sigmoid(config.beta * chosen) + torch.sigmoid(-z)
    return smoothed(z, smooth)


def smoothed(z: Tensor, smooth: float) -> Tensor:
    """-log sigmoid(z), with a share of the pairs taken the other way round."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(z) * (1 - smooth) - logsigmoid(-z) * smooth


def odds_ratio_loss(pairs: Pairs) -> Tensor:
    """-log sigmoid of the log odds ratio of mean token probabilities, (P,)."""
    import torch
    from torch.nn.functional import logsigmoid

    def log_odds(mean: Tensor) -> Tensor:
        # log(p / (1 - p)) from log p. Near p = 1 the difference to 1 is lost in float32: the
        # largest mean stays a little under 0.
        mean = mean.clamp(max=-1e-7)
        return mean - torch.log(-torch.expm1(mean))

    chosen, rejected = pairs.means()
    return -logsigmoid(log_odds(chosen) - log_odds(rejected))


def simpo_loss(pairs: Pairs, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta * (difference of mean token log-probabilities) - gamma), (P,)."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = pairs.means()
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def reward_figures(chosen_P: Tensor, rejected_P: Tensor) -> Figures:
    """What people watch of the two answers' rewards, as (sum over pairs, number of pairs)."""
    margin, count = (chosen_P - rejected_P).detach(), len(chosen_P)
    return {
        "rewards_chosen": (later(chosen_P.sum()), count),
        "rewards_rejected": (later(rejected_P.sum()), count),
        "margin": (later(margin.sum()), count),
        "accuracy": (later((margin > 0).sum()), count),
    }


def _figures(pairs: Pairs, chosen_reward: Tensor, rejected_reward: Tensor) -> Figures:
    """The same, and the answers' log-probabilities."""
    count = len(pairs.chosen_P)
    return reward_figures(chosen_reward, rejected_reward) | {
        "chosen_logprob": (later(pairs.chosen_P.sum()), count),
        "rejected_logprob": (later(pairs.rejected_P.sum()), count),
    }


def _likelihood_of(places: Tensor, output: PassOutput) -> Tensor:
    """Weighted negative log-likelihood of these branches, summed over their tokens."""
    import torch

    return -(output.weight * output.logprob * torch.isin(output.branch, places)).sum()


def _also_likely(output: PassOutput, pairs: Pairs, weight: float) -> dict[str, Term]:
    """The SFT term on the chosen answers, where it has a weight."""
    return {"sft": (_likelihood_of(pairs.chosen, output), weight)} if weight else {}


def _plan(name: str, also_likely: bool) -> Callable[[list[Sample]], dict[str, float]]:
    """The weights of the pairs and, for an SFT term, of the chosen answers' tokens."""

    def plan(samples: list[Sample]) -> dict[str, float]:
        found = {name: sum(map(pair_weight, samples))}
        if also_likely:
            found["sft"] = sum(sum(sample.branches[0].weights) for sample in samples)
        return found

    return plan


WHOLE = "whole"
"""Role of a branch in which the question of the chosen answer is learnt, too."""


def add_whole(samples: list[Sample]) -> None:
    """Give each pair a third branch: the chosen answer with its question, every token learnt. Its
    rows are the chosen branch's own, so a tree computes nothing twice."""
    for sample in samples:
        if sample.branches[-1].role != WHOLE:
            chosen = sample.branches[0]
            learnt = list(range(1, len(chosen.tokens)))
            sample.branches.append(
                Branch(
                    chosen.tokens,
                    learnt,
                    [pair_weight(sample)] * len(learnt),
                    chosen.positions,
                    role=WHOLE,
                )
            )


@objectives.register(
    "dpo", DpoConfig, source="arXiv 2305.18290", rows=ROWS, usual_for=("preference",)
)
@objectives.register("ipo", IpoConfig, source="arXiv 2310.12036", rows=ROWS)
def dpo(config: DpoConfig) -> Objective:
    """loss = sum_p w_p * f(beta * ((chosen - chosen_ref) - (rejected - rejected_ref))) / sum_p w_p,
    f = -log sigmoid or as `loss` says."""
    name = "ipo" if config.loss == "ipo" else "dpo"
    running = RunningMean()

    def rewards(output: PassOutput) -> tuple[Tensor, Tensor, Pairs]:
        pairs = Pairs(output)
        return (
            config.beta * (pairs.chosen_P - pairs.chosen_ref),
            config.beta * (pairs.rejected_P - pairs.rejected_ref),
            pairs,
        )

    def measure(samples: list[Sample], run: Passes) -> None:
        total = weights = 0.0
        for output in run(samples):
            chosen_P, rejected_P, pairs = rewards(output)
            total += float(((chosen_P + rejected_P) * pairs.weight_P).double().sum()) / 2
            weights += float(pairs.weight_P.double().sum())
        running.add(total, weights)

    def terms(output: PassOutput) -> dict[str, Term]:
        chosen_P, rejected_P, pairs = rewards(output)
        output.figures |= _figures(pairs, chosen_P, rejected_P)
        if config.wpo:
            own = pairs.own_P
            output.figures["wpo_weight"] = (later(own.sum()), len(own))
        shift = running.mean if config.bco_shift else 0.0
        found = {name: ((pairs.weight_P * dpo_loss(pairs, config, shift)).sum(), 1.0)}
        return found | _also_likely(output, pairs, config.sft_weight)

    keeps = config.bco_shift
    return Objective(
        _plan(name, config.sft_weight > 0),
        terms,
        reference=True,
        rate_factor=RATE_FACTOR,
        asks=("log_sum_of_squares",) if config.wpo else (),
        measure=measure if keeps else None,
        state=running.state if keeps else None,
        load_state=running.load_state if keeps else None,
    )


@objectives.register("orpo", OrpoConfig, source="arXiv 2403.07691", rows=ROWS)
def orpo(config: OrpoConfig) -> Objective:
    """loss = mean over chosen tokens of -log p + beta * mean over pairs of -log sigmoid(log
    odds(chosen) - log odds(rejected))."""
    whole = config.sft_on == "all"

    def plan(samples: list[Sample]) -> dict[str, float]:
        tokens = sum(sum(sample.branches[-1 if whole else 0].weights) for sample in samples)
        return {"sft": tokens, "odds_ratio": sum(map(pair_weight, samples))}

    def terms(output: PassOutput) -> dict[str, Term]:
        pairs = Pairs(output)
        chosen, rejected = pairs.means()
        output.figures |= _figures(pairs, config.beta * chosen, config.beta * rejected)
        learnt = places_of(WHOLE, output) if whole else pairs.chosen
        return {
            "sft": (_likelihood_of(learnt, output), 1.0),
            "odds_ratio": ((pairs.weight_P * odds_ratio_loss(pairs)).sum(), config.beta),
        }

    return Objective(plan, terms, prepare=add_whole if whole else None, rate_factor=RATE_FACTOR)


@objectives.register("cpo", CpoConfig, source="arXiv 2401.08417", rows=ROWS)
def cpo(config: CpoConfig) -> Objective:
    """loss = mean over pairs of -log sigmoid(beta * (log p(chosen) - log p(rejected))) + sft_weight
    * mean over chosen tokens of -log p."""

    def terms(output: PassOutput) -> dict[str, Term]:
        pairs = Pairs(output)
        output.figures |= _figures(
            pairs, config.beta * pairs.chosen_P, config.beta * pairs.rejected_P
        )
        z = config.beta * (pairs.chosen_P - pairs.rejected_P)
        found = {"cpo": ((pairs.weight_P * smoothed(z, config.label_smoothing)).sum(), 1.0)}
        return found | _also_likely(output, pairs, config.sft_weight)

    return Objective(_plan("cpo", config.sft_weight > 0), terms, rate_factor=RATE_FACTOR)


@objectives.register("simpo", SimpoConfig, source="arXiv 2405.14734", rows=ROWS)
def simpo(config: SimpoConfig) -> Objective:
    """loss = mean over pairs of -log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) -
    gamma)."""

    def terms(output: PassOutput) -> dict[str, Term]:
        pairs = Pairs(output)
        chosen, rejected = pairs.means()
        output.figures |= _figures(pairs, config.beta * chosen, config.beta * rejected)
        loss_P = simpo_loss(pairs, config.beta, config.gamma)
        return {"simpo": ((pairs.weight_P * loss_P).sum(), 1.0)}

    return Objective(_plan("simpo", False), terms, rate_factor=RATE_FACTOR)
