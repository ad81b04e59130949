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

from tunewright.core import compat
from tunewright.core.errors import ModelError, problem
from tunewright.core.telling import Tell
from tunewright.core.types import Sample
from tunewright.core.words import say
from tunewright.data.labels import step_ends
from tunewright.engine import opening
from tunewright.engine.policy import Policy
from tunewright.engine.tree import cut_passes
from tunewright.methods.saved import put_on
from tunewright.models import load
from tunewright.models.kernels.fused import accelerate, fused_without_gradient
from tunewright.objectives.process_reward import by_steps, whole_answer
from tunewright.text.tokenizer import load_tokenizer


def twin(causal: Any) -> Any:
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

    @torch.no_grad()
    def score(self, samples: list[Sample]) -> list[float]:
        """One number a sample, in order; each has one branch: prompt and answer, whose tokens are
        the branch's learnt ones."""
        self.policy.model.eval()
        if self.steps is not None:
            samples = [self.steps.cut(sample) for sample in samples]
        found: dict[int, float] = {}
        place = {id(sample): i for i, sample in enumerate(samples)}
        for group in cut_passes(samples, self.rows_per_pass, padded=self.policy.layout == "padded"):
            with fused_without_gradient():
                score = self.policy(group).score
            assert score is not None
            values = score.split([len(sample.branches) for sample in group])
            whole = self.steps.whole if self.steps is not None else None
            for sample, value in zip(group, values, strict=True):
                found[place[id(sample)]] = (
                    whole_answer(torch.sigmoid(value.double()).tolist(), whole)
                    if whole
                    else float(value)
                )
        return [found[i] for i in range(len(samples))]


def open_reward_model(
    run: Path,
    base: Any,
    base_folder: Path,
    layout: str,
    world: Any,
    tell: Tell,
    words: dict[str, int] | None = None,
) -> RewardModel:
    """The reward model of a run folder. `base` is a twin of the untouched base, or None where its
    weights will change; `words` are the token ids of the model that learns, where it has more of
    them than its base.

    Raises ModelError for a run that gives no scores, or whose words have other token ids than the
    policy's.
    """
    found = opening.find(str(run), tell)
    _require_same_words(run, found.tokenizer_folder, base_folder, words)
    if (
        found.adapter is not None
        and base is not None
        and _same_weights(found.source.folder, base_folder)
    ):
        causal = base
        tell.line(say("rounds.reward_shared", folder=run))
    else:
        causal = load.load_model(
            found.source.folder,
            dtype=world.torch_dtype(),
            device=world.device,
            base=opening.base_of(found.settings),
        )
        tell.line(say("rounds.reward_own", folder=run))
    accelerate(causal)
    model = put_on(causal, found.adapter).model if found.adapter is not None else causal
    if not hasattr(causal, "score"):
        raise ModelError(problem("E-OBJ-34", str(run)))
    if causal is not base:
        model.requires_grad_(False)
    opening.use_layout(causal, layout)
    policy = Policy(model, causal, layout)
    policy.heads = ("score",)
    steps = None
    if compat.judges(found.settings.get("objective.kind")) == "steps":
        tokenizer = load_tokenizer(found.tokenizer_folder)
        steps = Steps(
            str(found.settings.get("objective.whole") or "min"),
            lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        )
    return RewardModel(policy, f"reward_{run.name}", world.rows_per_pass, steps)


def _same_weights(one: Path, other: Path) -> bool:
    from tunewright.engine.oracles.reference import weights_digest

    return one.resolve() == other.resolve() or weights_digest(one) == weights_digest(other)


def _require_same_words(run: Path, theirs: Path, ours: Path, words: dict[str, int] | None) -> None:
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
