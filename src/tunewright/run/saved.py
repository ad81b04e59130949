"""What was trained, saved and loaded afresh: the files must compute what the model in memory
did."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import TrainingError, problem
from tunewright.engine.decoding.ways import attention_of
from tunewright.engine.opening import Loaded, from_files
from tunewright.engine.policy import Policy
from tunewright.record.events import EventLog
from tunewright.run.decided import Decided
from tunewright.run.prepare import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from tunewright.engine.opening import Ready

LARGEST_GAP = 1e-3
"""Largest difference of a logit between the model in memory and the one loaded afresh, as a share
of the largest logit."""


@dataclass(frozen=True)
class Saved:
    """The folder of what was trained, and what the model in memory computed."""

    folder: Path
    is_model: bool
    logits: Tensor


@dataclass(frozen=True)
class Fresh:
    """What was saved, loaded into a new model."""

    loaded: Loaded
    layout: str
    seconds: float
    """It took to load."""

    def policy(self) -> Policy:
        """What scores, laid out as the run was."""
        return self.loaded.policy(self.layout, heads=("score",))


def save(plan: Plan, opened: Ready, decided: Decided) -> Saved:
    """Write the trained weights and the tokenizer they were taught with."""
    folder = decided.folder(plan.out)
    opened.stepper.attached.save(folder)
    plan.renderer.tokenizer.save_pretrained(str(folder))
    return Saved(folder, decided.saves_model, _logits(plan, opened.model))


def load_afresh(plan: Plan, saved: Saved, decided: Decided) -> Fresh:
    """Load the saved files as anybody would."""
    start = time.perf_counter()
    world = decided.world
    loaded = from_files(
        saved.folder if saved.is_model else plan.source.folder,
        None if saved.is_model else saved.folder,
        world,
        None if saved.is_model else plan.config.base,
    )
    return Fresh(loaded, decided.layout, time.perf_counter() - start)


def require_equal(plan: Plan, saved: Saved, fresh: Fresh, log: EventLog) -> None:
    """Raise TrainingError (E-TRAIN-04) where the loaded model computes something else."""
    gap = float(
        (_logits(plan, fresh.loaded.model) - saved.logits).abs().max() / saved.logits.abs().max()
    )
    log.write("reloaded", largest_logit_difference=gap)
    if not gap <= LARGEST_GAP:
        raise TrainingError(problem("E-TRAIN-04", str(saved.folder), gap=gap))


def _logits(plan: Plan, model: Any) -> Tensor:
    """Logits of the last row of one training sample, through stock attention: equal before saving
    and after loading, or something was lost. Shape (vocabulary,)."""
    import torch

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.tensor([plan.data.train[0].branches[0].tokens[:64]], device=causal.device)
    with attention_of(causal, ""), torch.no_grad():
        found: Tensor = model(input_ids=ids).logits[0, -1].float()
    return found
