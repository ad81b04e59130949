"""A trained reward model beside the model that learns from it, on the same base weights where it can be.

A copy of the module tree that shares every weight costs no memory; the reward run's adapter and its score head go on the copy. So policy, value,
reference and reward need one base between them. Where the policy changes base weights, or the reward run has another base, a base of its own is loaded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.core.errors import ModelError, problem
from tunewright.core.telling import Tell
from tunewright.core.types import Sample
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.engine.forward import Policy
from tunewright.engine.tree import cut_passes
from tunewright.methods.saved import put_on
from tunewright.models import load
from tunewright.models.fast import accelerate, fused_without_gradient


def twin(causal: Any) -> Any:
    """A second module tree over the same parameter tensors, to be made before anything is put on `causal` or replaced in it."""
    shared = {id(t): t for t in [*causal.parameters(), *causal.buffers()]}
    return copy.deepcopy(causal, shared)


@dataclass
class RewardModel:
    """Scores whole answers. `name` is what its figures are called."""

    policy: Policy
    name: str
    rows_per_pass: int

    @torch.no_grad()
    def score(self, samples: list[Sample]) -> list[float]:
        """One number a sample, in order; each has one branch: prompt and answer."""
        self.policy.model.eval()
        found: dict[int, float] = {}
        place = {id(sample): i for i, sample in enumerate(samples)}
        for group in cut_passes(samples, self.rows_per_pass, padded=self.policy.layout == "padded"):
            with fused_without_gradient():
                score = self.policy(group).score
            assert score is not None
            found |= {place[id(sample)]: value for sample, value in zip(group, score.tolist(), strict=True)}
        return [found[i] for i in range(len(samples))]


def open_reward_model(run: Path, base: Any, base_folder: Path, layout: str, world: Any, tell: Tell) -> RewardModel:
    """The reward model of a run folder. `base` is a twin of the untouched base, or None where its weights will change.

    Raises ModelError for a run that gives no scores, or whose words have other token ids than the policy's.
    """
    found = opening.find(str(run), tell)
    _require_same_words(run, found.source.folder, base_folder)
    if found.adapter is not None and base is not None and _same_weights(found.source.folder, base_folder):
        causal = base
        tell.line(say("rounds.reward_shared", folder=run))
    else:
        causal = load.load_model(found.source.folder, dtype=world.torch_dtype(), device=world.device, base=opening.base_of(found.settings))
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
    return RewardModel(policy, f"reward_{run.name}", world.rows_per_pass)


def _same_weights(one: Path, other: Path) -> bool:
    from tunewright.engine.reference import weights_digest

    return one.resolve() == other.resolve() or weights_digest(one) == weights_digest(other)


def _require_same_words(run: Path, theirs: Path, ours: Path) -> None:
    """Raise ModelError unless both tokenizers give every word the same id: the reward model reads the policy's tokens."""
    if theirs.resolve() == ours.resolve():
        return
    one, other = load.load_tokenizer(theirs).get_vocab(), load.load_tokenizer(ours).get_vocab()
    if one != other:
        raise ModelError(problem("E-OBJ-35", str(run), theirs=len(one), ours=len(other), differ=len(set(one.items()) ^ set(other.items()))))
