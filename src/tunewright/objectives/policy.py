"""What the objectives share that learn from the model's own answers: PPO, GRPO and its variants,
RLOO, REINFORCE.

Legend: L learnt tokens of a pass, A answers. `old_L` are log-probabilities before the first update
of a round, `ref_L` those of the model at step 0, ratio_L = exp(logprob_L - old_L). The engine draws
the answers, judges them and computes these values (`engine.rollouts`); what stands here and in the
files of the objectives is the arithmetic: advantages from rewards, and the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.errors import ConfigError, problem
from tunewright.core.moves import later
from tunewright.core.types import (
    WITHOUT_DIFFERENCE,
    Experience,
    Figures,
    PassOutput,
    Rollouts,
    Sample,
)
from tunewright.objectives.branches import per_branch

if TYPE_CHECKING:
    from torch import Tensor

ROWS = ("prompt", "conversation", "preference", "judged")
Groups: TypeAlias = list[list[Experience]]
"""The answers of a round, one group a prompt."""
Judge: TypeAlias = Callable[[Groups], Figures]


class RolloutSection(Section):
    """Learning from the model's own answers. Data: prompts, or rows whose answers are left out
    (they remain at hand for reward functions)."""

    reward: Any = None
    """The reward: the name of a reward function, a mapping with `kind` and its options, the run
    folder of a reward model, or a list of these."""
    on_bad: Literal["stop", "skip"] = "stop"
    """When a reward function fails on an answer: stop the run, or leave that answer out and count
    it."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the model is also trained at this temperature, so that it is judged as
    it answered."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the most likely tokens whose probabilities sum to this."""
    top_k: int = Field(default=0, ge=0)
    """Sample among this many most likely tokens; 0: all."""


def rollouts_of(config: Any, judge: Judge, **more: Any) -> Rollouts:
    """What an objective asks of the rounds. `config` is a `RolloutSection` with `generations`,
    `epochs`, `minibatches` and perhaps `unfinished_penalty`.
    Raises ConfigError where no reward is named.
    """
    if config.reward is None:
        raise ConfigError(problem("E-OBJ-33", "objective.reward"))
    return Rollouts(
        num_answers=config.generations,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        rewards=config.reward,
        on_bad=config.on_bad,
        judge=judge,
        epochs=config.epochs,
        minibatches=config.minibatches,
        unfinished_penalty=getattr(config, "unfinished_penalty", 0.0),
        **more,
    )


def alike(groups: Groups) -> Figures:
    """How many groups have one reward for all of their answers, and teach nothing."""
    flat = sum(deviation([e.reward for e in group]) == 0 for group in groups)
    return {WITHOUT_DIFFERENCE: (float(flat), len(groups))}


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return float((sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5)


def distance_of(answer: Experience) -> float:
    """The summed log-ratio of an answer to the reference, in nats; 0 where there is none."""
    return 0.0 if answer.reference is None else float((answer.old - answer.reference).sum())


def kl_of(groups: Groups) -> float:
    """Mean over answers of their distance to the reference, in nats."""
    answers = [e for group in groups for e in group if e.reference is not None]
    return sum(map(distance_of, answers)) / len(answers) if answers else 0.0


def less_distance(answers: list[Experience], beta: float) -> list[float]:
    """The reward of each answer, minus `beta` for each nat of its distance to the reference."""
    return [e.reward - beta * distance_of(e) for e in answers]


# ---- what a pass is made of


def joined(output: PassOutput, name: str) -> Tensor:
    """A field of the experiences of a pass, in the order of its labels, (L,)."""
    import torch

    parts = [getattr(sample.facts["experience"], name) for sample in output.samples]
    if name == "old" and all(part is None for part in parts):
        return output.logprob.detach()  # the only update of its round: what it finds is what was
    whole = torch.cat([torch.as_tensor(part, dtype=torch.float32) for part in parts])
    return whole.to(output.logprob.device)


def lengths(output: PassOutput) -> Tensor:
    """Tokens of each answer, (A,)."""
    import torch

    return per_branch(torch.ones_like(output.logprob), output)


def num_answers(samples: list[Sample]) -> float:
    """Answers of a minibatch, each with its row's weight."""
    return float(sum(branch.weights[0] for sample in samples for branch in sample.branches))


def ratio_of(log_ratio: Tensor) -> Tensor:
    """exp of a difference of log-probabilities, which of whole answers may be hundreds of nats:
    beyond 40 it stays finite and teaches nothing."""
    return log_ratio.clamp(-40.0, 40.0).exp()


def clipped_policy_loss(
    ratio: Tensor, advantage: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """(loss, whether the clipped side counts): -min(ratio A, clip(ratio, 1 - low, 1 + high) A),
    element by element."""
    import torch

    free, held = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(free, held), held < free


def watch(output: PassOutput, old_L: Tensor, clipped: Tensor) -> None:
    """Figures that every policy objective shows, as (sum over tokens or answers, number)."""
    ratio = (output.logprob - old_L).detach().exp()
    output.figures |= {
        "clip_share": (later(clipped.sum()), clipped.numel()),
        "ratio": (later(ratio.sum()), ratio.numel()),
        "ratio_gap": (later((ratio - 1).abs().sum()), ratio.numel()),
    }
