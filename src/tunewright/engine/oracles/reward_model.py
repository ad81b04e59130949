"""A trained reward model beside the model that learns from it, on the same base weights where it
can be.

A copy of the module tree that shares every weight costs no memory; the reward run's adapter and its
score head go on the copy. So policy, value, reference and reward need one base between them. Where
the policy changes base weights, or the reward run has another base, a base of its own is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.core.errors import ModelError, problem
from tunewright.core.types import Sample
from tunewright.data.labels import step_ends
from tunewright.engine import ranks
from tunewright.engine.policy import Policy
from tunewright.objectives.process_reward import by_steps, whole_answer
from tunewright.sources.fingerprint import weights_digest
from tunewright.text.tokenizer import load_tokenizer


def sharing_weights(causal: Any) -> Any:
    """A second module tree over the same parameter tensors, to be made before anything is put on
    `causal` or replaced in it."""
    shared = {id(t): t for t in [*causal.parameters(), *causal.buffers()]}
    return copy.deepcopy(causal, shared)


@dataclass
class Steps:
    """How a model that judges steps reads an answer: its lines are the steps."""

    whole: str
    """How their chances make one number (`objective.whole` of the run that trained it)."""
    decode: Callable[[Sequence[int]], str]

    def cut(self, sample: Sample) -> Sample:
        """The answer with a branch up to the end of each step. An answer without a word is one
        step."""
        branch = sample.branches[0]
        start = branch.learnt[0] if branch.learnt else len(branch.tokens)
        answer = branch.tokens[start:]
        lines = [line for line in self.decode(answer).splitlines() if line.strip()]
        ends = step_ends(answer, lines, self.decode) or [len(answer)]
        return by_steps(sample, [start + end for end in ends])


@dataclass
class RewardModel:
    """Scores whole answers. `name` is what its figures are called."""

    policy: Policy
    name: str
    rows_per_pass: int
    steps: Steps | None = None
    """How answers are cut and put together, where the model judges steps."""

    def score(self, samples: list[Sample]) -> list[float]:
        """One number a sample, in order; each has one branch: prompt and answer, whose tokens are
        the branch's learnt ones. Every rank scores a part."""
        return ranks.current().each(samples, self._score)

    def _score(self, samples: list[Sample]) -> list[float]:
        cut = samples if self.steps is None else [self.steps.cut(sample) for sample in samples]
        place = {id(sample): i for i, sample in enumerate(cut)}
        found = [0.0] * len(cut)
        for sample, score in self.policy.scores(cut, self.rows_per_pass):
            found[place[id(sample)]] = (
                float(score)
                if self.steps is None
                else whole_answer(torch.sigmoid(score.double()).tolist(), self.steps.whole)
            )
        return found


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights."""
    return one.resolve() == other.resolve() or weights_digest(one) == weights_digest(other)


def require_same_words(run: Path, theirs: Path, ours: Path, words: dict[str, int] | None) -> None:
    """Raise ModelError unless both tokenizers give every word the same id: the reward model reads
    the policy's tokens."""
    if theirs.resolve() == ours.resolve() and words is None:
        return
    one, other = (load_tokenizer(theirs).get_vocab(), words or load_tokenizer(ours).get_vocab())
    if one != other:
        raise ModelError(
            problem(
                "E-OBJ-35",
                str(run),
                theirs=len(one),
                ours=len(other),
                differ=len(set(one.items()) ^ set(other.items())),
            )
        )
