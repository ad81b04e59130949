"""Supervised fine-tuning: the mean negative log-likelihood of the learnt tokens of a whole optimiser step."""

from __future__ import annotations

from typing import Any

from tunewright.core.config import Section
from tunewright.core.registry import objectives
from tunewright.core.types import Needs, Objective, Sample, Term


class SftConfig(Section):
    """Supervised fine-tuning on answers. Data: rows with a question and an answer, or plain text."""


def _plan(samples: list[Sample]) -> dict[str, float]:
    return {"sft": sum(sum(branch.weights) for sample in samples for branch in sample.branches)}


def _terms(output: Any) -> dict[str, Term]:
    return {"sft": (-(output.weight * output.logprob).sum(), 1.0)}


@objectives.register("sft", SftConfig, source="maximum likelihood", rows=("conversation", "text"))
def sft(config: SftConfig) -> Objective:
    """loss = sum_l w_l * (-log p(token_l)) / sum_l w_l over all learnt tokens l of the step, however it is cut into passes."""
    return Objective(_plan, _terms, Needs(rows=("conversation", "text")))
