"""What was trained, saved and loaded afresh: the files must compute what the model in memory
did."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import TrainingError, problem
from tunewright.core.types import Attached
from tunewright.engine.opening import use_layout
from tunewright.engine.policy import Policy
from tunewright.methods.saved import put_on
from tunewright.models import load
from tunewright.models.generate import stock_attention
from tunewright.models.kernels.fused import accelerate
from tunewright.record.events import EventLog
from tunewright.run.decided import Decided
from tunewright.run.prepare import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from tunewright.engine.assembly import Ready

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

    causal: Any
    attached: Attached | None
    layout: str
    seconds: float
    """It took to load."""

    @property
    def model(self) -> Any:
        """What computes logits."""
        return self.causal if self.attached is None else self.attached.model

    def policy(self) -> Policy:
        """What scores, laid out as the run was."""
        accelerate(self.causal)
        use_layout(self.causal, self.layout)
        policy = Policy(self.model, self.causal, self.layout)
        policy.heads = ("score",)
        return policy


def save(plan: Plan, opened: Ready, decided: Decided) -> Saved:
    """Write the trained weights and the tokenizer they were taught with."""
    folder = decided.folder(plan.out)
    opened.attached.save(folder)
    plan.renderer.tokenizer.save_pretrained(str(folder))
    return Saved(folder, decided.saves_model, _logits(plan, opened.attached.model))


def load_afresh(plan: Plan, saved: Saved, decided: Decided) -> Fresh:
    """Load the saved files as anybody would."""
    start = time.perf_counter()
    world = decided.world
    causal = load.load_model(
        saved.folder if saved.is_model else plan.source.folder,
        dtype=world.torch_dtype(),
        device=world.device,
        base=None if saved.is_model else plan.config.base,
    )
    attached = None if saved.is_model else put_on(causal, saved.folder)
    return Fresh(causal, attached, decided.layout, time.perf_counter() - start)


def require_equal(plan: Plan, saved: Saved, fresh: Fresh, log: EventLog) -> None:
    """Raise TrainingError (E-TRAIN-04) where the loaded model computes something else."""
    gap = float((_logits(plan, fresh.model) - saved.logits).abs().max() / saved.logits.abs().max())
    log.write("reloaded", largest_logit_difference=gap)
    if not gap <= LARGEST_GAP:
        raise TrainingError(problem("E-TRAIN-04", str(saved.folder), gap=gap))


def _logits(plan: Plan, model: Any) -> Tensor:
    """Logits of the last row of one training sample, through stock attention: equal before saving
    and after loading, or something was lost. Shape (vocabulary,)."""
    import torch

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.tensor([plan.data.train[0].branches[0].tokens[:64]], device=causal.device)
    with stock_attention(causal), torch.no_grad():
        found: Tensor = model(input_ids=ids).logits[0, -1].float()
    return found
