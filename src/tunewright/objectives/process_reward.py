"""A process reward model: is each step of an answer right? Learnt from answers that were judged
step by step (Lightman et al. 2023, arXiv 2305.20050).

A head on the hidden state of a step's last token gives a number s, and p = sigmoid(s) is how likely
the step is right, given all before it. Steps of one answer begin alike, so as branches of the token
tree they cost what the answer costs: the beginnings are the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from tunewright.core.config import Section
from tunewright.core.moves import later
from tunewright.core.registry import objectives
from tunewright.core.types import Branch, Objective, PassOutput, Sample, Term
from tunewright.objectives.branches import roles

RIGHT, WRONG = "good", "bad"


class ProcessRewardConfig(Section):
    """A reward model that judges every step of an answer. Data: answers as lists of steps, each
    with a verdict."""

    whole: Literal["min", "product", "mean", "last"] = "min"
    """How the steps' probabilities combine into the reward of a whole answer: the worst step, all
    steps together, their mean, or the last."""


def step_branches(tokens: Sequence[int], steps: Sequence[Sequence[int]]) -> list[Branch]:
    """A branch for each step: everything up to its end, for the head to read there. `steps` are
    (tokens up to the end, right or not)."""
    return [
        Branch(list(tokens[:end]), [], [], role=RIGHT if right else WRONG) for end, right in steps
    ]


@objectives.register(
    "process_reward",
    ProcessRewardConfig,
    source="arXiv 2305.20050",
    rows=("stepwise",),
    usual_for=("stepwise",),
    judges="steps",
)
def process_reward(config: ProcessRewardConfig) -> Objective:
    """loss = mean over steps of -log sigmoid(s) for a right step and -log sigmoid(-s) for a wrong
    one, rows weighted."""

    def prepare(samples: list[Sample]) -> None:
        for sample in samples:
            if "weight" not in sample.facts:
                whole = sample.branches[0]
                sample.facts["weight"] = max(whole.weights, default=1.0)
                sample.branches = step_branches(whole.tokens, sample.facts["steps"])

    def plan(samples: list[Sample]) -> dict[str, float]:
        return {"process_reward": sum(s.facts["weight"] * len(s.branches) for s in samples)}

    def terms(output: PassOutput) -> dict[str, Term]:
        from torch.nn.functional import binary_cross_entropy_with_logits

        score_B = output.score
        assert score_B is not None
        right_B = score_B.new_tensor([float(role == RIGHT) for role in roles(output)])
        weight_B = score_B.new_tensor(
            [s.facts["weight"] for s in output.samples for _ in s.branches]
        )
        said = (score_B.detach() > 0) == right_B.bool()
        counts = [len(s.branches) for s in output.samples]
        answers = zip(score_B.detach().split(counts), right_B.split(counts), strict=True)
        found = [
            first_wrong((score > 0).tolist()) == first_wrong(right.bool().tolist())
            for score, right in answers
        ]
        steps = len(right_B)
        output.figures |= {
            "accuracy": (later(said.sum()), steps),
            "steps_right": (later(right_B.sum()), steps),
            "said_right": (later((score_B > 0).sum()), steps),
            "first_error": (float(sum(found)), len(found)),
        }
        loss = binary_cross_entropy_with_logits(score_B, right_B, weight_B, reduction="sum")
        return {"process_reward": (loss, 1.0)}

    return Objective(plan, terms, heads=("score",), prepare=prepare, rate_factor=0.5)


def first_wrong(right: Sequence[bool]) -> int:
    """Number of the first wrong step; the number of steps where there is none."""
    return next((i for i, good in enumerate(right) if not good), len(right))


def whole_answer(chances: Sequence[float], how: str) -> float:
    """The reward of an answer from the chances of its steps."""
    if how == "product":
        product = 1.0
        for chance in chances:
            product *= chance
        return product
    return {"min": min(chances), "mean": sum(chances) / len(chances), "last": chances[-1]}[how]


def by_steps(sample: Sample, ends: Sequence[int]) -> Sample:
    """The same answer, read at the end of every step."""
    return replace(
        sample, branches=step_branches(sample.branches[0].tokens, [(end, 1) for end in ends])
    )
