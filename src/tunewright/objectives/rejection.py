"""Rejection sampling: draw answers, keep those that pass, learn them as if they were rows, repeat.

Sources: the name and the best of a group, RAFT (Dong et al. 2023, arXiv 2304.06767); all right
answers that differ, RFT (Yuan et al. 2023, 2308.01825); thoughts that reached the answer, STaR
(Zelikman et al. 2022, 2203.14465), which is this with one round an epoch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunewright.core.registry import objectives
from tunewright.core.types import Experience, Figures, Objective, PassOutput, Sample, Term
from tunewright.objectives.policy import ROWS, Groups, RolloutSection, joined, rollouts_of


class RejectionConfig(RolloutSection):
    """Rejection sampling: of several answers to each prompt those that pass are learnt, with the
    plain likelihood."""

    generations: int = Field(default=8, ge=1)
    """Answers sampled for each prompt."""
    choose: Literal["passing", "best"] = "passing"
    """passing: learn every answer that reaches `threshold`; best: the best answer to each prompt,
    however good it is, unless all are worth the same (RAFT)."""
    threshold: float = 1.0
    """Reward from which an answer passes."""
    most: int = Field(default=4, ge=1)
    """At most this many different answers to a prompt are learnt, so that easy prompts do not
    outweigh hard ones."""
    epochs: int = Field(default=1, ge=1)
    """How often the answers of a round are trained on."""
    minibatches: int = Field(default=1, ge=1)
    """Updates in each of these epochs."""


def chosen(group: list[Experience], config: RejectionConfig) -> list[Experience]:
    """The answers of one prompt that are learnt: none that was cut off, none twice, the better
    ones first."""
    able = [e for e in group if e.finished]
    if config.choose == "best":
        rewards = [e.reward for e in group]
        top = max(able, key=lambda e: e.reward, default=None)
        return [] if top is None or max(rewards) == min(rewards) else [top]
    found: dict[object, Experience] = {}
    for number, e in enumerate(sorted(able, key=lambda e: -e.reward)):
        if e.reward >= config.threshold:
            found.setdefault(tuple(e.tokens) or number, e)
    return list(found.values())[: config.most]


@objectives.register("rejection", RejectionConfig, source="arXiv 2304.06767", rows=ROWS)
def rejection(config: RejectionConfig) -> Objective:
    """loss = sum of -log p over the tokens of the chosen answers / their number."""

    def judge(groups: Groups) -> Figures:
        import torch

        kept, reached = 0, 0
        for group in groups:
            learnt = chosen(group, config)
            kept, reached = kept + len(learnt), reached + bool(learnt)
            for e in group:
                one = float(any(e is other for other in learnt))
                e.advantage = torch.full((e.num_tokens,), one)
        answers = sum(map(len, groups))
        return {
            "kept": (float(kept), max(1, answers)),
            "prompts_kept": (float(reached), max(1, len(groups))),
        }

    def plan(samples: list[Sample]) -> dict[str, float]:
        total = sum(
            sum(branch.weights) * float(sample.facts["experience"].advantage[0])
            for sample in samples
            for branch in sample.branches
        )
        return {"policy": total or 1.0}

    def terms(output: PassOutput) -> dict[str, Term]:
        wanted_L = output.weight * joined(output, "advantage")
        return {"policy": (-(wanted_L * output.logprob).sum(), 1.0)}

    return Objective(plan, terms, rollouts=rollouts_of(config, judge, picks=True))
