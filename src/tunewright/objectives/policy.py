"""What the objectives share that learn from the model's own answers: PPO, GRPO and its variants,
RLOO, REINFORCE.

Legend: L learnt tokens of a pass, A answers. `old_L` are log-probabilities before the first update
of a round, `ref_L` those of the model at step 0, ratio_L = exp(logprob_L - old_L). The engine draws
the answers, judges them and computes these values (`engine.rollouts`); what stands here and in the
files of the objectives is the arithmetic: advantages from rewards, and the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.errors import ConfigError, problem
from tunewright.core.types import WITHOUT_DIFFERENCE, Experience, Rollouts, Sample

ROWS = ("prompt", "conversation", "preference", "judged")
Figures = dict[str, tuple[float, int]]


class RolloutSection(Section):
    """Learning from the model's own answers. Data: prompts, or rows whose answers are left out
    (they remain at hand for reward functions)."""

    reward: Any = None
    """What an answer is worth: the name of a reward function, a mapping with `kind` and its
    options, a reward run's folder, or a list of these."""
    on_bad: Literal["stop", "skip"] = "stop"
    """When a reward function fails on an answer: stop the run, or leave that answer out and count
    it."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws; the model also learns at this temperature, so that it is judged as it answered.
    """
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that sum to this probability."""
    top_k: int = Field(default=0, ge=0)
    """Draw among this many likeliest tokens; 0 for all."""


def rollouts_of(
    config: Any, judge: Callable[[list[list[Experience]]], Figures], **more: Any
) -> Rollouts:
    """What an objective asks of the rounds. Raises ConfigError where no reward is named."""
    if config.reward is None:
        raise ConfigError(problem("E-OBJ-33", "objective.reward"))
    return Rollouts(
        config.generations,
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.top_k,
        config.reward,
        config.on_bad,
        judge,
        epochs=config.epochs,
        minibatches=config.minibatches,
        unfinished_penalty=config.unfinished_penalty,
        **more,
    )


def alike(groups: list[list[Experience]]) -> Figures:
    """How many groups have one reward for all of their answers, and teach nothing."""
    return {
        WITHOUT_DIFFERENCE: (
            float(sum(deviation([e.reward for e in group]) == 0 for group in groups)),
            len(groups),
        )
    }


def deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return float((sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5)


def kl_of(groups: list[list[Experience]]) -> float:
    """Mean over answers of the summed log-ratio to the reference, in nats."""
    answers = [e for group in groups for e in group if e.reference is not None]
    return (
        sum(float((e.old - e.reference).sum()) for e in answers) / len(answers) if answers else 0.0
    )


# ---- what a pass is made of


def joined(output: Any, name: str) -> Any:
    """A field of the experiences of a pass, in the order of its labels, (L,)."""
    import torch

    parts = [getattr(sample.facts["experience"], name) for sample in output.samples]
    if name == "old" and all(part is None for part in parts):
        return output.logprob.detach()  # the only update of its round: what it finds is what was
    return torch.cat([torch.as_tensor(part, dtype=torch.float32) for part in parts]).to(
        output.logprob.device
    )


def per_answer(values_L: Any, output: Any) -> Any:
    """Sums over the tokens of each answer, (A,)."""
    import torch

    return torch.zeros(
        len(output.branch_sample), dtype=values_L.dtype, device=values_L.device
    ).index_add(0, output.branch, values_L)


def lengths(output: Any) -> Any:
    """Tokens of each answer, (A,)."""
    import torch

    return per_answer(torch.ones_like(output.logprob), output)


def num_tokens(samples: list[Sample]) -> float:
    """Learnt tokens of a minibatch, each with its row's weight."""
    return float(sum(sum(branch.weights) for sample in samples for branch in sample.branches))


def num_answers(samples: list[Sample]) -> float:
    """Answers of a minibatch, each with its row's weight."""
    return float(sum(branch.weights[0] for sample in samples for branch in sample.branches))


def ratio_of(log_ratio: Any) -> Any:
    """exp of a difference of log-probabilities, which of whole answers may be hundreds of nats:
    beyond 40 it stays finite and teaches nothing."""
    return log_ratio.clamp(-40.0, 40.0).exp()


def clipped_policy_loss(ratio: Any, advantage: Any, low: float, high: float) -> tuple[Any, Any]:
    """(loss, whether the clipped side counts): -min(ratio A, clip(ratio, 1 - low, 1 + high) A),
    element by element."""
    import torch

    free, held = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(free, held), held < free


def watch(output: Any, logprob_L: Any, old_L: Any, clipped: Any) -> None:
    """Figures that every policy objective shows, as (sum over tokens or answers, number)."""
    ratio = (logprob_L - old_L).detach().exp()
    output.figures |= {
        "clip_share": (float(clipped.sum()), clipped.numel()),
        "ratio": (float(ratio.sum()), ratio.numel()),
        "ratio_gap": (float((ratio - 1).abs().sum()), ratio.numel()),
    }
